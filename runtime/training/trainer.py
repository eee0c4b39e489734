"""What a pass calls to have a model retrained. PyTorch is needed, and imported, only when training begins."""

from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import onnx

from onnx_lathe.errors import UsageError
from onnx_lathe.protocols import Shaping, TrainResult
from onnx_lathe.runtime.data import DataSource
from onnx_lathe.runtime.training.hooks import hook_place
from onnx_lathe.runtime.training.parallel.launch import Launch, train_launched


def require_torch(needed_by: str = "retrain") -> None:
    """Raises UsageError if PyTorch is not installed."""
    if find_spec("torch") is None:
        raise UsageError(f"{needed_by} needs PyTorch; pip install 'onnx-lathe[train]'")


class TorchTrainer:
    """Trains models on one source of data. Implements Trainer of passes/core/services.py.

    `teacher` is the original model, for distillation. `hook` is a user's `file.py:function` instead of the
    built-in hook; `log` the file for the traceback if it fails. `validation` (never the data that judges
    the result) chooses the best epoch; without it the last one is kept. `device`: "auto" is the GPU if
    there is one. `launch`: train in processes of their own, under torchrun.

    Raises UsageError at once if `hook` names no file.
    """

    def __init__(
        self,
        data: DataSource,
        teacher: onnx.ModelProto | None,
        hook: str | None = None,
        validation: DataSource | None = None,
        log: Path | None = None,
        progress: Callable[[str], None] = lambda message: None,
        device: str = "auto",
        memory: int | None = None,
        launch: Launch | None = None,
    ) -> None:
        if hook is not None:
            hook_place(hook)
        self.data, self.teacher, self.hook, self.validation = data, teacher, hook, validation
        self.log, self.progress, self.device, self.memory, self.launch = log, progress, device, memory, launch
        self.state: Path | None = None
        """File from which an interrupted training goes on after its last whole epoch; the pipeline sets it
        before each step.
        """
        self.step = "retrain"
        """What the job is told of its place in the recipe, such as "3/6 retrain(epochs=4)"; the pipeline
        sets it before each step.
        """

    def train(
        self, model: onnx.ModelProto, settings: Mapping[str, Any], shaping: Shaping | None = None
    ) -> TrainResult:
        """Trains a copy of the model's float weights; `settings` are the options of
        passes/core/training_options.py.

        With `shaping`, what stands in for the weights after the last step is the result: `validation` then
        chooses no epoch, because an earlier one would be of another sparsity.

        metrics: epochs, seconds, and what the hook reports (the built-in one: first_loss, last_loss,
        samples, best_epoch). Raises ModelError for a model that PyTorch cannot run, PassError if training
        fails, DataError for unusable data.
        """
        require_torch()
        if self.launch is None:
            from onnx_lathe.runtime.training.session import train

            values, metrics = train(self, model, settings, shaping)
        else:
            values, metrics = train_launched(self.launch, self, model, settings, shaping)
        return TrainResult(values, metrics)
