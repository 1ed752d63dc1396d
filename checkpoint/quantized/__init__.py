"""Quantized linear weights as three formats store them, packed and unpacked to the bit."""
