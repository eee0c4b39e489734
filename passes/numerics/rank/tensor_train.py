"""Tensor trains: a tensor as a chain of small cores; A(i1, ..., id) = G1[i1] G2[i2] ... Gd[id] is a product
of d matrices per element.

    core k is [r(k-1), n(k), r(k)] with ranks r(0) = r(d) = 1

A matrix [I, O] becomes a tensor of d dimensions when both indices are split into d digits, I = m1 * ... *
md and O = n1 * ... * nd: dimension k is the pair (digit k of the input, digit k of the output), of size mk
* nk. The kernel of a convolution is one dimension more.

Sources: Oseledets, "Tensor-Train Decomposition", SIAM J. Sci. Comput. 33(5), 2011, algorithm 1 (TT-SVD) and
theorem 2.2; Novikov, Podoprikhin, Osokin and Vetrov, "Tensorizing Neural Networks", NIPS 2015, section 3
(TT-matrix); Garipov, Podoprikhin, Novikov and Vetrov, "Ultimate Tensorization", 2016, section 4
(convolution).
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np

ROUNDING = 2.0**-24
"""Relative error of one rounding to float32: what is below it in a float32 weight is noise, and no reason
for a higher rank.
"""


@dataclass(frozen=True)
class Modes:
    """The digits of a weight's input and output index, and the number of positions of its kernel, if that
    is a dimension too.

    The input's first digit counts slowest. The output's digits count in the order 2, ..., d, 1: in that
    order a layer computes them when it goes through its cores from the last to the first, so that nothing
    need be transposed at the end.
    """

    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    kernel: int | None = None

    @property
    def sizes(self) -> tuple[int, ...]:
        """Dimensions of the tensor: one per pair of digits, and the kernel's."""
        pairs = tuple(m * n for m, n in zip(self.inputs, self.outputs, strict=True))
        return pairs if self.kernel is None else (*pairs, self.kernel)

    def fold(self, weight: np.ndarray) -> np.ndarray:
        """A weight [I, O, kernel] as a tensor of `sizes`."""
        digits = weight.reshape(*self.inputs, *self.outputs[1:], self.outputs[0], self.kernel or 1)
        return digits.transpose(self._order).reshape(self.sizes)

    def unfold(self, tensor: np.ndarray) -> np.ndarray:
        """The weight [I, O, kernel] of which `fold` makes `tensor`."""
        pairs = [size for pair in zip(self.inputs, self.outputs, strict=True) for size in pair]
        digits = tensor.reshape(*pairs, self.kernel or 1).transpose(np.argsort(self._order))
        return digits.reshape(math.prod(self.inputs), math.prod(self.outputs), self.kernel or 1)

    @property
    def _order(self) -> list[int]:
        count = len(self.inputs)
        outputs = [2 * count - 1, *range(count, 2 * count - 1)]
        return [axis for pair in zip(range(count), outputs, strict=True) for axis in pair] + [2 * count]

    @property
    def size(self) -> int:
        """Elements of the weight."""
        return math.prod(self.sizes)

    def parameters(self, ranks: Sequence[int]) -> int:
        """Elements of the cores with these ranks between them."""
        outer = (1, *ranks, 1)
        return sum(outer[k] * size * outer[k + 1] for k, size in enumerate(self.sizes))

    def macs(self, ranks: Sequence[int]) -> int:
        """Multiply-accumulates of a layer per output position, which goes through the cores from the last
        to the first.
        """
        inner = (1, *ranks, 1)
        total = 0 if self.kernel is None else self.kernel * inner[len(self.inputs)] * math.prod(self.inputs)
        for k in reversed(range(len(self.inputs))):
            done, left = math.prod(self.outputs[k + 1 :]), math.prod(self.inputs[:k])
            total += done * left * self.inputs[k] * inner[k + 1] * inner[k] * self.outputs[k]
        return total


def tt_svd(tensor: np.ndarray, tolerance: float = 0.0, rank: int | None = None) -> list[np.ndarray]:
    """Cores [r, n, r'] in float64 of a tensor: the smallest ranks for a relative error (Frobenius) of at
    most `tolerance`.

    `rank` bounds every rank; then the error may be larger, and is at most sqrt(d - 1) times that of the
    best train of these ranks.
    """
    sizes, cores = tensor.shape, []
    rest = tensor.astype(np.float64).reshape(1, -1)
    allowed = max(tolerance, ROUNDING) * float(np.linalg.norm(rest)) / math.sqrt(max(len(sizes) - 1, 1))
    for size in sizes[:-1]:
        rows = rest.shape[0] * size
        left, values, right = np.linalg.svd(rest.reshape(rows, -1), full_matrices=False)
        kept = min(truncated(values, allowed), rank or values.size)
        cores.append(left[:, :kept].reshape(-1, size, kept))
        rest = values[:kept, None] * right[:kept]
    return [*cores, rest.reshape(-1, sizes[-1], 1)]


def truncated(values: np.ndarray, allowed: float) -> int:
    """How many singular values (descending) are kept, at least one, when the others' root of the sum of
    squares may be `allowed`.
    """
    tails = np.sqrt(np.cumsum(values[::-1] ** 2))[::-1]
    return max(1, int(np.count_nonzero(tails > allowed)))


def full(cores: Sequence[np.ndarray]) -> np.ndarray:
    """The tensor of a train."""
    result = cores[0]
    for core in cores[1:]:
        result = np.tensordot(result, core, axes=1)
    return result.reshape([core.shape[1] for core in cores])


def relative_error(tensor: np.ndarray, cores: Sequence[np.ndarray]) -> float:
    """How far a train is from the tensor once its cores are rounded to float32, by the Frobenius norm; 0 for
    a tensor of zeros.
    """
    difference = full([core.astype(np.float32).astype(np.float64) for core in cores]) - tensor
    return float(np.linalg.norm(difference) / (norm(tensor) or 1.0))


def norm(tensor: np.ndarray) -> float:
    """Frobenius norm in float64: in float32, squares of elements beyond 1e19 are infinite, and of those
    below 1e-23 zero.
    """
    return float(np.linalg.norm(tensor.astype(np.float64)))


def ranks_of(cores: Sequence[np.ndarray]) -> tuple[int, ...]:
    """Those between cores."""
    return tuple(core.shape[0] for core in cores[1:])


def bounded(sizes: Sequence[int], rank: int) -> tuple[int, ...]:
    """`rank` between all cores, or less where a tensor of these sizes cannot have it."""
    return tuple(min(rank, math.prod(sizes[:k]), math.prod(sizes[k:])) for k in range(1, len(sizes)))


def largest_rank(sizes: Sequence[int], fits: Callable[[tuple[int, ...]], bool]) -> int | None:
    """The largest bound of all ranks for which `fits(ranks)`, which must hold for every smaller one too;
    None if 1 does not fit.
    """
    low, high = 0, max(bounded(sizes, math.prod(sizes)))
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(bounded(sizes, middle)) else (low, middle - 1)
    return low or None


@cache
def balanced(number: int, count: int) -> tuple[int, ...]:
    """`count` factors of `number`, ascending, as near to each other as its divisors allow (least sum); ones
    where it has too few.
    """
    return min(_factorizations(number, count, 1), key=sum)


def _factorizations(number: int, count: int, least: int) -> list[tuple[int, ...]]:
    if count == 1:
        return [(number,)]
    first = [
        size for size in range(least, math.isqrt(number) + 1) if number % size == 0 and size**count <= number
    ]
    return [(size, *rest) for size in first for rest in _factorizations(number // size, count - 1, size)]
