"""The target `qnn`, and what it alone uses."""
