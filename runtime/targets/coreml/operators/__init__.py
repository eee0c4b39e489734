"""The operators of ONNX that the writer knows, by family."""
