"""Fits what may still change of a compressed network to what the original answers."""
