"""What every metric against labels is to `evaluate`: asked for by name, fed piece by piece, read at the end."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from onnx_lathe.errors import DataError
from onnx_lathe.runtime.running.tasks.samples import Measured

POSTPROCESS = "--postprocess FILE.py:FUNCTION"


@dataclass(frozen=True)
class Answer:
    """What a model gave for `count` samples: its outputs, and of each sample what a user's postprocess made of them.

    `alone`: the outputs are of one sample, without an axis of samples.
    """

    outputs: Mapping[str, np.ndarray]
    count: int
    alone: bool = False
    processed: Sequence[Any] | None = None

    def each(self, output: np.ndarray, rank: int | None = None) -> np.ndarray | None:
        """The output with an axis of samples in front; None if it has none. `rank`: of one that has it, where that is known:
        a single sample may come with it, as [1, classes].
        """
        if self.alone:
            return output if output.ndim == rank and len(output) == 1 else output[None]
        return output if output.ndim and len(output) == self.count else None


class Collector(ABC):
    """Gathers one metric of one model."""

    @abstractmethod
    def add(self, answer: Answer, labels: Sequence[Any] | None) -> None:
        """`labels`: one per sample. Raises DataError where they, or the outputs, are none for this metric."""

    @abstractmethod
    def measured(self) -> dict[str, Measured]:
        """The metric by name, once everything has been added."""


class Task(ABC):
    """A metric that a gate asks for."""

    name: str

    @abstractmethod
    def start(self) -> Collector:
        """For one model."""


def as_array(value: Any) -> np.ndarray | None:
    """What a user gave; None where it is none, as rows of several lengths."""
    try:
        return np.asarray(value)
    except (ValueError, TypeError):
        return None


def largest(scores: np.ndarray, axis: int = 1) -> np.ndarray:
    """Which score along the axis is the largest; -1, which no label is, where one is NaN, that `argmax` would choose."""
    return np.where(np.isnan(scores.max(axis)), -1, scores.argmax(axis))


def labelled(labels: Sequence[Any] | None, metric: str, form: str) -> Sequence[Any]:
    """Raises DataError if there are no labels; `form`: what one is."""
    if labels is None:
        raise DataError(f"metric '{metric}' needs labels, and the data has none; one per sample: {form}")
    return labels


def fitting(found: Mapping[str, Any], answer: Answer, metric: str, wanted: str) -> str:
    """The one output among those that fit. Raises DataError if none does, or several do."""
    if len(found) == 1:
        return next(iter(found))
    shapes = ", ".join(
        f"'{name}' {list(output.shape)} {output.dtype}" for name, output in answer.outputs.items()
    )
    what = "several outputs may be" if found else "no output is"
    raise DataError(
        f"metric '{metric}': {what} {wanted}: {shapes}; give {POSTPROCESS}, which makes one of each sample"
    )
