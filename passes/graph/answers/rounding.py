"""Weights that are rounded so that their layers go on answering as they should: each makes up for what those before it
lost.

Of the nearest levels, those that compensate for the weight's own rounding, and those that also make up for what the
layers before lost, the ones that samples kept apart find best are taken.
Source: Frantar et al., "GPTQ", ICLR 2023; with the original's answers as target, Frantar and Alistarh, "Optimal Brain
Compression", NeurIPS 2022, section 3.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np

from onnx_lathe.passes.graph.answers.choosing import Candidate, Judged
from onnx_lathe.passes.numerics.second_order.fitting import fit_free
from onnx_lathe.passes.numerics.second_order.sweep import Rule, factored, nearest, sweep

HESSIAN = "hessian"
NEAREST = "rounded to nearest: {}"
AnyRule = TypeVar("AnyRule", bound=Rule)


@dataclass(frozen=True)
class Rounded(Generic[AnyRule]):
    """What a layer's weight becomes, the rule that made it, and what to say of it."""

    candidate: Candidate
    rule: AnyRule
    said: str


def round_layer(
    judged: Judged,
    weight: np.ndarray,
    keep_zero: bool,
    rule: Callable[[], AnyRule],
    mended: Callable[[np.ndarray], np.ndarray] | None = None,
) -> Rounded[AnyRule]:
    """The best of what rules make of the weight [groups, r, d], float64, times the layer's alpha; with `keep_zero` zeros
    stay. `rule`: a new one, that sees the weight without alpha, as `mended` does, which may change what comes
    of it.
    """
    fitted, alpha = judged.moments.fitted, judged.form.alpha
    covariance = fitted.regular()
    upper = factored(covariance)
    target = fit_free(fitted, weight, weight != 0 if keep_zero else np.ones(weight.shape, bool))
    rules = [rule(), rule(), rule()]
    found = [
        nearest(weight / alpha, rules[0]),
        sweep(weight / alpha, covariance, rules[1], upper=upper),
        sweep(target / alpha, covariance, rules[2], upper=upper),
    ]
    found = [(one if mended is None else mended(one)) * alpha for one in found]
    plain, best = judged.best(found[:1]), judged.best(found)
    place = next(place for place, one in enumerate(found) if one is best.weight)
    said = NEAREST.format("compensation finds nothing better")
    if place:
        said = f"answers {judged.decibels(best.error)}, {judged.decibels(plain.error)} by nearest levels"
    return Rounded(best, rules[place], said)
