"""Entropy-constrained scalar quantization: a value's cost is its squared error plus a price on the bits of
its code.

    cost(w, c) = (w - c)^2 + price * -log2(share of the values that c stands for)

Between two neighbouring centroids the cheaper one changes at a single place, off the middle towards the
rarer one. So cells are intervals still, found as the lower envelope of K parabolas, and a step costs what
one of Lloyd's does. Assigning, then moving centroids to the means of their cells and code lengths to their
counts, lowers the cost at every step; a centroid that is never the cheapest is dropped.
Source: Chou, Lookabaugh and Gray, "Entropy-Constrained Vector Quantization", IEEE Transactions on
Acoustics, Speech and Signal Processing 37(1), 1989, section III; in one dimension: Farvardin and Modestino,
IEEE Transactions on Information Theory 30(3), 1984.
"""

from dataclasses import dataclass

import numpy as np

from onnx_lathe.passes.numerics.clustering.points import Cells, Points

_STABLE = 1e-9
"""Relative fall of the cost below which a step counts as the last."""


@dataclass(frozen=True)
class Coded:
    """Centroids [K], ascending, the price of each one's code [K] in squared error, and the cost of all
    points; float64.
    """

    centroids: np.ndarray
    prices: np.ndarray
    cost: float


def entropy_constrained(points: Points, start: np.ndarray, price: float, iterations: int) -> Coded:
    """From the ascending centroids `start`; `price` is squared error per bit. Costs no more than `start`
    with its nearest points.
    """
    cells = points.nearest(start)
    best = _coded(cells, price)
    for _ in range(iterations):
        _, edges = cheapest(best.centroids, best.prices, points.signed)
        cells = points.between(edges)
        now = _coded(cells, price)
        if best.cost - now.cost <= _STABLE * best.cost:
            break
        best = now
    return best


def _coded(cells: Cells, price: float) -> Coded:
    counts = cells.counts()
    prices = price * code_lengths(counts)
    return Coded(cells.means(), prices, float(cells.error.sum() + counts @ prices))


def code_lengths(counts: np.ndarray) -> np.ndarray:
    """Bits of an ideal code for each of the positive counts."""
    lengths: np.ndarray = np.log2(counts.sum() / counts)
    return lengths


def entropy_bits(counts: np.ndarray) -> float:
    """Mean bits of an ideal code for symbols that occur so often; zero counts are no symbols."""
    present = counts[counts > 0].astype(np.float64)
    return float(present @ code_lengths(present) / present.sum()) if present.size else 0.0


def cheapest(centroids: np.ndarray, prices: np.ndarray, signed: bool) -> tuple[np.ndarray, np.ndarray]:
    """Positions of the centroids that are the cheapest of all for some value, and the edges [K-1] between
    those.

    `signed`: zero is an edge, centroids of one sign do not serve values of the other, and 0.0 is none of
    the centroids.
    """
    if not signed:
        return _envelope(centroids, prices)
    negative = int(np.searchsorted(centroids, 0.0))
    left, left_edges = _envelope(centroids[:negative], prices[:negative])
    right, right_edges = _envelope(centroids[negative:], prices[negative:])
    zero = [0.0] if left.size and right.size else []
    return np.concatenate([left, right + negative]), np.concatenate(
        [left_edges.clip(max=0.0), zero, right_edges.clip(min=0.0)]
    )


def _envelope(centroids: np.ndarray, prices: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The lower envelope of (w - c)^2 + price over w: a stack of parabolas from left to right, each popped
    when the next one hides it.
    """
    position, cost = centroids.tolist(), prices.tolist()
    kept: list[int] = []
    edges: list[float] = []  # edges[i] is where kept[i] begins
    for new in range(len(position)):
        edge = -np.inf
        while kept:
            edge = _meeting(position[kept[-1]], cost[kept[-1]], position[new], cost[new])
            if edge > edges[-1]:
                break
            kept.pop()
            edges.pop()
        if edge < np.inf:
            kept.append(new)
            edges.append(edge if len(kept) > 1 else -np.inf)
    return np.array(kept, np.int64), np.array(edges[1:], np.float64)


def _meeting(left: float, left_price: float, right: float, right_price: float) -> float:
    """Where the right one begins to be cheaper; centroids that rounding has made equal meet at one of the
    ends.
    """
    if left == right:
        return np.inf if left_price <= right_price else -np.inf
    return (left + right) / 2 + (right_price - left_price) / (2 * (right - left))
