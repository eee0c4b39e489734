"""Mean intersection over union of a segmentation, over the pixels of all samples.

IoU of a class = TP / (TP + FP + FN), the mean over classes that occur among labels or answers: Everingham et al., "The
PASCAL Visual Object Classes Challenge: A Retrospective", IJCV 2015, section 4.1.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from onnx_lathe.errors import DataError
from onnx_lathe.runtime.running.tasks.base import (
    POSTPROCESS,
    Answer,
    Collector,
    Task,
    as_array,
    fitting,
    labelled,
    largest,
)
from onnx_lathe.runtime.running.tasks.samples import Measured, Sums

IGNORED = 255
"""A label of pixels that do not count, as any below 0; PASCAL VOC and Cityscapes mark them so."""
FORM = f"the class of each pixel, integers [height, width], {IGNORED} for those that do not count"


class MeanIoU(Task):
    name = "miou"

    def start(self) -> Collector:
        return _Intersections()


class _Intersections(Collector):
    def __init__(self) -> None:
        self.counts: list[dict[int, tuple[int, int]]] = []
        """Of each sample: class -> pixels of (intersection, union)."""

    def add(self, answer: Answer, labels: Sequence[Any] | None) -> None:
        wanted = [_mask(label, "the label of a sample") for label in labelled(labels, "miou", FORM)]
        given = answer.processed if answer.processed is not None else _answers(answer, wanted[0].shape)
        for mask, found in zip(wanted, given, strict=True):
            found = _mask(found, "the answer for a sample")
            if found.shape != mask.shape:
                raise DataError(
                    f"metric 'miou': the model gives {list(found.shape)} pixels where the label has {list(mask.shape)}; "
                    f"scale the labels to it, or the answers by {POSTPROCESS}"
                )
            self.counts.append(_overlaps(mask, found))

    def measured(self) -> dict[str, Measured]:
        classes = sorted({name for sample in self.counts for name in sample})
        place = {name: index for index, name in enumerate(classes)}
        rows = np.zeros((len(self.counts), 2, len(classes)))
        for row, sample in zip(rows, self.counts, strict=True):
            for name, both in sample.items():
                row[:, place[name]] = both
        return {"miou": Sums(rows.reshape(len(rows), -1), _mean, reach=1)} if classes else {}


def _mean(totals: np.ndarray) -> np.ndarray:
    intersection, union = np.split(totals, 2, axis=-1)
    known = union > 0
    each = np.where(known, intersection / np.where(known, union, 1), 0)
    return each.sum(-1) / np.maximum(known.sum(-1), 1)


def _overlaps(mask: np.ndarray, found: np.ndarray) -> dict[int, tuple[int, int]]:
    counted = (mask >= 0) & (mask != IGNORED)
    mask, found = mask[counted], found[counted]
    return {
        int(name): (
            int(((mask == name) & (found == name)).sum()),
            int(((mask == name) | (found == name)).sum()),
        )
        for name in np.union1d(mask, found)
        if name >= 0  # no answer is no class
    }


def _answers(answer: Answer, shape: tuple[int, ...]) -> Sequence[np.ndarray]:
    """Classes [height, width] of each sample, by the one output that gives some."""
    found: dict[str, np.ndarray] = {}
    for name, output in answer.outputs.items():
        rows = answer.each(output, rank=4)
        if rows is None:
            continue
        if np.issubdtype(rows.dtype, np.integer) and rows.ndim in (3, 4):
            alone = [axis for axis in (1, -1) if rows.ndim == 4 and rows.shape[axis] == 1]
            if rows.ndim == 3 or alone:
                found[name] = rows.squeeze(alone[0]) if alone else rows
        elif np.issubdtype(rows.dtype, np.floating) and rows.ndim == 4:
            last = rows.shape[1:3] == shape and rows.shape[2:4] != shape
            axis = 3 if last else 1
            if rows.shape[axis] > 1:
                found[name] = largest(rows, axis)
    name = fitting(found, answer, "miou", "[samples, classes, height, width] or classes of pixels")
    return list(found[name])


def _mask(value: Any, what: str) -> np.ndarray:
    mask = as_array(value)
    if mask is None:
        raise DataError(f"metric 'miou': {what} has rows of several lengths; wanted is {FORM}")
    if mask.ndim == 3 and 1 in (mask.shape[0], mask.shape[-1]):
        mask = mask.squeeze(0 if mask.shape[0] == 1 else -1)
    if mask.ndim != 2 or not (np.issubdtype(mask.dtype, np.integer) or mask.dtype == np.bool_):
        raise DataError(f"metric 'miou': {what} is {mask.dtype} {list(mask.shape)}; wanted is {FORM}")
    return mask.astype(np.int64)
