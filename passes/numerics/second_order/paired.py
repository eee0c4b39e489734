"""Joint moments of what a layer reads and of what it should answer, streamed: enough for any least-squares fit of the
layer, and to judge one, without the rows themselves.

    E |W x + b - y|^2   follows from   E[x], E[y], C_xx, C_yx and the diagonal of C_yy

Source: Frantar and Alistarh, "Optimal Brain Compression", NeurIPS 2022, section 3, for a target that is the original's
answer to its own inputs.
"""

from dataclasses import dataclass, field

import numpy as np

from onnx_lathe.passes.numerics.second_order.kept_rows import SplitRows
from onnx_lathe.passes.numerics.second_order.moments import (
    CHUNK_ROWS,
    HELD_OUT,
    MOST_WAITING,
    shrunk,
)

WAITING_BYTES = 1 << 24
"""Of rows that wait; of a wide depthwise convolution they are many for a few numbers each."""


class JointMoments:
    """Of inputs x [groups, n, d] and answers y [groups, n, r]: their number, means, and centered sums C_xx [groups, d,
    d], C_yx [groups, r, d] and the diagonal of C_yy [groups, r], float64.
    """

    def __init__(self, groups: int, inputs: int, outputs: int) -> None:
        self.count = 0
        self.mean_x, self.mean_y = np.zeros((groups, inputs)), np.zeros((groups, outputs))
        self._xx = np.zeros((groups, inputs, inputs))
        self._yx = np.zeros((groups, outputs, inputs))
        self._yy = np.zeros((groups, outputs))
        self._about_zero = False
        self._waiting: list[tuple[np.ndarray, np.ndarray]] = []
        self._most = min(max(WAITING_BYTES // (4 * groups * (inputs + outputs)), inputs), MOST_WAITING)

    def add(self, x: np.ndarray, y: np.ndarray) -> None:
        self._waiting.append((x, y))
        if sum(part.shape[1] for part, _ in self._waiting) >= self._most:
            self.settle()

    def settle(self) -> None:
        """Takes in what waits: to add few rows takes as long as to add many."""
        if not self._waiting:
            return
        x, y = (np.concatenate(parts, axis=1) for parts in zip(*self._waiting, strict=True))
        self._waiting.clear()
        for start in range(0, x.shape[1], CHUNK_ROWS):
            part = slice(start, start + CHUNK_ROWS)
            with np.errstate(invalid="ignore", over="ignore"):  # `is_finite` tells
                self._merge(x[:, part], y[:, part])

    def _merge(self, x: np.ndarray, y: np.ndarray) -> None:
        """As by Chan, Golub and LeVeque (1979); products of up to CHUNK_ROWS centered rows are summed in float32."""
        count = x.shape[1]
        mean_x, mean_y = x.mean(axis=1, dtype=np.float64), y.mean(axis=1, dtype=np.float64)
        x, y = (one - mean[:, None].astype(np.float32) for one, mean in ((x, mean_x), (y, mean_y)))
        total, step_x, step_y = self.count + count, mean_x - self.mean_x, mean_y - self.mean_y
        share = self.count * count / total
        self._xx += x.transpose(0, 2, 1) @ x + share * step_x[:, :, None] * step_x[:, None]
        self._yx += y.transpose(0, 2, 1) @ x + share * step_y[:, :, None] * step_x[:, None]
        self._yy += np.square(y).sum(axis=1, dtype=np.float64) + share * np.square(step_y)
        self.mean_x += step_x * (count / total)
        self.mean_y += step_y * (count / total)
        self.count = total

    def answered(self, x: np.ndarray, y: np.ndarray) -> "JointMoments":
        """Of the same rows x [groups, n, d] that these are of, all at once, with other answers y [groups, n, r]; of means
        that are taken for 0, if these are.
        """
        groups, outputs, inputs = self._yx.shape
        found = JointMoments(groups, inputs, outputs)
        found.count, found.mean_x, found._xx, found._about_zero = (
            self.count,
            self.mean_x,
            self._xx,
            self._about_zero,
        )
        if not self._about_zero:
            found.mean_y = y.mean(axis=1, dtype=np.float64)
            y = (y - found.mean_y[:, None]).astype(np.float32)
        found._yx = (y.transpose(0, 2, 1) @ x).astype(np.float64)
        found._yy = np.square(y).sum(axis=1, dtype=np.float64)
        return found

    def is_finite(self) -> bool:
        return bool(np.isfinite(self._xx).all() and np.isfinite(self._yy).all())

    @property
    def xx(self) -> np.ndarray:
        """Covariance of the inputs [groups, d, d]."""
        found: np.ndarray = self._xx / max(self.count, 1)
        return found

    @property
    def yx(self) -> np.ndarray:
        """Covariance of answers and inputs [groups, r, d]."""
        found: np.ndarray = self._yx / max(self.count, 1)
        return found

    @property
    def yy(self) -> np.ndarray:
        """Variance of each answer [groups, r]."""
        found: np.ndarray = self._yy / max(self.count, 1)
        return found

    def regular(self) -> np.ndarray:
        """`xx`, damped, and shrunk towards its diagonal by what so few rows leave open."""
        return shrunk(self.xx, self.count)

    def uncentered(self, bias: np.ndarray | float = 0.0) -> "JointMoments":
        """The same rows, of means that are taken for 0: for a layer without a bias, or whose bias [groups, r] stays, whose
        means its weight makes too.
        """
        groups, outputs, inputs = self._yx.shape
        mean_y = self.mean_y - bias
        found = JointMoments(groups, inputs, outputs)
        found.count, found._about_zero = self.count, True
        found._xx = self._xx + self.count * self.mean_x[:, :, None] * self.mean_x[:, None]
        found._yx = self._yx + self.count * mean_y[:, :, None] * self.mean_x[:, None]
        found._yy = self._yy + self.count * np.square(mean_y)
        return found

    def error(self, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
        """E (w x + b - y)^2 of each answer [groups, r], of the weight [groups, r, d] and the bias [groups, r]."""
        offset = np.einsum("grd,gd->gr", weight, self.mean_x) + bias - self.mean_y
        spread = np.einsum("grd,grd->gr", weight @ self.xx - 2 * self.yx, weight) + self.yy
        return np.maximum(spread, 0.0) + np.square(offset)

    def deviation(self, weight: np.ndarray) -> np.ndarray:
        """Of each answer of the weight [groups, r]."""
        return np.sqrt(np.maximum(np.einsum("grd,grd->gr", weight @ self.xx, weight), 0.0))


@dataclass
class SplitJointMoments:
    """Moments to fit by, and of samples that are kept apart to judge by."""

    fitted: JointMoments
    held: JointMoments
    samples: int = field(default=0)
    rows: SplitRows | None = None
    """Some of the rows themselves, where what is behind the answers decides."""

    @classmethod
    def of(cls, groups: int, inputs: int, outputs: int) -> "SplitJointMoments":
        return cls(JointMoments(groups, inputs, outputs), JointMoments(groups, inputs, outputs))

    def add(self, x: np.ndarray, y: np.ndarray, number: int, given: np.ndarray | None = None) -> None:
        """Of the sample of that number: inputs, and what is wanted of answers, with what is `given` to them if anything is."""
        asked = y if given is None else y - given
        (self.fitted if (number + 1) % HELD_OUT else self.held).add(x, asked)
        if self.rows is not None:
            self.rows.add(x, given, y, number)

    def settle(self) -> None:
        self.fitted.settle()
        self.held.settle()

    def uncentered(self, bias: np.ndarray | float = 0.0) -> "SplitJointMoments":
        fitted, held = (one.uncentered(bias) for one in (self.fitted, self.held))
        return SplitJointMoments(fitted, held, self.samples, self.rows)

    @property
    def judging(self) -> JointMoments:
        """Of so few samples that none is kept apart, those that are fitted by."""
        return self.held if self.held.count else self.fitted

    def refusal(self) -> str | None:
        """What is wrong with the rows, so that nothing can be fitted."""
        if not self.fitted.count:
            return "the layer computes nothing on calibration data"
        if not (self.fitted.is_finite() and self.held.is_finite()):
            return "the layer computes NaN or infinity on calibration data"
        return None if self.fitted.yy.any() else "its answers do not vary on calibration data"
