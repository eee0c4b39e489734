"""The target `ncnn`, and what it alone uses."""
