"""4-bit quantization of a matrix in blocks: groups of neighbouring values along one axis share a scale.

    symmetric:   level = clip(round(value / scale), -8, 7)            value = level * scale
    with zeros:  level = clip(round(value / scale) + zero, 0, 15)     value = (level - zero) * scale

Zero stays exactly zero in both. With few levels it is better to cut off a group's largest values than to
spread all levels that far: several scales are tried, and each is then made the best for the levels that it
gave (least squares), so that what was cut off is not missing on average.
Source: Banner, Nahshan and Soudry, "Post training 4-bit quantization of convolutional networks for
rapid-deployment", NeurIPS 2019, section 3, for the cut; Dettmers and Zettlemoyer, "The case for 4-bit
precision", ICML 2023, section 5, for groups.
"""

from dataclasses import dataclass, replace

import ml_dtypes
import numpy as np

from onnx_lathe.passes.numerics.quantization.affine import SMALLEST_SCALE, slabs

SHARES = np.append(np.linspace(1.0, 0.5, 21), 7 / 8).astype(np.float32)
"""Shares of a group's range that are tried. At 7/8 the largest value is level 8 of a symmetric group, which
is there if it is negative.
"""


@dataclass(frozen=True)
class Levels:
    """A matrix in 4 bits. `levels`: INT4, or UINT4 with `zeros`, [rows, columns]; `scale` and `zeros`:
    [rows, groups].
    """

    levels: np.ndarray
    scale: np.ndarray
    zeros: np.ndarray | None

    def restored(self) -> np.ndarray:
        """Float32 values, [rows, columns]."""
        groups = self.levels.astype(np.float32).reshape(*self.scale.shape, -1)
        shift = np.float32(0) if self.zeros is None else self.zeros.astype(np.float32)[..., None]
        values: np.ndarray = ((groups - shift) * self.scale[..., None]).reshape(self.levels.shape)
        return values

    def part(self, rows: slice) -> "Levels":
        return Levels(self.levels[rows], self.scale[rows], None if self.zeros is None else self.zeros[rows])

    def scaled(self, gains: np.ndarray) -> "Levels":
        """With each row multiplied by its gain, [rows]."""
        return replace(self, scale=(self.scale * gains[:, None]).astype(np.float32))


def divisor_near(size: int, wanted: int) -> int | None:
    """The divisor of `size` nearest to `wanted`, of two the larger; None if none is within half and double
    of it.
    """
    divisors = [d for d in range(max(2, -(-wanted // 2)), 2 * wanted + 1) if size % d == 0]
    return min(divisors, key=lambda d: (abs(d - wanted), -d), default=None)


def encode(matrix: np.ndarray, group: int, symmetric: bool, search: bool) -> Levels:
    """4-bit form of float32 [rows, columns] whose groups are `group` values of one row; `group` divides the
    number of columns.

    `search` takes the scale of each group with the least squared error; without, the group's extremes are
    the outermost levels.
    """
    rows, groups = len(matrix), (len(matrix), matrix.shape[1] // group)
    levels, scale = np.empty(matrix.shape, kind(symmetric)), np.empty(groups, np.float32)
    zeros = None if symmetric else np.empty(groups, kind(symmetric))
    for place in slabs(matrix.shape, 0) if rows else ():
        part = _encoded(matrix[place], group, symmetric, search)
        levels[place], scale[place] = part.levels, part.scale
        if zeros is not None:
            zeros[place] = part.zeros
    return Levels(levels, scale, zeros)


def _encoded(matrix: np.ndarray, group: int, symmetric: bool, search: bool) -> Levels:
    """As `encode`, of some rows, in memory at once."""
    rows, columns = matrix.shape
    values = matrix.astype(np.float32).reshape(rows, columns // group, group)
    exponent = np.frexp(np.abs(values).max(2))[1]
    # a group's largest is 0.5 to 1 or all are 0, so that no square overflows or vanishes
    values = np.ldexp(values, -exponent[..., None])
    low, high = np.minimum(values.min(2), 0), np.maximum(values.max(2), 0)
    span = np.maximum(np.maximum(-low, high) / 7 if symmetric else (high - low) / 15, SMALLEST_SCALE)
    best = np.full(low.shape, np.inf, np.float32)
    scale, zeros, levels = np.empty_like(low), np.zeros_like(low), np.empty_like(values)
    for share in SHARES if search else SHARES[:1]:
        step = share * span
        zero = np.zeros_like(step) if symmetric else np.clip(np.rint(-share * low / step), 0, 15)
        tried = np.clip(
            np.rint(values / step[..., None]) + zero[..., None], *((-8, 7) if symmetric else (0, 15))
        )
        centred = tried - zero[..., None]
        if search:  # the scale that is best for these levels
            energy = np.square(centred).sum(2)
            step = np.where(energy > 0, (values * centred).sum(2) / np.maximum(energy, 1), step)
        error = np.square(values - centred * step[..., None]).sum(2)
        better = error < best
        best, scale, zeros = (
            np.where(better, new, old) for new, old in ((error, best), (step, scale), (zero, zeros))
        )
        levels = np.where(better[..., None], tried, levels)
    stored = levels.reshape(rows, columns).astype(np.int8).astype(kind(symmetric))
    scale = np.maximum(np.ldexp(scale, exponent), np.finfo(np.float32).tiny)
    return Levels(stored, scale, None if symmetric else zeros.astype(np.int8).astype(kind(symmetric)))


def kind(symmetric: bool) -> np.dtype:
    """Of levels."""
    return np.dtype(ml_dtypes.int4 if symmetric else ml_dtypes.uint4)
