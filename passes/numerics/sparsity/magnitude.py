"""Exact selection of the smallest magnitudes among any number of arrays, by counting: no sort, no copy, not
all arrays at a time.

The bits of a float32 without its sign, read as an integer, are ordered as its magnitude is. A first pass
counts their upper 15 bits, a second one the lower 16 of those whose upper bits are the threshold's; with
several arrays, a third one tells them how ties are shared.
"""

import io
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np

_CHUNK = 1 << 17  # values worked on at a time: their temporaries stay in the second-level cache


@dataclass(frozen=True)
class Threshold:
    """Selects every magnitude of one array whose bits are below `bits` and, in order, the first `ties` of
    those whose bits are equal.
    """

    bits: int
    ties: int


def smallest(arrays: Iterable[np.ndarray], count: int) -> list[Threshold]:
    """Thresholds, one per array, that select exactly `count` values of all of them (float32, finite). Ties
    go by position.

    `arrays` is gone through two or three times.
    """
    if count == 0:
        return [Threshold(0, 0) for _ in arrays]
    counts = np.zeros(1 << 15, np.int64)
    number = 0
    for number, array in enumerate(arrays, 1):  # noqa: B007
        for magnitude in magnitudes(array):
            counts += np.bincount(magnitude >> 16, minlength=counts.size)
    upper, rank = _place(counts, count)
    counts = np.zeros(1 << 16, np.int64)
    for array in arrays:
        for magnitude in magnitudes(array):
            counts += np.bincount(magnitude[magnitude >> 16 == upper] & 0xFFFF, minlength=counts.size)
    lower, ties = _place(counts, rank)
    bits = upper << 16 | lower
    return [Threshold(bits, ties)] if number == 1 else _shared(arrays, bits, ties)


def _shared(arrays: Iterable[np.ndarray], bits: int, ties: int) -> list[Threshold]:
    """The first arrays get the ties."""
    thresholds = []
    for array in arrays:
        equal = (
            sum(int(np.count_nonzero(magnitude == bits)) for magnitude in magnitudes(array)) if ties else 0
        )
        thresholds.append(Threshold(bits, min(ties, equal)))
        ties -= thresholds[-1].ties
    return thresholds


def kept(values: np.ndarray, threshold: Threshold) -> np.ndarray:
    """What the threshold does not select: bool, shaped like `values` (float32)."""
    result = np.empty(values.size, bool)
    for number, chosen in enumerate(_selected(values, threshold)):
        np.logical_not(chosen, out=result[number * _CHUNK : (number + 1) * _CHUNK])
    return result.reshape(values.shape)


def with_zeros(values: np.ndarray, threshold: Threshold) -> bytes:
    """`values` (float32) with 0.0 where the threshold selects, as bytes in C order.

    Bytes, because they are what a model stores, and another copy of a big array costs more than the
    selection.
    """
    flat = np.ascontiguousarray(values).reshape(-1)
    buffer = io.BytesIO()
    for number, chosen in enumerate(_selected(flat, threshold)):
        buffer.write(np.where(chosen, np.float32(0), flat[number * _CHUNK : (number + 1) * _CHUNK]).data)
    return buffer.getvalue()


def _selected(values: np.ndarray, threshold: Threshold) -> Iterator[np.ndarray]:
    """Chunk by chunk."""
    ties = threshold.ties
    for magnitude in magnitudes(values):
        chosen = magnitude < threshold.bits
        if ties:
            equal = np.flatnonzero(magnitude == threshold.bits)[:ties]
            chosen[equal] = True
            ties -= equal.size
        yield chosen


def magnitudes(array: np.ndarray) -> Iterator[np.ndarray]:
    """Bits of the magnitudes of a float32 array in C order, int32, in chunks."""
    bits = array.reshape(-1).view(np.int32)
    for start in range(0, bits.size, _CHUNK):
        yield bits[start : start + _CHUNK] & 0x7FFFFFFF


def _place(counts: np.ndarray, rank: int) -> tuple[int, int]:
    """The bin that holds the rank-th value (from 1), and its rank inside that bin."""
    reached = np.cumsum(counts)
    found = int(np.searchsorted(reached, rank))
    return found, rank - int(reached[found] - counts[found])
