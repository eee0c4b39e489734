"""What a pass calls to have a layer's weights rounded. PyTorch is needed, and imported, only when rounding
begins.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import onnx

from onnx_lathe.protocols import Rounded
from onnx_lathe.runtime.training.trainer import require_torch

NEEDED_BY = "int8(rounding=adaptive)"


@dataclass(frozen=True)
class TorchRounder:
    """Chooses levels by gradient descent. Implements Rounder of passes/core/services.py.

    On the GPU if there is one; on a CPU the same seed gives the same levels.
    """

    seed: int = 0
    progress: Callable[[str], None] = lambda message: None

    def round(
        self,
        layer: onnx.ModelProto,
        weight: str,
        exact: np.ndarray,
        low: np.ndarray,
        high: np.ndarray,
        step: np.ndarray,
        inputs: Mapping[str, np.ndarray],
        target: np.ndarray,
        steps: int,
    ) -> Rounded:
        """See Rounder of passes/core/services.py. Raises UsageError without PyTorch, ModelError for a layer
        that PyTorch cannot run.
        """
        require_torch(NEEDED_BY)
        from onnx_lathe.runtime.training.rounding.reconstruction import Reconstruction, reconstruct

        task = Reconstruction(layer, weight, exact, low, high, step, inputs, target)
        return Rounded(*reconstruct(task, steps, self.seed, self.progress))
