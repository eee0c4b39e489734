"""A first look without retraining, for trials that retrain: what is more drastic than a setting that failed after its
training will fail too.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from onnx_lathe.optimizer.recipe import Call
from onnx_lathe.optimizer.search.space import Dimension
from onnx_lathe.passes.core.options import configure
from onnx_lathe.passes.core.registry import find

RULED_OUT = "smaller and noisier than a setting that failed after its training"


@dataclass
class Failures:
    """(cost, noise before training) of settings that missed the gates after their training."""

    known: list[tuple[float, float]] = field(default_factory=list)

    def add(self, cost: float, noise: float) -> None:
        self.known.append((cost, noise))

    def rules_out(self, cost: float, noise: float) -> bool:
        return any(cost <= failed and noise >= noisy for failed, noisy in self.known)


def trains(step: Call) -> bool:
    return "trainer" in configure(find(step.name), step.options).needs


def without_training(steps: Sequence[Call]) -> list[Call]:
    """The steps without those that do nothing but train, and others at once in place of during a training."""
    found = []
    for step in steps:
        if step.options.get("training") is not None:
            found.append(Call(step.name, _without(step.options)))
        elif not trains(step):
            found.append(step)
    return found


def _without(options: Any) -> dict[str, Any]:
    """Options that a pass refuses without training go with it."""
    meanwhile = ("training", "schedule", "rounds", "until", "settle", "regrow", "every", "freeze")
    return {name: value for name, value in options.items() if name not in meanwhile}


def looks_first(steps: Sequence[Call], dimensions: Sequence[Dimension]) -> bool:
    """Whether a look without training tells something: something trains, and nothing of the training is searched."""
    training = {index for index, step in enumerate(steps) if trains(step)}
    only = {index for index in training if steps[index].options.get("training") is None}
    return bool(training) and not any(one.step in only or one.option[0] == "training" for one in dimensions)
