"""Adaptive rounding of a layer in PyTorch."""
