"""by=time: which algorithm each layer takes by times that a timer measured, against how far equal things were apart.

Layers are timed in networks that take turns: twice the runtime's own choice, then one network for each algorithm that
it can be made to take. The own choice is left only for a gain that is larger than

    the difference of the two equal networks, in this layer
    twice the middle of those differences over all layers
    twice the standard error of the median of the rounds' ratios

Then the whole network is timed with these choices, in turn with the own ones twice; where it gains no more than those
differ, all layers keep their own choice: what layers gain alone does not always add up.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

LEAST = 0.01
"""A gain below that is none."""
ERRORS = 2.0
EFFICIENCY = 1.2533
"""Standard error of a median over that of a mean, of normal values."""
TO_DEVIATION = 1.4826
"""Median absolute deviation -> standard deviation, of normal values."""


@dataclass(frozen=True)
class Comparison:
    """One variant beside the own choice: its milliseconds, those of the own, the median ratio, and its doubt."""

    own_ms: float
    ms: float
    ratio: float
    doubt: float

    @property
    def gains(self) -> bool:
        return 1 - self.ratio > max(self.doubt, LEAST)

    def text(self) -> str:
        return f"{self.ms:.3g} ms against {self.own_ms:.3g} ms ({self.ratio:.2f}x, times differ by {self.doubt:.1%})"


def compare(rounds: np.ndarray, place: int, least_doubt: float = 0.0) -> Comparison:
    """`rounds`: milliseconds [rounds, variants], of which 0 and 1 are equal."""
    own = np.sqrt(rounds[:, 0] * rounds[:, 1])
    ratios = rounds[:, place] / own
    ratio = float(np.median(ratios))
    deviation = TO_DEVIATION * float(np.median(np.abs(ratios - ratio)))
    error = ERRORS * EFFICIENCY * deviation / np.sqrt(len(ratios))
    own_ms, ms = float(np.median(own)), float(np.median(rounds[:, place]))
    return Comparison(own_ms, ms, ratio, max(difference(rounds), error, least_doubt))


def difference(rounds: np.ndarray) -> float:
    """How far the two equal variants are apart."""
    return abs(float(np.median(rounds[:, 1] / rounds[:, 0])) - 1)


def fastest(
    times: Mapping[str, np.ndarray], variants: Sequence[Mapping[str, str]]
) -> dict[str, dict[str, Comparison]]:
    """Layer -> algorithm -> how it compares, the fastest first. `variants`: layer -> algorithm of each network that was
    timed; the first two are equal. A layer that a variant does not name is not compared in it.
    """
    middle = float(np.median([difference(rounds) for rounds in times.values()])) if times else 0.0
    found: dict[str, dict[str, Comparison]] = {}
    for layer, rounds in times.items():
        compared = {
            choices[layer]: compare(rounds, place, ERRORS * middle)
            for place, choices in enumerate(variants)
            if place > 1 and choices.get(layer, variants[0].get(layer)) != variants[0].get(layer)
        }
        found[layer] = dict(sorted(compared.items(), key=lambda item: item[1].ratio))
    return found


def tells(compared: Mapping[str, Comparison]) -> str | None:
    """The algorithm that gains most, of those whose gain is beyond doubt; None for the own choice."""
    return next((name for name, one in compared.items() if one.gains), None)
