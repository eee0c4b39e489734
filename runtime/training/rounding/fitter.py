"""What a pass calls to have a block of a quantized network fitted. PyTorch is needed, and imported, only when that begins."""

from collections.abc import Callable
from dataclasses import dataclass

from onnx_lathe.protocols import BlockTask, FittedBlock
from onnx_lathe.runtime.training.trainer import require_torch

NEEDED_BY = "int8(rounding=blocks)"


@dataclass(frozen=True)
class TorchFitter:
    """Fits by gradient descent. Implements Fitter of passes/core/services.py.

    On the GPU if there is one; on a CPU the same seed gives the same result.
    """

    seed: int = 0
    progress: Callable[[str], None] = lambda message: None

    def fit(self, task: BlockTask, steps: int) -> FittedBlock:
        """See Fitter of passes/core/services.py. Raises UsageError without PyTorch, ModelError for a block that PyTorch
        cannot run.
        """
        require_torch(NEEDED_BY)
        from onnx_lathe.runtime.training.rounding.reconstruction import reconstruct

        return reconstruct(task, steps, self.seed, self.progress)
