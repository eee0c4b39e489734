"""Minimal filtering F(m, r): m results of a filter with r taps by m + r - 1 multiplications in place of m r.

    y = A^T ((G g) * (B^T d))                        one dimension: d [m + r - 1], g [r], y [m]
    Y = A^T ((G g G^T) * (B^T d B)) A                two dimensions, (m + r - 1)^2 in place of (m r)^2

Matrices come from interpolation at m + r - 2 points and infinity (Cook-Toom), in exact rational arithmetic.
Sources: Winograd, "Arithmetic Complexity of Computations", SIAM 1980, chapter III; Lavin and Gray, "Fast
Algorithms for Convolutional Neural Networks", CVPR 2016, sections 2 to 4; Barabasz et al., "Error Analysis and
Improving the Accuracy of Winograd Convolution for Deep Neural Networks", ACM TOMS 46(4), 2020, sections 3 and 4.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cache
from itertools import combinations
from math import prod

import numpy as np

Matrix = tuple[tuple[Fraction, ...], ...]

LAVIN = (0, 1, -1, 2, -2, Fraction(1, 2), Fraction(-1, 2), 4, -4)
"""Points in the order in which they are taken, as in Lavin and Gray, 4.3. ncnn's F(4, 3) has others: tiles.py."""
CANDIDATES = (2, Fraction(1, 2), 3, Fraction(1, 3), Fraction(2, 3), Fraction(3, 2), 4, Fraction(1, 4))
"""Magnitudes that `least_error_points` tries with both signs."""


@dataclass(frozen=True)
class Transform:
    """F(m, r). `output` is A^T [m, n], `kernel` G [n, r], `data` B^T [n, n], with n = m + r - 1."""

    m: int
    r: int
    output: Matrix
    kernel: Matrix
    data: Matrix

    @property
    def size(self) -> int:
        """Length n of a tile of data."""
        return self.m + self.r - 1

    def arrays(self, dtype: type[np.floating] = np.float64) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(A^T, G, B^T), each number rounded once."""
        output, kernel, data = (
            np.array([[float(value) for value in row] for row in matrix]).astype(dtype)
            for matrix in (self.output, self.kernel, self.data)
        )
        return output, kernel, data


@cache
def cook_toom(m: int, r: int, points: tuple[Fraction | int, ...] | None = None) -> Transform:
    """F(m, r) from `points`, m + r - 2 different numbers, besides infinity; F(1, r) without points is the filter
    itself, r products and their sum. Raises ValueError for other points.

    Let V be the matrix of powers of the points. A linear convolution is V^-1 ((V g) * (V u)); its transpose with
    respect to u is the filter: V^T ((V g) * (V^-T d)). Rows of V^-T are the coefficients of Lagrange's
    polynomials, whose denominators go into G.
    """
    if m == 1 and points is None:
        unit = tuple(tuple(Fraction(int(row == column)) for column in range(r)) for row in range(r))
        return Transform(1, r, ((Fraction(1),) * r,), unit, unit)
    count = m + r - 2
    chosen = tuple(map(Fraction, LAVIN[:count] if points is None else points))
    if m < 1 or r < 1 or len(chosen) != count or len(set(chosen)) != count:
        raise ValueError(
            f"F({m}, {r}) takes {count} different points, not {[str(point) for point in chosen]}"
        )
    zero, one = Fraction(0), Fraction(1)
    infinity = (zero,) * (r - 1) + (one,)
    kernel = [
        tuple(point**power / _weight(chosen, at) for power in range(r)) for at, point in enumerate(chosen)
    ]
    data = [(*_product(chosen[:at] + chosen[at + 1 :]), zero) for at in range(count)]
    output = [(*(point**power for point in chosen), one if power == m - 1 else zero) for power in range(m)]
    return Transform(m, r, tuple(output), (*kernel, infinity), (*data, _product(chosen)))


def _weight(points: Sequence[Fraction], at: int) -> Fraction:
    """Denominator of Lagrange's polynomial of one point."""
    weight = Fraction(1)
    for other, point in enumerate(points):
        if other != at:
            weight *= points[at] - point
    return weight


def _product(roots: Iterable[Fraction]) -> tuple[Fraction, ...]:
    """Coefficients of the product of (x - root), the constant first."""
    coefficients = [Fraction(1)]
    for root in roots:
        shifted = [Fraction(0), *coefficients]
        coefficients = [
            high - root * low for high, low in zip(shifted, [*coefficients, Fraction(0)], strict=True)
        ]
    return tuple(coefficients)


