"""F1 of a model that classifies.

F1 = 2 TP / (2 TP + FP + FN) of one class; van Rijsbergen, "Information Retrieval", 1979, chapter 7.
`f1`: the mean over classes that occur among labels or answers ("macro"). `f1_binary`: of class 1 of two.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from onnx_lathe.errors import DataError
from onnx_lathe.runtime.running.tasks.base import Answer, Collector, Task, fitting, labelled
from onnx_lathe.runtime.running.tasks.samples import Measured, Redrawn

FORM = "its class number"


class F1(Task):
    """Labels are class numbers; the answer is the largest of [samples, classes], or a class number of its own."""

    def __init__(self, name: str) -> None:
        self.name = name

    def start(self) -> Collector:
        return _Counting(self.name)


class _Counting(Collector):
    def __init__(self, name: str) -> None:
        self.name = name
        self.pairs: list[np.ndarray] = []

    def add(self, answer: Answer, labels: Sequence[Any] | None) -> None:
        wanted = _numbers(labelled(labels, self.name, FORM), f"metric '{self.name}': a label")
        self.pairs.append(np.stack([wanted, self._answers(answer)]))

    def _answers(self, answer: Answer) -> np.ndarray:
        if answer.processed is not None:
            return _numbers(answer.processed, f"metric '{self.name}': what postprocess gives for a sample")
        found: dict[str, np.ndarray] = {}
        for name, output in answer.outputs.items():
            rows = answer.each(output)
            if rows is None:
                continue
            if rows.ndim == 2 and rows.shape[1] > 1 and np.issubdtype(rows.dtype, np.floating):
                found[name] = rows.argmax(1)
            elif np.issubdtype(rows.dtype, np.integer) and rows.size == answer.count:
                found[name] = rows.reshape(-1)
        if (
            len(found) > 1
        ):  # scores beside the class that is their largest, as classifiers of scikit-learn give
            first = next(iter(found.values()))
            if all(np.array_equal(first, other) for other in found.values()):
                return first
        return found[fitting(found, answer, self.name, "[samples, classes] or a class per sample")]

    def measured(self) -> dict[str, Measured]:
        if not self.pairs:
            return {}
        labels, answers = np.concatenate(self.pairs, axis=1)
        classes = int(max(labels.max(), answers.max())) + 1
        binary = self.name == "f1_binary"
        if binary and classes > 2:
            raise DataError(
                f"metric 'f1_binary' is of two classes, and class {classes - 1} occurs; gate 'f1', the mean over classes"
            )

        def of(counts: np.ndarray) -> float:
            return _f1(labels, answers, counts, max(classes, 2), binary)

        once = np.ones(len(labels), np.int64)
        return {self.name: Redrawn(len(labels), of, of(once), resamples=1000)}


def _f1(labels: np.ndarray, answers: np.ndarray, counts: np.ndarray, classes: int, binary: bool) -> float:
    """Of class 1, or the mean over the classes that occur, with each sample counted so often; NaN if none does."""
    same = labels == answers
    right = np.bincount(labels[same], counts[same], classes)
    every = np.bincount(labels, counts, classes) + np.bincount(answers, counts, classes)
    if binary:
        right, every = right[1:], every[1:]
    known = every > 0
    return float(np.mean(2 * right[known] / every[known])) if known.any() else float("nan")


def _numbers(values: Sequence[Any], what: str) -> np.ndarray:
    """Class numbers int64 [samples]."""
    found = np.array(
        [np.asarray(value).reshape(-1) for value in values], dtype=object if not values else None
    )
    if (
        found.ndim != 2
        or found.shape[1] != 1
        or not np.issubdtype(found.dtype, np.integer)
        or found.min() < 0
    ):
        raise DataError(f"{what} is {_shown(values)}, wanted is a class number, 0 or more")
    return found[:, 0].astype(np.int64)


def _shown(values: Sequence[Any]) -> str:
    return f"{type(values[0]).__name__} {str(values[0])[:40]}" if len(values) else "missing"
