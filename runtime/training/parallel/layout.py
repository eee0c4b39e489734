"""Which part of a tensor each worker has: all of it (None), or a range of one axis."""

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

Range = tuple[int, int]
"""Elements from the first number up to but without the second."""


class Split(NamedTuple):
    """Worker i has [bounds[i], bounds[i + 1]) of `axis`: together they have everything once."""

    axis: int
    bounds: tuple[int, ...]

    @property
    def ranges(self) -> tuple[Range, ...]:
        return tuple(pairwise(self.bounds))


class Ranges(NamedTuple):
    """Worker i has [ranges[i]) of `axis`. They may overlap, and go beyond the tensor, where there are zeros."""

    axis: int
    ranges: tuple[Range, ...]


Layout = Split | None
"""None: every worker has the whole."""


def even(size: int, parts: int) -> tuple[int, ...]:
    """Bounds of `parts` ranges of `size` elements whose lengths differ by at most one."""
    return tuple(index * size // parts for index in range(parts + 1))


def needed(bounds: Sequence[int], stride: int, before: int, extent: int) -> tuple[Range, ...]:
    """The input elements that windows read, for each range of windows; `before`: padding before the input, `extent`:
    elements from a window's first to its last tap. What lies outside the input is padding.

    Window o reads from o * stride - before on, so a halo is what these ranges have beyond a worker's own (Hewett and
    Grady, "A Linear Algebraic Approach to Model Parallelism in Deep Learning", arXiv 2006.03108, 2020, section 4).
    """
    return tuple(
        (first * stride - before, (end - 1) * stride - before + extent) for first, end in pairwise(bounds)
    )


def meeting(one: Range, other: Range) -> Range | None:
    """What two ranges have in common; None if that is nothing."""
    first, end = max(one[0], other[0]), min(one[1], other[1])
    return (first, end) if first < end else None


def clipped(ranges: Sequence[Range], size: int) -> tuple[Range, ...]:
    """Without what lies outside `size` elements."""
    return tuple((min(max(first, 0), size), max(min(end, size), 0)) for first, end in ranges)
