"""Dimensions of tensors at both sizes that the model is looked at with (facts.py): a Dim has a size for each, and is open
where they differ.
"""

import math
from collections.abc import Sequence

from onnx_lathe.runtime.targets.litert.known import Known

Dim = tuple[int, int]
ONE: Dim = (1, 1)


def spacing(before: Sequence[Dim], after: Sequence[Dim]) -> tuple[list[int], list[int]] | None:
    """(axes of 1 to take out, then axes to put in) that make one of the other; None if that is not all that differs."""
    gone: list[int] = []
    put: list[int] = []
    first = second = 0
    while first < len(before) or second < len(after):
        if first < len(before) and second < len(after) and before[first] == after[second]:
            first, second = first + 1, second + 1
        elif first < len(before) and before[first] == ONE:
            gone.append(first)
            first += 1
        elif second < len(after) and after[second] == ONE:
            put.append(second)
            second += 1
        else:
            return None
    return gone, put


def is_open(dim: Dim) -> bool:
    """Whether it depends on the size of an input."""
    return dim[0] != dim[1]


def known(dim: Dim) -> int | None:
    return None if is_open(dim) else dim[0]


def fixed(*sizes: int) -> list[Dim]:
    return [(size, size) for size in sizes]


def pairs(net: Known, tensor: str) -> tuple[Dim, ...]:
    """The dimensions of a tensor of the graph."""
    net.sizes(tensor)  # refuses a rank that is open
    return tuple(zip(net.shape(tensor), net.facts.shapes[1].get(tensor, ()), strict=True))


def product(dims: Sequence[Dim]) -> Dim:
    return math.prod(size for size, _ in dims), math.prod(size for _, size in dims)


def total(dims: Sequence[Dim]) -> Dim:
    return sum(size for size, _ in dims), sum(size for _, size in dims)


def broadcast(first: Sequence[Dim], second: Sequence[Dim]) -> tuple[Dim, ...]:
    """The dimensions of a result of two operands."""
    rank = max(len(first), len(second))
    padded = [(ONE,) * (rank - len(one)) + tuple(one) for one in (first, second)]
    return tuple(b if a == ONE else a for a, b in zip(*padded, strict=True))
