"""by=time: which algorithm each layer takes by times that a timer measured, against how far equal things were apart.

Layers are timed in networks that take turns: twice the runtime's own choice, then one network for each algorithm that
it can be made to take. The networks are loaded several times, for where a load puts their weights makes a layer
slower or faster in all rounds that follow: a load gives one value, the median of its rounds' logarithms of the ratio to
the two equal networks, however many rounds it has. The own choice is left only where Student's test of these values
says, at 3 % over all layers and algorithms together (Bonferroni), that the gain is one, and where it is larger than

    the difference of the two equal networks
    1 %

Then the whole network is timed with these choices, in turn with the own ones twice, and tested alike; where it does
not gain, all layers keep their own choice: what layers gain alone does not always add up.

Source of the test: Student, The Probable Error of a Mean, Biometrika 6, 1908.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from onnx_lathe.passes.numerics.student import quantile

LEAST = 0.01
"""A gain below that is none."""
LEVEL = 0.03
"""Probability that noise alone chooses anything in a network."""


@dataclass(frozen=True)
class Comparison:
    """One variant beside the own choice: its milliseconds, those of the own, the ratio, and the gain that it has to be
    beyond.
    """

    own_ms: float
    ms: float
    ratio: float
    doubt: float

    @property
    def gains(self) -> bool:
        return 1 - self.ratio > max(self.doubt, LEAST)

    def text(self) -> str:
        return (
            f"{self.ms:.3g} ms against {self.own_ms:.3g} ms ({self.ratio:.2f}x, in doubt by {self.doubt:.1%})"
        )


def compare(times: np.ndarray, place: int, comparisons: int = 1) -> Comparison:
    """`times`: milliseconds [loads, rounds, variants], of which variants 0 and 1 are equal. `comparisons`: how many are
    made, each of which may be wrong.
    """
    logs = np.log(times)
    own = logs[..., :2].mean(axis=-1)
    ratios = np.median(logs[..., place] - own, axis=1)
    equal = np.median(logs[..., 1] - logs[..., 0], axis=1)
    ratio = float(np.exp(ratios.mean()))
    bar = quantile(LEVEL / comparisons, len(ratios) - 1) * ratios.std(ddof=1) / np.sqrt(len(ratios))
    own_ms, ms = float(np.exp(np.median(own))), float(np.median(times[..., place]))
    return Comparison(own_ms, ms, ratio, float(-np.expm1(-max(bar, abs(equal.mean())))))


def fastest(
    times: Mapping[str, np.ndarray], variants: Sequence[Mapping[str, str]]
) -> dict[str, dict[str, Comparison]]:
    """Layer -> algorithm -> how it compares, the fastest first. `variants`: layer -> algorithm of each network that was
    timed; the first two are equal. A layer that a variant does not name is not compared in it.
    """
    places = {
        layer: {
            choices[layer]: place
            for place, choices in enumerate(variants)
            if place > 1 and choices.get(layer, variants[0].get(layer)) != variants[0].get(layer)
        }
        for layer in times
    }
    comparisons = sum(map(len, places.values()))
    found: dict[str, dict[str, Comparison]] = {}
    for layer, others in places.items():
        compared = {name: compare(times[layer], place, comparisons) for name, place in others.items()}
        found[layer] = dict(sorted(compared.items(), key=lambda item: item[1].ratio))
    return found


def tells(compared: Mapping[str, Comparison]) -> str | None:
    """The algorithm that gains most, of those whose gain is beyond doubt; None for the own choice."""
    return next((name for name, one in compared.items() if one.gains), None)
