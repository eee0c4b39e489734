"""Pure NumPy kernels: no graph, no file."""
