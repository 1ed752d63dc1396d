"""Architectures as data, positions, and the loading of weights."""
