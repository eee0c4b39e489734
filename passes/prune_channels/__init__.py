"""The pass `prune_channels`, and what it alone uses."""
