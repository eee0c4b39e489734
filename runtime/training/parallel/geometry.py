"""Layers as their sizes alone: spatial axes with windows, the matrix product that a layer is, and parts of either."""

import math
from dataclasses import dataclass

CONV, GEMM, POOL, MEAN, JOIN = "conv", "gemm", "pool", "mean", "join"
CONCAT, PLACE, FLATTEN, OTHER = "concat", "place", "flatten", "other"
"""Kinds of layers. A mean is over all positions; a join reads several tensors element by element, a concat puts their
channels side by side; a place needs all channels of a position; what is of no other kind runs whole.
"""


@dataclass(frozen=True)
class Axis:
    """One spatial axis: `size` inputs, `out` outputs, of a window with `before` zeros in front."""

    size: int
    out: int
    kernel: int = 1
    stride: int = 1
    dilation: int = 1
    before: int = 0

    @property
    def extent(self) -> int:
        """Inputs from the first tap to the last."""
        return (self.kernel - 1) * self.dilation + 1

    def needed(self, outputs: tuple[int, int]) -> tuple[int, int]:
        """The inputs that outputs [o0, o1) read, without the padding."""
        first = outputs[0] * self.stride - self.before
        last = (outputs[1] - 1) * self.stride - self.before + self.extent
        return max(0, first), min(self.size, max(0, last))


@dataclass(frozen=True)
class Product:
    """The matrix product [m, k] x [k, n] that a layer is, `groups` times."""

    m: int
    k: int
    n: int
    groups: int = 1

    @property
    def flops(self) -> int:
        return 2 * self.m * self.k * self.n * self.groups

    def __str__(self) -> str:
        product = f"{self.m} x {self.k} x {self.n}"
        return product if self.groups == 1 else f"{self.groups} of {product}"


@dataclass(frozen=True)
class Layer:
    """An operator, and those behind it that keep its layout; all sizes are of one sample, in elements.

    `channels` and `filters`: c of its input, d of its result. `axes`: spatial axes, none of a Gemm, which has `rows` in
    their place. `vectors`: biases, scales and shifts. `reads`: places in the list of the layers whose results it reads;
    none if it reads the model's inputs. `kept_input`: of its input, what the backward pass reads and no other layer counts;
    `kept_result`: the same of its result, and behind it. `macs`: of a layer that is no product of its own.
    """

    name: str
    kind: str
    channels: int
    filters: int
    axes: tuple[Axis, ...] = ()
    rows: int = 1
    groups: int = 1
    vectors: int = 0
    reads: tuple[int, ...] = ()
    kept_input: int = 0
    kept_result: int = 0
    macs: int = 0
    other_weights: int = 0

    @property
    def positions(self) -> int:
        """oh ow."""
        return self.rows * math.prod(axis.out for axis in self.axes)

    @property
    def input_size(self) -> int:
        """c h w."""
        return self.channels * self.rows * math.prod(axis.size for axis in self.axes)

    @property
    def result_size(self) -> int:
        """d oh ow."""
        return self.filters * self.positions

    @property
    def matrix(self) -> int:
        """Weights but those in vectors: d c kh kw."""
        if self.kind not in (CONV, GEMM):
            return self.other_weights
        taps = math.prod(axis.kernel for axis in self.axes)
        return self.filters * (self.channels // self.groups) * taps

    @property
    def weights(self) -> int:
        return self.matrix + self.vectors

    def product(self, batch: int) -> Product:
        if self.kind not in (CONV, GEMM):
            return Product(batch, self.macs, 1)
        inner = self.matrix // self.filters
        return Product(batch * self.positions, inner, self.filters // self.groups, self.groups)


def even(size: int, parts: int) -> list[tuple[int, int]]:
    """Bounds of parts that differ by one at most."""
    return [(part * size // parts, (part + 1) * size // parts) for part in range(parts)]


def largest(size: int, parts: int) -> int:
    return -(-size // parts)
