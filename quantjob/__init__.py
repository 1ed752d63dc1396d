"""Quantization jobs arrive with their own issue; nothing here runs yet."""
