"""Metrics against labels, sample by sample: boxes, segmentation, F1, texts, and a user's own."""
