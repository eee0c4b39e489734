"""One linear map as the product of two thinner ones.

By weight: the truncated SVD (principal.py). By response: of a layer's response y = W x, the map M of rank r that comes
nearest to the responses wanted,

    min  sum_i | r(y_i) - r(M x_i + b) |^2      M = left @ right, [d, r] @ [r, d]

with x_i what the layer answers in the network as it is now, y_i what it answered in the original one, and r
the identity or a ReLU.
Source: Zhang, Zou, He and Sun, "Accelerating Very Deep Convolutional Networks for Classification and
Detection", TPAMI 2016, sections 3.1 (linear), 3.2 (ReLU) and 3.3 (asymmetric). Spatial: Jaderberg, Vedaldi
and Zisserman, BMVC 2014, scheme 2, in closed form by SVD.
"""

from dataclasses import dataclass

import numpy as np

from onnx_lathe.passes.numerics.rank import few_rows
from onnx_lathe.passes.numerics.rank.responses import KEPT_FITS, Responses

PENALTIES = (0.01,) * 25 + (1.0,) * 25
"""How much the auxiliary variables are held to what the map gives, iteration by iteration (section 3.2)."""
JUDGED = 5
"""One in this many sampled responses does not fit the map behind which a ReLU stands, but judges it."""


@dataclass(frozen=True)
class LowRank:
    """y ~ left @ right @ x + offset: left [d, r], right [r, i], offset [d], float64."""

    left: np.ndarray
    right: np.ndarray
    offset: np.ndarray

    def __call__(self, rows: np.ndarray) -> np.ndarray:
        """`rows` [n, i] -> [n, d], computed in the type of the rows."""
        left, right, offset = (part.astype(rows.dtype) for part in (self.left, self.right, self.offset))
        return np.asarray((rows @ right.T) @ left.T + offset)


