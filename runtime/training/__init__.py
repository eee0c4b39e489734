"""Retraining: the built-in hook, the user's hook, and the trainer that a pass calls. And the fitter, which
fits one block of a quantized network.

PyTorch is imported when training begins, not with this package.
"""

from onnx_lathe.runtime.training.job import RetrainJob
from onnx_lathe.runtime.training.rounding.fitter import TorchFitter
from onnx_lathe.runtime.training.setup import TrainingSetup
from onnx_lathe.runtime.training.trainer import TorchTrainer, check_trainable, require_torch

__all__ = [
    "RetrainJob",
    "TorchFitter",
    "TorchTrainer",
    "TrainingSetup",
    "check_trainable",
    "require_torch",
]
