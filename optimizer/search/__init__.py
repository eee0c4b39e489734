"""Finds settings of passes under a gate: sensitivity per layer, searches with Optuna, and `auto`."""
