"""First-order Taylor importance: how much the loss would change, to first order, if a channel were taken out.

    |dL/dz * z| summed over a pre-activation channel z = W x + b   equals   |sum over its weights of dL/dw * w|

because z is linear in w and b. So gradients of weights are enough, batch by batch, and magnitudes are
averaged over batches.
Sources: Molchanov et al., "Pruning Convolutional Neural Networks for Resource Efficient Inference", ICLR
2017, section 2.2, equation 7; Molchanov et al., "Importance Estimation for Neural Network Pruning", CVPR
2019, section 3.1, equation 8.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from onnx_lathe.errors import PassError


@dataclass(frozen=True)
class Part:
    """An axis of a trained tensor, and the unit that each position belongs to: int [positions]."""

    name: str
    axis: int
    units: np.ndarray


@dataclass
class TaylorScores:
    """Implements onnx_lathe.protocols.Shaping, to look on: the network computes with its weights as they
    are at the start, all the time.

    What an optimizer step (plain gradient descent at rate 1) moves underneath is then the gradient there.
    """

    parts: Sequence[Part]
    size: int
    every: int = 1
    total: np.ndarray = field(default_factory=lambda: np.zeros(0))
    _start: dict[str, np.ndarray] = field(default_factory=dict)
    _last: dict[str, np.ndarray] = field(default_factory=dict)

    def __call__(self, done: float, weights: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        if not self._start:
            self._begin(weights)
        else:
            self._add(weights)
        self._last = {part.name: weights[part.name].copy() for part in self.parts}
        return self._start

    def _begin(self, weights: Mapping[str, np.ndarray]) -> None:
        missing = [part.name for part in self.parts if part.name not in weights]
        if missing:
            raise PassError(
                f"weight '{missing[0]}' is not trained, so it has no gradient; give importance=l2"
            )
        self._start = {name: weight.copy() for name, weight in weights.items()}
        for weight in self._start.values():
            weight.flags.writeable = False
        self.total = np.zeros(self.size)

    def _add(self, weights: Mapping[str, np.ndarray]) -> None:
        change = np.zeros(self.size)
        for part in self.parts:
            gradient = self._last[part.name] - weights[part.name]
            sums = np.einsum(
                gradient, range(gradient.ndim), self._start[part.name], range(gradient.ndim), [part.axis]
            )
            change += np.bincount(part.units, weights=np.asarray(sums, np.float64), minlength=self.size)
        self.total += np.abs(change)

    def state(self) -> Mapping[str, np.ndarray]:
        kept = {f"start/{name}": array for name, array in self._start.items()} | {
            f"last/{name}": array for name, array in self._last.items()
        }
        return kept | {"total": self.total}

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        self.total = np.array(state["total"])
        for prefix, arrays in (("start/", self._start), ("last/", self._last)):
            arrays.clear()
            arrays.update(
                {name.removeprefix(prefix): array for name, array in state.items() if name.startswith(prefix)}
            )
        for array in self._start.values():
            array.flags.writeable = False
