"""PyTorch counterparts of ONNX operators, by family. Every module of this folder is imported; see
registry.py to add one.
"""
