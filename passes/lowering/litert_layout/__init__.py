"""Channels last for LiteRT: in which order the axes of each tensor are stored, and the graph rewritten to it."""
