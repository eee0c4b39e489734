"""The pass `int8`, and what it alone uses."""
