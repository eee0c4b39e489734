"""The target `litert`, and what it alone uses."""