def multiplications_saved(m: int, r: int, dimensions: int = 2) -> float:
    """Direct multiplications over those of F(m, r), before transforms: 2.25 for F(2 x 2, 3 x 3)."""
    return float(Fraction(m * r, m + r - 1) ** dimensions)


def tiled_products(m: int, r: int, channels: Sequence[int], batch: int, size: Sequence[int]) -> int:
    """Multiplications of F(m x m, r x r), those on the border's tiles whole, which reach over it. `channels`: of outputs
    and inputs; `size`: height and width of the result.
    """
    tiles = batch * prod(-(-length // m) for length in size)
    return tiles * (m + r - 1) ** 2 * prod(channels)


def memory_factor(m: int, r: int, dimensions: int = 2) -> float:
    """Transformed weights over the weights themselves: 16/9 for F(2 x 2, 3 x 3)."""
    return float(Fraction(m + r - 1, r) ** dimensions)


def amplification(matrices: tuple[np.ndarray, np.ndarray, np.ndarray], dimensions: int = 2) -> float:
    """How many times a unit roundoff the error of a result may be, relative to |g| |d| (2-norms), by (A^T, G, B^T): the
    largest sum over products of |A| |G row| |B row|. Rows may be scaled against each other, which changes no rounding.

    Componentwise form of the bound in Barabasz et al., theorem 1.
    """
    output, kernel, data = matrices
    rows = np.linalg.norm(kernel, axis=1) * np.linalg.norm(data, axis=1)
    return float((np.abs(output) @ rows).max() ** dimensions)


@cache
def least_error_points(m: int, r: int) -> tuple[Fraction, ...]:
    """The points of the least `amplification`: 0, 1, -1, and the best of CANDIDATES with either sign.

    Barabasz et al., section 4.2, search among the same kind of points, by measured error.
    """
    first = tuple(map(Fraction, (0, 1, -1)[: m + r - 2]))
    signed = [Fraction(sign * size) for size in CANDIDATES for sign in (1, -1)]
    more = combinations(signed, max(m + r - 2 - len(first), 0))
    return min(
        ((*first, *rest) for rest in more), key=lambda points: amplification(cook_toom(m, r, points).arrays())
    )


def filter_1d(signal: np.ndarray, kernel: np.ndarray, transform: Transform) -> np.ndarray:
    """Results [length - r + 1] of correlating signal [length] with kernel [r], tile by tile, in the signal's type."""
    output, kernels, data = transform.arrays(signal.dtype.type)
    count = len(signal) - transform.r + 1
    tiles = -(-count // transform.m)
    padded = np.zeros(tiles * transform.m + transform.r - 1, signal.dtype)
    padded[: len(signal)] = signal
    windows = np.lib.stride_tricks.sliding_window_view(padded, transform.size)[:: transform.m]
    products = (kernels @ kernel.astype(signal.dtype)[:, None]) * (data @ windows.T)
    return (output @ products).T.reshape(-1)[:count]


def filter_2d(image: np.ndarray, weight: np.ndarray, transform: Transform) -> np.ndarray:
    """Results [O, H - r + 1, W - r + 1] of a convolution (no padding, stride 1) of image [C, H, W] with weight
    [O, C, r, r], in the image's type. Sums in float32 and float64 have BLAS's order; kernels' is in tile_arithmetic.py.
    """
    kind, m, n = image.dtype.type, transform.m, transform.size
    output, kernels, data = transform.arrays(kind)
    rows, columns = (size - transform.r + 1 for size in image.shape[1:])
    down, across = -(-rows // m), -(-columns // m)
    padded = np.zeros((len(image), down * m + n - m, across * m + n - m), kind)
    padded[:, : image.shape[1], : image.shape[2]] = image
    windows = np.lib.stride_tricks.sliding_window_view(padded, (n, n), (1, 2))[:, ::m, ::m]
    tiles = _two_sided(data, windows)  # [C, down, across, n, n]
    filters = _two_sided(kernels, weight.astype(kind))  # [O, C, n, n]
    summed = np.zeros((len(weight), down, across, n, n), kind)
    for channel in range(len(image)):
        summed += filters[:, channel, None, None] * tiles[channel]
    results = _two_sided(output, summed)  # [O, down, across, m, m]
    joined = results.transpose(0, 1, 3, 2, 4).reshape(len(weight), down * m, across * m)
    return joined[:, :rows, :columns]


def _two_sided(matrix: np.ndarray, blocks: np.ndarray) -> np.ndarray:
    """matrix block matrix^T for each block of the last two axes, in their type."""
    return matrix @ (matrix @ blocks.swapaxes(-1, -2)).swapaxes(-1, -2)
