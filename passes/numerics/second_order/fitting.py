"""What may still change of a layer, fitted to the answers that it should give: weights that are not zero, values that
weights share, steps of quantized ones, and means and deviations of channels.

    W + D  with  D = (C_yx - W C_xx)_M (C_xx + damping)_MM^-1    for the free places M of each row

A ridge towards the weights that are there: where the data says nothing, nothing changes.
Sources: Frantar and Alistarh, "SparseGPT", ICML 2023, section 3.1, for rows with masks of their own; Nagel et al.,
"Data-Free Quantization", ICCV 2019, section 4.2, for means.
"""

import numpy as np

from onnx_lathe.passes.numerics.second_order.conjugate import solve_free
from onnx_lathe.passes.numerics.second_order.paired import JointMoments

GAINS = (0.5, 2.0)
"""By how much the deviation of a channel may be changed."""
CONSTANT = 1e-6
"""A channel whose deviation is less than so much of the largest one's does not vary."""
FEW_VALUES = 32
"""Up to so many shared values their moments are products of matrices, else sums of sorted columns."""
PIECE_BYTES = 1 << 26


def fit_free(moments: JointMoments, weight: np.ndarray, free: np.ndarray) -> np.ndarray:
    """The weight [groups, r, d] whose elements where `free` is false stay as they are; float64."""
    residual, regular = moments.yx - weight @ moments.xx, moments.regular()
    if free.all():
        change: np.ndarray = np.linalg.solve(regular, residual.transpose(0, 2, 1)).transpose(0, 2, 1)
        return weight + change
    return weight + solve_free(regular, residual, free)


def fit_shared(
    moments: JointMoments, weight: np.ndarray, places: np.ndarray, values: np.ndarray, fixed: np.ndarray
) -> np.ndarray:
    """The values [K] that the weight [groups, r, d] shares, values[places]; those where `fixed` is true stay."""
    residual, regular = moments.yx - weight @ moments.xx, moments.regular()
    count = values.size
    gradient = np.bincount(places.ravel(), residual.ravel(), count)
    matrix = np.zeros((count, count))
    for group in range(len(places)):
        matrix += _between(regular[group], places[group], count)
    free = np.flatnonzero(~fixed & (np.bincount(places.ravel(), minlength=count) > 0))
    found = values.astype(np.float64)
    if free.size:
        inner = matrix[np.ix_(free, free)]
        found[free] += np.linalg.solve(inner, gradient[free])
    return found


def _between(covariance: np.ndarray, places: np.ndarray, count: int) -> np.ndarray:
    """[K, K]: summed over rows, the covariance [d, d] between all places of one value and all of another."""
    found, size = np.zeros((count, count)), places.shape[1]
    if count <= FEW_VALUES:
        piece = max(1, PIECE_BYTES // (8 * size * count))
        for start in range(0, len(places), piece):
            chosen = (places[start : start + piece, :, None] == np.arange(count)).astype(np.float64)
            found += np.einsum("rdk,rdl->kl", chosen, covariance @ chosen, optimize=True)
        return found
    for row in places:
        order = np.argsort(row, kind="stable")
        starts = np.flatnonzero(np.diff(row[order], prepend=-1))
        sums = np.add.reduceat(covariance[:, order], starts, axis=1)
        sums = np.add.reduceat(sums[order], starts, axis=0)
        used = row[order][starts]
        found[np.ix_(used, used)] += sums
    return found


def gains(moments: JointMoments, weight: np.ndarray) -> np.ndarray:
    """What each row of the weight is multiplied with so that its answer deviates as it should; [groups, r], 1 for a
    channel that does not vary on either side.
    """
    wanted, now = np.sqrt(moments.yy), moments.deviation(weight)
    varies = (wanted > CONSTANT * wanted.max()) & (now > CONSTANT * max(now.max(), np.finfo(np.float64).tiny))
    ratio = np.divide(wanted, now, out=np.ones_like(wanted), where=varies)
    return np.clip(ratio, *GAINS)


def best_gains(moments: JointMoments, weight: np.ndarray) -> np.ndarray:
    """What each row of the weight is multiplied with to answer best; [groups, r], 1 for a channel that does not vary."""
    spread = np.square(moments.deviation(weight))
    shared = np.einsum("grd,grd->gr", moments.yx, weight)
    ratio = np.divide(shared, spread, out=np.ones_like(spread), where=spread > CONSTANT**2 * spread.max())
    return np.clip(ratio, *GAINS)


def centered_bias(moments: JointMoments, weight: np.ndarray) -> np.ndarray:
    """The bias [groups, r] with which the weight's answers have the mean that they should."""
    found: np.ndarray = moments.mean_y - np.einsum("grd,gd->gr", weight, moments.mean_x)
    return found
