"""Passes: graph -> graph. One pass per file; a file in this folder that registers a Pass is found by
`onnx_lathe.passes.core.registry`.
"""