def balanced(left: np.ndarray, right: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The same product with components of equal norm on both sides, as float32: what trains and quantizes
    best.
    """
    size_left, size_right = _lengths(left.T), _lengths(right)
    used = (size_left > 0) & (size_right > 0)
    scale = np.where(used, np.sqrt(size_right / np.where(used, size_left, 1.0)), 1.0)
    scale[scale == 0] = 1.0
    exact = scale.astype(np.result_type(left, right))  # float32 stays that, without a copy in float64
    return (left * exact).astype(np.float32, copy=False), (right / exact[:, None]).astype(
        np.float32, copy=False
    )


def _lengths(rows: np.ndarray) -> np.ndarray:
    """Norm of each row, float64, in which no square of a float32 is too large or too small."""
    return np.sqrt(np.einsum("ij,ij->i", rows, rows, dtype=np.float64))


def fitted(responses: Responses, rank: int, relu: bool) -> tuple[LowRank, float | None]:
    """`fit_relu` in front of a ReLU, else (`fit`, None); kept with the responses, the last few ranks of them."""
    known, key = responses.fits, (rank, relu)
    if key not in known:
        known[key] = fit_relu(responses, rank) if relu else (fit(responses, rank), None)
        while len(known) > KEPT_FITS:
            known.pop(next(iter(known)))
    found: tuple[LowRank, float | None] = known[key]
    return found


def fit(responses: Responses, rank: int) -> LowRank:
    """The best map of that rank on all responses; for unpaired ones, their principal subspace about the
    mean.
    """
    few = responses.deviations()
    if few is not None and responses.paired:
        left, right = few_rows.regression(*few, _ridge(float(np.square(few[1]).sum()), len(few[1])), rank)
    elif few is not None:
        left = few_rows.principal_directions(few[1], rank)
        right = left.T
    elif responses.paired:
        problem = _Regression(responses.covariance, responses.count)
        cross = problem.held_to_identity(responses.cross)
        left = _leading(problem.explained(cross), rank)
        right = problem.onto(left, cross)
    else:
        left = _leading(responses.covariance, rank)
        right = left.T
    return LowRank(left, right, responses.wanted_mean - left @ (right @ responses.found_mean))


def _leading(covariance: np.ndarray, rank: int) -> np.ndarray:
    """The eigenvectors of the largest eigenvalues, as columns."""
    vectors: np.ndarray = np.linalg.eigh(covariance)[1][:, ::-1][:, :rank]
    return vectors


def fit_relu(responses: Responses, rank: int) -> tuple[LowRank, float]:
    """(the best map of that rank in front of a ReLU on sampled responses, its error there relative to that
    of `fit`: at most 1).

    Alternates between auxiliary variables z, [n, d], one by one in closed form, and the map from x to z by
    reduced-rank regression; from two starts, since neither leads to the other: the linear fit, and the fit
    to what the ReLU lets through, where channels that it always shuts count for nothing. What is returned,
    of all iterations and the linear fit, has the smallest error behind the ReLU on samples that did not
    take part.
    """
    linear = fit(responses, rank)
    wanted, found = responses.sampled
    judged = np.arange(len(wanted)) % JUDGED == 0
    linear_error = _relu_error(linear, wanted[judged], found[judged])
    if linear_error == 0 or judged.all():
        return linear, 1.0
    y, x = wanted[~judged], found[~judged]
    mean = x.mean(axis=0, dtype=np.float64)
    centred = x - mean.astype(np.float32)
    problem = _Regression((centred.T @ centred).astype(np.float64) / len(x), len(x))

    def regressed(z: np.ndarray, left: np.ndarray, sweeps: int) -> LowRank:
        """The map to z, by subspace iteration from `left`: an eigendecomposition per iteration would take
        most of the time.
        """
        z_mean = z.mean(axis=0, dtype=np.float64)
        cross = problem.held_to_identity(
            ((z - z_mean.astype(np.float32)).T @ centred).astype(np.float64) / len(x)
        )
        for _ in range(sweeps):
            left = np.linalg.qr(cross @ problem.inverse_times(cross.T @ left))[0]
        right = problem.onto(left, cross)
        return LowRank(left, right, z_mean - left @ (right @ mean))

    best, best_error = linear, linear_error
    for now in (linear, regressed(np.maximum(y, 0), linear.left, sweeps=8)):
        for penalty in PENALTIES:
            now = regressed(auxiliary(y, now(x), penalty), now.left, sweeps=2)
            error = _relu_error(now, wanted[judged], found[judged])
            if error < best_error:
                best, best_error = now, error
    return best, best_error / linear_error


def auxiliary(wanted: np.ndarray, given: np.ndarray, penalty: float) -> np.ndarray:
    """argmin_z (relu(wanted) - relu(z))^2 + penalty * (z - given)^2, element by element (section 3.2,
    equation 7).
    """
    target = np.maximum(wanted, 0)
    below = np.minimum(given, 0)
    above = np.maximum((penalty * given + target) / (penalty + 1), 0)
    cost_below = target**2 + penalty * (below - given) ** 2
    cost_above = (target - above) ** 2 + penalty * (above - given) ** 2
    return np.where(cost_below < cost_above, below, above)


def _relu_error(low: LowRank, wanted: np.ndarray, found: np.ndarray) -> float:
    return float(np.square(np.maximum(wanted, 0) - np.maximum(low(found), 0)).sum(dtype=np.float64))


class _Regression:
    """Regression on x with covariance S [d, d] of n rows, drawn to the identity by a ridge of trace(S) / n.

    Few rows cannot say how their many channels are to be mixed; where they say nothing, a channel stays
    what it is. The ridge is the one that suits an error as evenly spread over directions as noise, and
    vanishes as rows are added.
    """

    def __init__(self, covariance: np.ndarray, rows: int) -> None:
        self.ridge = _ridge(float(np.trace(covariance)), rows)
        self.channels = len(covariance)
        self.covariance = covariance + self.ridge * np.eye(self.channels)
        self._inverse: np.ndarray | None = None

    def held_to_identity(self, cross: np.ndarray) -> np.ndarray:
        """Covariance of z with x, as if rows with z = x had been added."""
        return cross + self.ridge * np.eye(self.channels)

    def inverse_times(self, matrix: np.ndarray) -> np.ndarray:
        if self._inverse is None:
            self._inverse = np.linalg.inv(self.covariance)
        return self._inverse @ matrix

    def explained(self, cross: np.ndarray) -> np.ndarray:
        """Covariance of what the best map of full rank gives; its principal subspace is that of the best
        map of any rank.
        """
        return cross @ self.inverse_times(cross.T)

    def onto(self, left: np.ndarray, cross: np.ndarray) -> np.ndarray:
        """left.T @ (best map of full rank)."""
        return self.inverse_times(cross.T @ left).T


def _ridge(total: float, rows: int) -> float:
    """`total` is the trace of the covariance."""
    return total / rows if total > 0 else 1.0
