"""The pass `tucker`, and what it alone uses."""
