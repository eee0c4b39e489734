"""Of the weights that a layer could have, the one that answers best, with the deviations and means that it should have."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from onnx_lathe.passes.graph import Graph
from onnx_lathe.passes.graph.answers.forms import Form
from onnx_lathe.passes.graph.initializers import read
from onnx_lathe.passes.graph.quantization.bias_places import BiasPlace, bias_place, shift
from onnx_lathe.passes.numerics.second_order.fitting import best_gains, centered_bias, gains
from onnx_lathe.passes.numerics.second_order.kept_rows import KeptRows
from onnx_lathe.passes.numerics.second_order.paired import JointMoments, SplitJointMoments

GOOD_ENOUGH = 1e-5
"""Of the answers' energy: an error that small, 50 dB, is left as it is: what is summed in float32 tells no more."""
PENALTIES = (0.01,) * 2 + (1.0,) * 2
"""How much answers in front of an activation are held to what the layer gives, step by step."""
WORTH = 0.99
"""Only an error smaller than this share of what it was is worth a change."""

Fit = Callable[[JointMoments], np.ndarray | None]


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
    rows: tuple[KeptRows, KeptRows] | None = None
    """To fit by and to judge by, where an activation decides what an error of the answers is."""

    @classmethod
    def of(cls, graph: Graph, form: Form, moments: SplitJointMoments, moves_bias: bool = True) -> "Judged":
        place = bias_place(graph, form.rows.weight.nodes[0])
        stays = bias = _bias(place, form.now.shape[:2])
        if place is None or not moves_bias:
            place, moments, bias = None, moments.uncentered(bias), np.zeros_like(bias)
        rows = None if moments.rows is None else moments.rows.rows()
        if rows is not None and place is None:
            fitted, held = (one.behind(stays) for one in rows)
            rows = fitted, held
        if rows is not None:
            return cls(form, moments, place, bias, rows[1].error(form.now, bias), rows[1].energy(), rows)
        judge = moments.judging
        before = float(judge.error(form.now, bias).sum())
        return cls(form, moments, place, bias, before, float(judge.yy.sum()))

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
                yield Candidate(weight, factor, bias, self.error(full, bias))

    def error(self, weight: np.ndarray, bias: np.ndarray) -> float:
        """Of a weight [groups, r, d] and a bias [groups, r]."""
        if self.rows is not None:
            return self.rows[1].error(weight, bias)
        return float(self.moments.judging.error(weight, bias).sum())

    def refined(self, start: Candidate, fit: Fit | None = None) -> Candidate:
        """The best of the candidate, and what comes of it step by step once an activation behind the layer counts. `fit`: what
        gives a weight that answers better, or None; if not given, the form's.
        """
        best = now = start
        if self.rows is None:
            return start
        rows, asked = self.rows[0], None
        for penalty in PENALTIES:
            answers = rows.auxiliary(now.weight * now.gain[:, :, None], now.bias, penalty)
            asked = self._moments(rows.x, answers) if asked is None else asked.answered(rows.x, answers)
            weight = (fit or self.form.fit)(asked)
            weight = self.form.now if weight is None else weight
            gain = best_gains(asked, weight) if self.form.scales else np.ones(weight.shape[:2])
            full = weight * gain[:, :, None]
            bias = centered_bias(asked, full)
            now = Candidate(weight, gain, bias, self.error(full, bias))
            if now.error >= best.error:
                break
            best = now
        return best

    def _moments(self, x: np.ndarray, answers: np.ndarray) -> JointMoments:
        found = JointMoments(len(x), x.shape[2], answers.shape[2])
        found.add(x, answers)
        found.settle()
        return found if self.place is not None else found.uncentered()

    def take(self, graph: Graph, found: Candidate, taken: set[str]) -> str:
        """Writes the candidate into the graph. Returns what to say of it. `taken`: names that the graph has."""
        self.form.store(found.weight, found.gain)
        if self.place is not None:
            shift(graph, self.place, (found.bias - self.bias).reshape(-1), taken)
        return f"answers {self.decibels(self.before)} -> {self.decibels(found.error)}"

    def decibels(self, error: float) -> str:
        """Signal to noise of the layer's answers."""
        if error > 0 and self.energy > 0:
            return f"{10 * math.log10(self.energy / error):.1f} dB"
        return f"an error of {error:.2g}" if error > 0 else "exact"


def _bias(place: BiasPlace | None, shape: tuple[int, ...]) -> np.ndarray:
    tensor = None if place is None else place.tensor
    if place is None or tensor is None or tensor.is_empty():
        return np.zeros(shape)
    values = read(tensor).astype(np.float64).reshape(-1) * place.factor
    return np.broadcast_to(values, (math.prod(shape),)).reshape(shape)
