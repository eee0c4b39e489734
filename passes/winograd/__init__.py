"""The pass `winograd`, and what it alone uses."""
