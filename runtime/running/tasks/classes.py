"""F1 of a model that classifies.

F1 = 2 TP / (2 TP + FP + FN) of one class; van Rijsbergen, "Information Retrieval", 1979, chapter 7.
`f1`: the mean over classes that occur among labels or answers ("macro"). `f1_binary`: of class 1 of two.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from onnx_lathe.errors import DataError
from onnx_lathe.runtime.running.tasks.base import (
    Answer,
    Collector,
    Task,
    as_array,
    fitting,
    labelled,
    largest,
)
from onnx_lathe.runtime.running.tasks.samples import Measured, Redrawn

FORM = "its class number"
LARGEST = np.iinfo(np.int64).max


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
            rows = answer.each(output, rank=2)
            if rows is None:
                continue
            if rows.ndim == 2 and rows.shape[1] > 1 and np.issubdtype(rows.dtype, np.floating):
                found[name] = largest(rows)
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
        classes, places = np.unique(np.concatenate([[-1, 0, 1], labels, answers]), return_inverse=True)
        binary = self.name == "f1_binary"
        if binary and classes[-1] > 1:
            raise DataError(
                f"metric 'f1_binary' is of two classes, and class {classes[-1]} occurs; gate 'f1', the mean over classes"
            )
        wanted, given = np.split(places[3:], 2)  # the first is -1: no answer

        def of(counts: np.ndarray) -> float:
            return _f1(wanted, given, counts, len(classes), slice(2, None) if binary else slice(1, None))

        once = np.ones(len(labels), np.int64)
        return {self.name: Redrawn(len(labels), of, of(once), resamples=1000, reach=1)}


def _f1(labels: np.ndarray, answers: np.ndarray, counts: np.ndarray, classes: int, judged: slice) -> float:
    """The mean over those of the judged classes that occur, with each sample counted so often; NaN if none does."""
    same = labels == answers
    right = np.bincount(labels[same], counts[same], classes)[judged]
    every = (np.bincount(labels, counts, classes) + np.bincount(answers, counts, classes))[judged]
    known = every > 0
    return float(np.mean(2 * right[known] / every[known])) if known.any() else float("nan")


def _numbers(values: Sequence[Any], what: str) -> np.ndarray:
    """Class numbers int64 [samples]."""
    found = []
    for value in values:
        one = as_array(value)
        if one is None or one.size != 1 or one.dtype.kind not in "iu" or not 0 <= one.min() <= LARGEST:
            shown = f"{type(value).__name__} {' '.join(str(value).split())[:40]}"
            raise DataError(f"{what} is {shown}, wanted is a class number, 0 or more")
        found.append(int(one.reshape(-1)[0]))
    return np.array(found, np.int64)
