"""The pass `tensor_train`, and what it alone uses."""
