"""Block reconstruction in PyTorch."""
