"""One function per operator, in files by family; registry.py imports them all."""
