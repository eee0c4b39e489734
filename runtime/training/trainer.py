"""What a pass calls to have a model retrained. PyTorch is needed, and imported, only when training begins."""

from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import onnx

from onnx_lathe.errors import UsageError
from onnx_lathe.protocols import Shaping, TrainResult
from onnx_lathe.runtime.training.parallel.launch import train_launched
from onnx_lathe.runtime.training.setup import TrainingSetup
from onnx_lathe.tiles import Tiles


def require_torch(needed_by: str = "retrain") -> None:
    """Raises UsageError if PyTorch is not installed."""
    if find_spec("torch") is None:
        raise UsageError(f"{needed_by} needs PyTorch; pip install 'onnx-lathe[train]'")


def check_trainable(model: onnx.ModelProto) -> None:
    """Raises ModelError, as the training of this model would, for a node that neither PyTorch nor, without a
    gradient, ONNX Runtime computes.
    """
    require_torch()
    from onnx_lathe.runtime.torch_bridge.plan import check_runs

    check_runs(model)


@dataclass(frozen=True)
class TorchTrainer:
    """Trains models as the setup says. Implements Trainer of passes/core/services.py."""

    setup: TrainingSetup

    def train(
        self,
        model: onnx.ModelProto,
        settings: Mapping[str, Any],
        shaping: Shaping | None = None,
        tiles: Mapping[str, Tiles] | None = None,
    ) -> TrainResult:
        """Trains a copy of the model's float weights; `settings` are the options of
        passes/core/training_options.py.

        With `shaping`, what stands in for the weights after the last step is the result: `validation` then
        chooses no epoch, because an earlier one would be of another sparsity.

        With `tiles`, each Conv whose `lathe.conv_algorithm` is among their names is computed by them in
        float16; the gradient is that of the convolution.

        metrics: epochs, seconds, what the hook reports (the built-in one: first_loss, last_loss, samples,
        best_epoch), and with `tiles` what session.py measures of them. Raises ModelError for a model that
        PyTorch cannot run, PassError if training fails, DataError for unusable data.
        """
        require_torch()
        from onnx_lathe.runtime.torch_bridge import kept

        if self.setup.launch is None:
            from onnx_lathe.runtime.training.session import train

            values, metrics = train(self.setup, model, settings, shaping, tiles=tiles)
            warnings: list[str] = []
        else:
            values, metrics, warnings = train_launched(
                self.setup, self.setup.launch, model, settings, shaping, tiles
            )
        return TrainResult(values, metrics, kept(model), warnings)
