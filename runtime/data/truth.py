"""Labels of any form, one per sample, for metrics that know what to make of them: boxes, masks, texts."""

import zlib
from collections.abc import Mapping, Sequence
from enum import IntEnum
from typing import Any

import numpy as np

from onnx_lathe.errors import DataError
from onnx_lathe.runtime.data.source import check_labels


class Truth(IntEnum):
    """What labels may be."""

    CLASSES = 0
    """Numbers of classes alone."""
    ANY = 1
    """Of any form that a metric of Lathe reads: numbers are those of classes."""
    OWN = 2
    """Whatever a metric of the user's makes of them."""


def read_truth(
    labels: Any, count: int, classes: int | None, where: str, form: Truth = Truth.ANY
) -> tuple[list[Any], np.ndarray | None]:
    """(one label per sample, class numbers int64 [count] if that is what they all may be).

    Raises DataError for another number of labels, and for numbers that are no classes of the model, unless they may be
    the user's own.
    """
    alone = isinstance(labels, np.ndarray) and labels.ndim == 0
    if alone or isinstance(labels, str | bytes | dict) or not hasattr(labels, "__len__"):
        raise DataError(f"{where} are {_a(labels)}, wanted is a list with one per sample")
    if len(labels) != count:
        raise DataError(f"{where} are {len(labels)}, but there are {count} samples; give one per sample")
    found = list(labels)
    numbers = _numbers(found)
    if numbers is None:
        return found, None
    try:
        return found, check_labels(numbers, count, classes, where)
    except DataError:
        if form is Truth.OWN:
            return found, None
        raise


def content(labels: Sequence[Any]) -> int:
    """A number, the same for labels of the same content; of what cannot be looked into, its type counts alone."""
    found = 0
    for piece in _pieces(labels):
        found = zlib.crc32(piece, found)
    return found


def _pieces(value: Any) -> list[bytes]:
    if isinstance(value, Mapping):
        value = [part for pair in value.items() for part in pair]
    if isinstance(value, list | tuple):
        return [f"{len(value)}:".encode(), *(piece for part in value for piece in _pieces(part))]
    if value is None or isinstance(value, str | bytes | int | float | complex):
        return [repr(value).encode()]
    array = (
        np.asarray(value) if hasattr(value, "__array__") or hasattr(value, "__array_interface__") else None
    )
    if array is None or array.dtype == object:
        return [type(value).__name__.encode()] if array is None else _pieces(array.tolist())
    return [f"{array.dtype}{array.shape}".encode(), np.ascontiguousarray(array).tobytes()]


def _numbers(labels: Sequence[Any]) -> np.ndarray | None:
    """Of labels that are an integer each, [samples]; None for other forms."""
    if not all(
        (isinstance(one, int) and not isinstance(one, bool))
        or (
            isinstance(one, np.ndarray | np.integer)
            and one.size == 1
            and one.ndim < 2
            and one.dtype.kind in "iu"
        )
        for one in labels
    ):
        return None
    try:
        return np.array([int(np.reshape(one, -1)[0]) for one in labels], np.int64)
    except OverflowError:
        return None


def _a(value: Any) -> str:
    return "missing" if value is None else f"one {type(value).__name__}"
