"""Labels of any form, one per sample, for metrics that know what to make of them: boxes, masks, texts."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from onnx_lathe.errors import DataError
from onnx_lathe.runtime.data.source import check_labels


def read_truth(
    labels: Any, count: int, classes: int | None, where: str
) -> tuple[list[Any], np.ndarray | None]:
    """(one label per sample, class numbers int64 [count] if that is what they all may be).

    Raises DataError for another number of labels.
    """
    if isinstance(labels, str | bytes | dict) or not hasattr(labels, "__len__"):
        raise DataError(f"{where} are {_a(labels)}, wanted is a list with one per sample")
    if len(labels) != count:
        raise DataError(f"{where} are {len(labels)}, but there are {count} samples; give one per sample")
    return list(labels), _classes(labels, count, classes, where)


def _classes(labels: Sequence[Any], count: int, classes: int | None, where: str) -> np.ndarray | None:
    """Labels that are numbers of classes; None for other forms."""
    if not all(
        isinstance(one, int | np.integer) or (isinstance(one, np.ndarray) and one.size == 1) for one in labels
    ):
        return None
    found = np.asarray(labels)
    if not np.issubdtype(found.dtype, np.integer) or found.shape not in ((count,), (count, 1)):
        return None
    if found.size and (found.min() < 0 or (classes is not None and found.max() >= classes)):
        return None
    return check_labels(found, count, classes, where)


def _a(value: Any) -> str:
    return "missing" if value is None else f"one {type(value).__name__}"
