"""Arrays: which weights and channels become zero."""
