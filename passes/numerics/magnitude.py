"""Exact selection of the smallest magnitudes among any number of arrays, by counting: no sort, no copy, not all arrays at a time.

The bits of a float32 without its sign, read as an integer, are ordered as its magnitude is. A first pass counts their upper 15 bits, a
second one the lower 16 of those whose upper bits are the threshold's.
"""

import io
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

_CHUNK = 1 << 17  # values worked on at a time: their temporaries stay in the second-level cache


@dataclass(frozen=True)
class Threshold:
    """Selects every magnitude whose bits are below `bits` and, in order, the first `ties` of those whose bits are equal."""

    bits: int
    ties: int


def smallest(arrays: Iterable[np.ndarray], count: int) -> Threshold:
    """The threshold that selects exactly `count` values of the arrays (float32, finite). `arrays` is gone through twice."""
    if count == 0:
        return Threshold(0, 0)
    counts = np.zeros(1 << 15, np.int64)
    for magnitude in _magnitudes(arrays):
        counts += np.bincount(magnitude >> 16, minlength=counts.size)
    upper, rank = _place(counts, count)
    counts = np.zeros(1 << 16, np.int64)
    for magnitude in _magnitudes(arrays):
        counts += np.bincount(magnitude[magnitude >> 16 == upper] & 0xFFFF, minlength=counts.size)
    lower, ties = _place(counts, rank)
    return Threshold(upper << 16 | lower, ties)


def with_zeros(values: np.ndarray, threshold: Threshold) -> tuple[bytes, Threshold]:
    """`values` (float32) with 0.0 where the threshold selects, as bytes in C order, and the threshold for the array that comes next.

    Bytes, because they are what a model stores, and another copy of a big array costs more than the selection.
    """
    flat, ties = np.ascontiguousarray(values).reshape(-1), threshold.ties
    buffer = io.BytesIO()
    for number, magnitude in enumerate(_magnitudes([flat])):
        selected = magnitude < threshold.bits
        if ties:
            equal = np.flatnonzero(magnitude == threshold.bits)[:ties]
            selected[equal] = True
            ties -= equal.size
        buffer.write(np.where(selected, np.float32(0), flat[number * _CHUNK : (number + 1) * _CHUNK]).data)
    return buffer.getvalue(), Threshold(threshold.bits, ties)


def _magnitudes(arrays: Iterable[np.ndarray]) -> Iterator[np.ndarray]:
    """Bits of the magnitudes, int32, in chunks."""
    for array in arrays:
        bits = array.reshape(-1).view(np.int32)
        for start in range(0, bits.size, _CHUNK):
            yield bits[start : start + _CHUNK] & 0x7FFFFFFF


def _place(counts: np.ndarray, rank: int) -> tuple[int, int]:
    """The bin that holds the rank-th value (from 1), and its rank inside that bin."""
    reached = np.cumsum(counts)
    found = int(np.searchsorted(reached, rank))
    return found, rank - int(reached[found] - counts[found])
