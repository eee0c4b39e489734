"""The pass `prune`, and what it alone uses."""
