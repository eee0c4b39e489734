"""The coders that a packed file is made of."""
