"""The pass `equalize`, and what it alone uses."""
