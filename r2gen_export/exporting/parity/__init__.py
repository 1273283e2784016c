"""Comparison of an exported bundle with PyTorch."""
