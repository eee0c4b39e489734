"""A user's own functions: one that makes answers of outputs, and metrics.

    postprocess(outputs) -> a list of one answer per sample       outputs: {name: array [samples, ...]}
    metric(answers, labels) -> a number, or one per sample, whose mean is the metric

`answers` are what postprocess made, a list, or without it the outputs with an axis of samples; `labels` a list, or None. A
postprocess with a second parameter gets the inputs too.
"""

import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from onnx_lathe.errors import DataError, UsageError
from onnx_lathe.runtime.data.functions import UserCode, load_named
from onnx_lathe.runtime.running.tasks.base import POSTPROCESS, Answer, Collector, Task
from onnx_lathe.runtime.running.tasks.samples import Measured, Redrawn, mean, right


def load(spec: str | Callable[..., Any], what: str) -> tuple[Callable[..., Any], UserCode]:
    """The function that FILE.py:FUNCTION names, or that a caller of this process gives. Raises UsageError for another form, DataError as importing does."""
    if callable(spec):
        file = inspect.getsourcefile(spec) if inspect.isfunction(spec) else None
        return spec, UserCode(Path(file or "memory"), getattr(spec, "__name__", type(spec).__name__))
    if not isinstance(spec, str):
        raise UsageError(f"{what}: takes FILE.py:FUNCTION or a function, not {type(spec).__name__}")
    file, colon, name = spec.rpartition(":")
    if not colon or not file.endswith(".py") or not name:
        raise UsageError(f"{what} {spec}: name a function, such as {Path(file or spec).stem}.py:function")
    return load_named(Path(file).expanduser(), name)


class Postprocess:
    """A user's function that makes one answer per sample of a model's outputs."""

    def __init__(self, spec: str | Callable[..., Any]) -> None:
        self.function, self.guard = load(spec, "--postprocess")
        with self.guard:
            parameters = inspect.signature(self.function).parameters.values()
        plain = [one for one in parameters if one.kind in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD)]
        self.takes_inputs = len(plain) > 1 and plain[1].default is inspect.Parameter.empty

    def __call__(
        self, outputs: Mapping[str, np.ndarray], inputs: Mapping[str, np.ndarray], count: int
    ) -> Sequence[Any]:
        with self.guard:
            made = (
                self.function(dict(outputs), dict(inputs))
                if self.takes_inputs
                else self.function(dict(outputs))
            )
        if isinstance(made, Mapping | str) or not hasattr(made, "__len__") or len(made) != count:
            has = (
                f"{len(made)} answers" if isinstance(made, list | tuple | np.ndarray) else type(made).__name__
            )
            raise DataError(
                f"{self.guard.where} gives {has} for {count} samples; return a list of one per sample"
            )
        return list(made)


class Custom(Task):
    """A metric of the user's, by the name that gates call it."""

    def __init__(self, name: str, spec: str | Callable[..., Any]) -> None:
        self.name = name
        self.function, self.guard = load(spec, f"--metric {name}")

    def start(self) -> Collector:
        return _Kept(self)


class _Kept(Collector):
    """All outputs and labels."""

    def __init__(self, task: Custom) -> None:
        self.task = task
        self.processed: list[Any] = []
        self.outputs: dict[str, list[np.ndarray]] = {}
        self.labels: list[Any] = []
        self.count = 0

    def add(self, answer: Answer, labels: Sequence[Any] | None) -> None:
        self.count += answer.count
        self.labels += [] if labels is None else labels
        if answer.processed is not None:
            self.processed += answer.processed
            return
        for name, output in answer.outputs.items():
            if (rows := answer.each(output)) is not None:
                self.outputs.setdefault(name, []).append(rows)

    def measured(self) -> dict[str, Measured]:
        kept = {name: _joined(pieces) for name, pieces in self.outputs.items()}
        kept = {name: value for name, value in kept.items() if len(value) == self.count}
        if not kept and not self.processed:
            raise DataError(
                f"metric '{self.task.name}': no output has an axis of samples; give {POSTPROCESS}"
            )
        once = np.arange(self.count)
        found = self._called(kept, once)
        if not np.isfinite(found).all():
            raise DataError(
                f"{self.task.guard.where} gives a number that is not finite; say what such samples count"
            )
        if found.ndim == 1 and len(found) == self.count:
            share = bool(np.isin(found, (0, 1)).all())
            return {self.task.name: right(found > 0) if share else mean(found)}
        if found.size != 1:
            raise DataError(
                f"{self.task.guard.where} gives {list(found.shape)} for {self.count} samples; "
                "return a number, or one per sample"
            )

        def of(counts: np.ndarray) -> float:
            again = self._called(kept, np.repeat(once, counts))
            if again.size != 1:
                raise DataError(
                    f"{self.task.guard.where} gives {list(again.shape)} for a resample, not a number"
                )
            return float(again.reshape(()))

        return {self.task.name: Redrawn(self.count, of, float(found.reshape(())), costly=True)}

    def _called(self, kept: Mapping[str, Any], rows: np.ndarray) -> np.ndarray:
        answers: Any = {name: _taken(value, rows) for name, value in kept.items()}
        if self.processed:
            answers = [self.processed[row] for row in rows]
        labels = [self.labels[row] for row in rows] if self.labels else None
        with self.task.guard:
            return np.asarray(self.task.function(answers, labels), dtype=np.float64)


def _joined(pieces: Sequence[np.ndarray]) -> Any:
    """[samples, ...], or a list of one array per sample where their shapes differ."""
    if len({piece.shape[1:] for piece in pieces}) == 1:
        return np.concatenate(pieces)
    return [row for piece in pieces for row in piece]


def _taken(value: Any, rows: np.ndarray) -> Any:
    return value[rows] if isinstance(value, np.ndarray) else [value[row] for row in rows]
