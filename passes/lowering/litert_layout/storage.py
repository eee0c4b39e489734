"""How a tensor of the original graph is stored: the order of its axes.

Of every tensor two storages are at choice, its frame: one where the image that it holds has its channels first
(label 0), one where it has them last (label 1).

    x [N,C,H,W] of a Conv                     as it is, or (0,2,3,1)
    y [N,H,W,C], Transpose(0,2,3,1) of x      (0,3,1,2), or as it is
    z [N,C*H*W], Flatten of x                 as it is, or its columns in the order of a flattened [H,W,C]
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

Order = tuple[int, ...]
Size = int | str | None
"""A dimension; of unknown size its name, or None."""

CHANNELS_FIRST, CHANNELS_LAST = 0, 1
"""The labels."""


@dataclass(frozen=True)
class Storage:
    """Axis i of what is stored is axis `order[i]` of the original tensor.

    `flat`: the last axis is a flattened [C, *spatial] of these sizes, and is stored as one of [*spatial, C].
    """

    order: Order
    flat: Order = ()

    @property
    def is_plain(self) -> bool:
        """Whether the tensor is stored as it is in the original graph."""
        return not self.flat and self.order == tuple(range(len(self.order)))

    @property
    def rank(self) -> int:
        return len(self.order)

    def axis(self, original: int) -> int:
        """Where the original axis, which may count from the end, is stored."""
        return self.order.index(original % self.rank)

    def axes(self, originals: Iterable[int]) -> list[int]:
        return [self.axis(int(one)) for one in originals]

    def sizes(self, shape: Sequence[Size]) -> tuple[Size, ...]:
        """The shape of what is stored of an original `shape`."""
        return tuple(shape[axis] for axis in self.order)

    def array(self, values: np.ndarray) -> np.ndarray:
        """What is stored of `values`, of this rank or, as an operand that is broadcast, of a lower one. Leading axes
        of size 1 that only broadcasting needs are left out.
        """
        lacking = self.rank - values.ndim
        full = values.reshape((1,) * lacking + values.shape)
        if self.flat and full.shape[-1] > 1:
            full = self.flattened(full, full.ndim - 1)
        stored = np.ascontiguousarray(full.transpose(self.order))
        spare = 0
        while spare < lacking and stored.shape[spare] == 1:
            spare += 1
        return stored.reshape(stored.shape[spare:])

    def flattened(self, values: np.ndarray, axis: int) -> np.ndarray:
        """`values` with the places along an axis in the order of the stored flattened image."""
        shape = values.shape
        parts = values.reshape(*shape[:axis], *self.flat, *shape[axis + 1 :])
        moved = np.moveaxis(parts, axis, axis + len(self.flat) - 1)
        return np.ascontiguousarray(moved).reshape(shape)

    def without(self, axes: Iterable[int]) -> "Storage":
        """Of the tensor that lacks these original axes, the others stored in the same order."""
        gone = {axis % self.rank for axis in axes}
        kept = [axis for axis in range(self.rank) if axis not in gone]
        return Storage(tuple(kept.index(axis) for axis in self.order if axis not in gone))

    def transposed(self, order: Sequence[int]) -> "Storage":
        """Of Transpose(order) of the tensor, with the very same memory."""
        places = list(order)
        return Storage(tuple(places.index(axis) for axis in self.order))

    def steps_to(self, other: "Storage") -> Order:
        """`perm` of the Transpose that makes the other storage of this one."""
        return tuple(self.order.index(axis) for axis in other.order)


Frame = tuple[Storage, Storage]
"""The storages of a tensor under labels 0 and 1."""


def plain(rank: int) -> Storage:
    return Storage(tuple(range(rank)))


def channels_last(rank: int) -> Storage:
    """Of a tensor [N, C, ...]."""
    return Storage((0, *range(2, rank), 1))


def channels_first(rank: int) -> Storage:
    """Of a tensor [N, ..., C]."""
    return Storage((0, rank - 1, *range(1, rank - 1)))


def image_frame(rank: int) -> Frame:
    """Of a tensor that has its channels on axis 1 in the original graph."""
    return plain(rank), channels_last(rank)


def transposed_frame(rank: int) -> Frame:
    """Of a tensor that has its channels on the last axis in the original graph."""
    return channels_first(rank), plain(rank)


def moves_nothing(shape: Sequence[Size], one: Storage, other: Storage) -> bool:
    """Whether the two hold the tensor's elements in the same order, because only axes of size 1 move."""
    if one.flat != other.flat:
        return False
    first, second = ([axis for axis in storage.order if shape[axis] != 1] for storage in (one, other))
    return first == second
