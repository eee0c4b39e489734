"""Runs models in ONNX Runtime: sessions, calibration, evaluation."""
