"""Helpers of the lowering in onnxruntime.py; no target names them."""
