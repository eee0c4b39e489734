"""A request, and everything that lives as long as its run."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from onnx_lathe.errors import ModelError
from onnx_lathe.optimizer.checkpoint import Checkpoints
from onnx_lathe.optimizer.gate import Gate
from onnx_lathe.optimizer.judging.evidence import Evidence
from onnx_lathe.optimizer.opening import AS_IT_IS, Opened, open_file
from onnx_lathe.optimizer.recipe import Recipe
from onnx_lathe.optimizer.report.record import RunRecord, StepRecord
from onnx_lathe.optimizer.services import Roles, Services
from onnx_lathe.optimizer.ui import Ui
from onnx_lathe.passes.core.base import Pass
from onnx_lathe.passes.loading.preparing import Wishes
from onnx_lathe.placement import Placement
from onnx_lathe.runtime.files import model_file
from onnx_lathe.runtime.running import ort
from onnx_lathe.runtime.running.evaluate import NO_TASKS, Reference
from onnx_lathe.runtime.running.fed import fed
from onnx_lathe.runtime.running.judged import Tasks
from onnx_lathe.runtime.running.tasks.samples import Measured
from onnx_lathe.runtime.targets.core.base import Target

LARGE_BYTES = 256 << 20
"""Above this size only the final model's latency is measured: every measurement loads two models."""


@dataclass(frozen=True)
class Request:
    """What to do with which model, and where results go."""

    model: Path
    recipe: Recipe
    out: Path
    resume: bool = False
    measure_latency: bool = True
    steps: Sequence[Pass] | None = None
    """Passes that a caller configured itself, in place of the recipe's."""
    wishes: Wishes = AS_IT_IS
    """How the model is read, but for what the recipe says of it."""
    command: Sequence[str] = ()
    """The command line, for the record."""
    name: str = ""
    """What the record calls the model, if not by its path."""
    force: bool = False
    """Whether results of another recipe or model in `out` may be erased."""
    html: bool = True
    """Whether the run ends with report.html, and measures layers for it."""

    @property
    def reading(self) -> Wishes:
        """How the model is read."""
        return replace(self.wishes, fix_inputs=self.recipe.fix_inputs)


@dataclass
class Run:
    """Everything that lives as long as one run."""

    request: Request
    ui: Ui
    record: RunRecord
    passes: Sequence[Pass]
    gates: Sequence[Gate]
    targets: Sequence[tuple[Target, Any]]
    """Each with its options."""
    placement: Placement
    """What the targets run in INT8."""
    roles: Roles
    services: Services
    checkpoints: Checkpoints
    done: Sequence[StepRecord]
    """Steps of an earlier run that need not run again."""
    held: onnx.ModelProto | None
    """`model`, if it is in memory."""
    opened: Opened | None = None
    """The model as it was opened, until it has been compared with the one given."""
    rewritten: bool = False
    """Whether the model's nodes are others than in the file given, before any pass."""
    kept: bool = False
    """Whether something else holds the model given for as long as the run, so that letting go of it gives nothing back."""
    as_given: bool = False
    """Whether the model as it was opened is the one in the file given, bit for bit."""
    helped: bool = False
    """Whether the file given loads only as ort.HELPED says."""
    in_file: Path = Path()
    """Where the model is that was let go of."""
    written: Path | None = None
    """Where the rewritten model is, if it is too large to be given as bytes."""
    fixed: Mapping[str, np.ndarray] = field(default_factory=dict)
    """Inputs of the file given that the model has as constants: `original_session` feeds them."""
    feeds: Mapping[str, np.ndarray] = field(default_factory=dict)
    original: Reference | None = None
    tasks: Tasks = NO_TASKS
    """What is measured against labels."""
    sampled: Mapping[str, Measured] | None = None
    """Metrics of the model sample by sample; None if it was not measured in this run."""
    rounds: np.ndarray | None = None
    """Milliseconds [rounds, 2] of the original and the last step's model, in turn; None if they were not timed."""

    @property
    def model(self) -> onnx.ModelProto:
        """The model after the last step done. Held here alone: a large one must not be kept alive by a
        caller's variable. Raises ModelError where it was let go of, and its file is another now.
        """
        if self.held is None:
            self.held = self._read_again()
        return self.held

    @model.setter
    def model(self, model: onnx.ModelProto) -> None:
        self.held = model

    def let_go(self, path: Path) -> None:
        """Makes room for sessions: a large model that is in the file `path` too is read again when it is asked for."""
        if self.large and path.stat().st_size > LARGE_BYTES:
            self.held, self.in_file = None, path

    def _read_again(self) -> onnx.ModelProto:
        path, given = self.in_file, self.request.model
        if path != given:
            return model_file.load(path)
        model = open_file(given, self.request.reading).model
        if model_file.facts(given).sha256 != self.record.model["sha256"]:
            raise ModelError(f"{given}: was changed while the command ran; run it again")
        return model

    @property
    def large(self) -> bool:
        return bool(self.record.model["size_bytes"] > LARGE_BYTES)

    @property
    def source(self) -> Path | onnx.ModelProto:
        """What a session of `model` is opened from: the model itself while it is another than the file given."""
        return self.written or self.model if self.rewritten and not self.record.steps else self.file

    @property
    def file(self) -> Path:
        """Where `model` is on disk."""
        steps = self.record.steps
        return self.request.out / steps[-1].file if steps else self.request.model

    def original_session(self, threads: int = 0) -> Any:
        """The file given in the session that a user opens on it, which takes what the model takes."""
        return fed(ort.as_opened(self.request.model, threads), self.fixed)

    def evidence(self, sampled: Mapping[str, Measured] | None, rounds: np.ndarray | None = None) -> Evidence:
        """What a gate on a candidate rests on, whose metrics are known so, and that took so many milliseconds in each of
        the rounds [rounds, 2], the original before it.
        """
        asked = self.request.recipe
        base = {} if self.original is None else self.original.sampled
        return Evidence(base, sampled or {}, asked.confidence, asked.tolerances).timed(rounds)

    def title(self, index: int) -> str:
        """What a step is called on the terminal and by a training: "3/6 retrain(epochs=4)"."""
        steps = self.request.recipe.steps
        name = steps[index] if self.request.steps is None else self.passes[index].name
        return f"{index + 1}/{len(self.passes)} {name}"
