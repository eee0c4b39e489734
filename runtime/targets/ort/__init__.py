"""The target `ort`, and what it alone uses."""
