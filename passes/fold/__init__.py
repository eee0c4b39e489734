"""The pass `fold`, and what it alone uses."""
