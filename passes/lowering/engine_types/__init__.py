"""Helpers of the lowering in tensorrt.py; no target names them."""
