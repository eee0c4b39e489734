"""The pass `svd`, and what it alone uses."""
