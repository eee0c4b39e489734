"""The built-in training loop and what it is made of."""
