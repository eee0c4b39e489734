"""Of the weights that a layer could have, the one that answers best, with the deviations and means that it should have."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from onnx_lathe.passes.graph import Graph
from onnx_lathe.passes.graph.answers.forms import Form
from onnx_lathe.passes.graph.initializers import read
from onnx_lathe.passes.graph.quantization.bias_places import BiasPlace, bias_place, shift
from onnx_lathe.passes.numerics.second_order.fitting import centered_bias, gains
from onnx_lathe.passes.numerics.second_order.paired import SplitJointMoments

GOOD_ENOUGH = 1e-5
"""Of the answers' energy: an error that small, 50 dB, is left as it is: what is summed in float32 tells no more."""
WORTH = 0.99
"""Only an error smaller than this share of what it was is worth a change."""


@dataclass(frozen=True)
class Candidate:
    """A weight [groups, r, d] times `gain` [groups, r], the bias that goes with it, and its squared error."""

    weight: np.ndarray
    gain: np.ndarray
    bias: np.ndarray
    error: float


@dataclass(frozen=True)
class Judged:
    """A layer's weight as it is, and what it is held to. Errors are of samples that are kept apart, if there are any."""

    form: Form
    moments: SplitJointMoments
    """Of means that count as 0, if the layer has no place for a bias, or its bias is to stay."""
    place: BiasPlace | None
    bias: np.ndarray
    before: float
    energy: float
    """Variance of all answers that are wanted."""

    @classmethod
    def of(cls, graph: Graph, form: Form, moments: SplitJointMoments, moves_bias: bool = True) -> "Judged":
        place = bias_place(graph, form.rows.weight.nodes[0])
        bias = _bias(place, form.now.shape[:2])
        if place is None or not moves_bias:
            place, moments, bias = None, moments.uncentered(bias), np.zeros_like(bias)
        judge = moments.judging
        return cls(
            form,
            moments,
            place,
            bias,
            float(judge.error(form.now, bias).sum()),
            float(judge.yy.sum()),
        )

    def is_good(self) -> bool:
        return self.before <= GOOD_ENOUGH * self.energy

    def is_worth(self, found: Candidate) -> bool:
        return found.error < WORTH * self.before

    def best(self, weights: Sequence[np.ndarray], scaled: bool = True) -> Candidate:
        """The one of least error; `weights` are one at least. `scaled`: whether channels may be multiplied."""
        return min(self._candidates(weights, scaled), key=lambda one: one.error)

    def _candidates(self, weights: Sequence[np.ndarray], scaled: bool) -> Iterator[Candidate]:
        one = np.ones(self.form.now.shape[:2])
        for weight in weights:
            gain = gains(self.moments.fitted, weight)
            for factor in (gain, one) if scaled and self.form.scales and (gain != 1).any() else (one,):
                full = weight * factor[:, :, None]
                bias = centered_bias(self.moments.fitted, full)
                yield Candidate(weight, factor, bias, float(self.moments.judging.error(full, bias).sum()))

    def take(self, graph: Graph, found: Candidate, taken: set[str]) -> str:
        """Writes the candidate into the graph. Returns what to say of it. `taken`: names that the graph has."""
        self.form.store(found.weight, found.gain)
        if self.place is not None:
            shift(graph, self.place, (found.bias - self.bias).reshape(-1), taken)
        return f"answers {self.decibels(self.before)} -> {self.decibels(found.error)}"

    def decibels(self, error: float) -> str:
        """Signal to noise of the layer's answers."""
        return f"{10 * math.log10(self.energy / error):.1f} dB" if error > 0 and self.energy > 0 else "exact"


def _bias(place: BiasPlace | None, shape: tuple[int, ...]) -> np.ndarray:
    tensor = None if place is None else place.tensor
    if place is None or tensor is None or tensor.is_empty():
        return np.zeros(shape)
    values = read(tensor).astype(np.float64).reshape(-1) * place.factor
    return np.broadcast_to(values, (math.prod(shape),)).reshape(shape)
