"""What a training needs to know besides the model and the options of its pass."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import onnx

from onnx_lathe.runtime.data import DataSource
from onnx_lathe.runtime.training.hooks import hook_place
from onnx_lathe.runtime.training.parallel.grid import Parallel
from onnx_lathe.runtime.training.parallel.request import Launch


@dataclass(frozen=True)
class TrainingSetup:
    """One setup serves all trainings of a run but for `step` and `state`: `dataclasses.replace` makes each
    step's.

    Raises UsageError at once if `hook` names no file.
    """

    data: DataSource
    teacher: onnx.ModelProto | None = None
    """The original model, for distillation."""
    hook: str | None = None
    """A user's `file.py:function` instead of the built-in hook."""
    validation: DataSource | None = None
    """Chooses the best epoch; without it the last one is kept. Never the data that judges the result."""
    log: Path | None = None
    """Gets the traceback if a hook or a worker fails."""
    progress: Callable[[str], None] = lambda message: None
    device: str = "auto"
    """As PyTorch names it; "auto" is the GPU if there is one."""
    memory: int | None = None
    """Bytes that activations may take; None is any number."""
    launch: Launch | None = None
    """Trains in processes of their own, under torchrun."""
    parallel: Parallel | None = None
    """How those processes share the training out; None is by samples alone."""
    step: str = "retrain"
    """What the job is told of its place in the recipe, such as "3/6 retrain(epochs=4)"."""
    state: Path | None = None
    """File from which an interrupted training goes on after its last whole epoch."""

    def __post_init__(self) -> None:
        if self.hook is not None:
            hook_place(self.hook)
