"""The pass `float16`, and what it alone uses."""
