"""Retraining: the built-in hook, the user's hook, and the trainer that a pass calls. And the rounder, which trains one layer's rounding.

PyTorch is imported when training begins, not with this package.
"""

from runtime.training.job import RetrainJob
from runtime.training.rounder import TorchRounder
from runtime.training.trainer import TorchTrainer, require_torch

__all__ = ["RetrainJob", "TorchRounder", "TorchTrainer", "require_torch"]
