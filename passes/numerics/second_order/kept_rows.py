"""Rows of what a layer reads and should answer, to judge it behind its activation: where that lets nothing through, errors
of the answer do not count, and moments cannot tell.

    E |f(W x + b + given) - f(wanted)|^2        f(v) = min(max(v, low), high)

It is made small by turns: answers z, element by element in closed form, with which f answers better though they are not far
from what the layer gives now, and then the layer that comes nearest to z.
Source: Zhang, Zou, He and Sun, "Accelerating Very Deep Convolutional Networks for Classification and Detection", TPAMI
2016, section 3.2, for a ReLU.
"""

from dataclasses import dataclass, replace

import numpy as np

from onnx_lathe.passes.numerics.second_order.moments import HELD_OUT
from onnx_lathe.passes.numerics.second_order.windows import chosen

KEPT_BYTES = 1 << 25
"""Of rows and answers of a layer."""


@dataclass(frozen=True)
class Activation:
    """Lets through what lies between the two, and stops there."""

    low: float = -np.inf
    high: float = np.inf

    def __call__(self, values: np.ndarray) -> np.ndarray:
        """Of float32."""
        found: np.ndarray = np.clip(values, np.float32(self.low), np.float32(self.high))
        return found

    def auxiliary(self, target: np.ndarray, now: np.ndarray, penalty: float) -> np.ndarray:
        """argmin over z of (target - f(z))^2 + penalty * (z - now)^2, element by element."""
        share = np.float32(penalty)
        found = self((share * now + target) / (share + 1))
        cost = np.square(target - found) + share * np.square(found - now)
        for farther, bound in ((np.minimum, self.low), (np.maximum, self.high)):
            if np.isfinite(bound):
                stopped = farther(now, np.float32(bound))
                other = np.square(target - np.float32(bound)) + share * np.square(stopped - now)
                found = np.where(other < cost, stopped, found)
                cost = np.minimum(other, cost)
        return found


@dataclass(frozen=True)
class KeptRows:
    """Inputs x [groups, n, d]; `target`, what the activation should give, and `given`, what is added behind the layer, [groups,
    n, r] or of such a shape once broadcast; float32.
    """

    activation: Activation
    x: np.ndarray
    target: np.ndarray
    given: np.ndarray | float = 0.0

    def answers(self, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
        """Of the weight [groups, r, d] and the bias [groups, r], in front of the activation."""
        found: np.ndarray = self.x @ weight.transpose(0, 2, 1).astype(np.float32)
        found += self.given
        found += bias[:, None].astype(np.float32)
        return found

    def error(self, weight: np.ndarray, bias: np.ndarray) -> float:
        """Mean over the rows of the squared error behind the activation, of all outputs together."""
        lost = self.activation(self.answers(weight, bias))
        lost -= self.target
        return float(np.einsum("gnr,gnr->", lost, lost, dtype=np.float64)) / self.x.shape[1]

    def energy(self) -> float:
        """Variance behind the activation, of all outputs together."""
        return float(self.target.var(axis=1, dtype=np.float64).sum())

    def auxiliary(self, weight: np.ndarray, bias: np.ndarray, penalty: float) -> np.ndarray:
        """What the layer should answer, for the activation to give more nearly what it should."""
        found = self.activation.auxiliary(self.target, self.answers(weight, bias), penalty)
        found -= self.given
        return found

    def behind(self, bias: np.ndarray) -> "KeptRows":
        """Of a layer whose bias [groups, r] stays: it is given."""
        return replace(self, given=self.given + bias[:, None].astype(np.float32))


class SplitRows:
    """Rows to fit by, and of samples that are kept apart to judge by; of each of about so many samples a few, drawn by
    the generator: with any even step they could all be of one column of an image, or of its border.
    """

    def __init__(
        self,
        activation: Activation,
        samples: int,
        groups: int,
        inputs: int,
        outputs: int,
        generator: np.random.Generator,
    ) -> None:
        self.activation, self.generator = activation, generator
        self.most = max(1, KEPT_BYTES // (4 * groups * (inputs + outputs) * samples))
        self._parts: tuple[list[list[np.ndarray]], ...] = ([], [])

    def add(self, x: np.ndarray, given: np.ndarray | None, wanted: np.ndarray, number: int) -> None:
        """Of the sample of that number: x [groups, n, d], what is added, and sums that are wanted [groups, n, r]."""
        some = chosen(x.shape[1], self.most, self.generator)
        kept = [x[:, some], self.activation(wanted[:, some])]
        if given is not None:
            kept.append(given[:, some])
        self._parts[(number + 1) % HELD_OUT == 0].append(kept)

    def rows(self) -> tuple[KeptRows, KeptRows] | None:
        """(to fit by, to judge by), if there are any of both."""
        if not all(self._parts):
            return None
        fitted, judging = (
            KeptRows(self.activation, *(np.concatenate(one, axis=1) for one in zip(*part, strict=True)))
            for part in self._parts
        )
        return fitted, judging
