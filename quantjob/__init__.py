"""Quantization of checkpoints, one layer in memory at a time, and what it costs in quality."""
