"""The pass `codebook`, and what it alone uses."""
