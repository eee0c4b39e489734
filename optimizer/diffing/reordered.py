"""Weights whose channels are those of another weight in another order, as of a network whose hidden channels were
renumbered: it computes the same, and every value of it differs.

    other[i, j] = one[p(i), q(j)]     p: order of the first axis, q: of the second

What a row holds does not depend on the order inside of it: rows are matched by quantiles of their values, then columns
as they are. Equal contents are aligned by sorting both, near ones each to the nearest, which must match all of them one
to one. Nothing is taken for found that does not show in the values themselves.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from onnx_lathe.runtime.running.differences import Difference

QUANTILES = 33
"""Of a row's values, by which it is known again."""
MOST_KEYS = 64
"""Values of a column that sort it."""
LEAST = 8
"""Values that are taken for others in another order: of fewer, chance makes them so."""
LARGEST = 1 << 13
"""Channels of an axis: the distances of more take hundreds of megabytes."""
FAR_DB, NEAR_DB, GAINED_DB = 15.0, 20.0, 10.0
"""A weight nearer than FAR_DB as it stands is not looked at; in another order it must be NEAR_DB near, and that much
nearer than as it stands.
"""


@dataclass(frozen=True)
class Reordered:
    """`axes` whose order is another one; `sqnr` in dB of the weight in that order, infinite if it is equal then."""

    axes: tuple[int, ...]
    sqnr: float

    def __str__(self) -> str:
        near = "equal" if math.isinf(self.sqnr) else f"{self.sqnr:.1f} dB"
        return f"{near} (ax{'is' if len(self.axes) == 1 else 'es'} {' and '.join(map(str, self.axes))})"


def reordered(one: np.ndarray, other: np.ndarray) -> Reordered | None:
    """How `one` is to be ordered along its first two axes to be, nearly, `other`; None if no order is found that makes it
    so. Both are float arrays of one shape.
    """
    if one.size < LEAST or one.shape != other.shape or max(one.shape[:2]) > LARGEST:
        return None
    if not (np.isfinite(one).all() and np.isfinite(other).all()):
        return None
    before = _sqnr(one, other)
    if before >= FAR_DB:
        return None
    columns = one.shape[1] if one.ndim > 1 else 1
    ours, theirs = (array.reshape(len(one), columns, -1).astype(np.float32) for array in (one, other))
    best: Reordered | None = None
    for rows in _orders(_signature(ours), _signature(theirs)):
        sorted_rows = ours[rows]
        for order in _orders(_by_column(sorted_rows), _by_column(theirs)):
            sqnr = _sqnr(sorted_rows[:, order], theirs)
            if best is None or sqnr > best.sqnr:
                moved = (rows, order)
                axes = tuple(axis for axis, at in enumerate(moved) if (at != np.arange(len(at))).any())
                best = Reordered(axes, sqnr)
            if math.isinf(sqnr):
                return best
    return best if best is not None and best.sqnr >= max(NEAR_DB, before + GAINED_DB) else None


def _orders(ours: np.ndarray, theirs: np.ndarray) -> Iterator[np.ndarray]:
    """Orders int [n] that may make `ours` [n, keys] what `theirs` is: by sorting, by the nearest, and as they stand."""
    by_content = [np.lexsort(keys[:, :MOST_KEYS].T[::-1]) for keys in (ours, theirs)]
    found = np.empty(len(ours), np.int64)
    found[by_content[1]] = by_content[0]
    yield found
    squares = [np.square(keys).sum(1) for keys in (ours, theirs)]
    nearest = (squares[0][None] - 2 * theirs @ ours.T + squares[1][:, None]).argmin(1)
    if len(np.unique(nearest)) == len(nearest):
        yield nearest
    yield np.arange(len(ours))


def _signature(values: np.ndarray) -> np.ndarray:
    """Of rows [n, columns, rest], whatever the order of their columns: [n, keys]."""
    inside = np.sort(values.reshape(len(values), -1), axis=1)
    places = np.linspace(0, inside.shape[1] - 1, min(QUANTILES, inside.shape[1])).round().astype(int)
    return inside[:, places]


def _by_column(values: np.ndarray) -> np.ndarray:
    """[rows, n, rest] -> [n, rows * rest]."""
    return values.transpose(1, 0, 2).reshape(values.shape[1], -1)


def _sqnr(one: np.ndarray, other: np.ndarray) -> float:
    found = Difference()
    found.add(one, other)
    return -math.inf if found.sqnr is None else found.sqnr
