"""Two models side by side: layers of the same name or result, operators before and after, and how the totals changed."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from onnx_lathe.optimizer.inspecting.rows import Inspection, Row, Whole

METRICS: Mapping[str, Callable[[Whole], float | None]] = {
    "parameters": lambda whole: whole.parameters,
    "weights": lambda whole: whole.weights,
    "weight_bytes": lambda whole: whole.weight_bytes,
    "sparsity": lambda whole: whole.sparsity,
    "macs": lambda whole: whole.macs,
    "activations": lambda whole: whole.activations,
    "activation_bytes": lambda whole: whole.activation_bytes,
    "energy": lambda whole: None if whole.energy is None else whole.energy.total,
    "training_bytes": lambda whole: whole.training_bytes,
    "ms": lambda whole: whole.ms,
}
IN_UNCOUNTED = {
    "weights": "parameters",
    "activation_bytes": "activations",
    "energy": "energies",
    "training_bytes": "training",
}
"""Metric -> the name under which Whole.uncounted says what it leaves out, where that is another."""


@dataclass(frozen=True)
class Change:
    """A total of both models; `ratio` is before over after. None for what is not fully counted in one of them."""

    before: float | None
    after: float | None

    @property
    def ratio(self) -> float | None:
        return self.before / self.after if self.before and self.after else None


@dataclass(frozen=True)
class Comparison:
    """`layers`: rows of both, None where one model has no such layer. `operators`: how often each is there."""

    before: Inspection
    after: Inspection
    layers: Sequence[tuple[Row | None, Row | None]]
    operators: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    totals: Mapping[str, Change] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        return {
            "before": self.before.as_json(),
            "after": self.after.as_json(),
            "layers": [
                {"before": None if one is None else one.node, "after": None if other is None else other.node}
                for one, other in self.layers
            ],
            "operators": {op: {"before": one, "after": other} for op, (one, other) in self.operators.items()},
            "totals": {
                name: {"before": one.before, "after": one.after, "ratio": one.ratio}
                for name, one in self.totals.items()
            },
        }


def compare(before: Inspection, after: Inspection) -> Comparison:
    """Layers are those with weights or MACs."""
    counts = before.whole.operators, after.whole.operators
    return Comparison(
        before,
        after,
        _pairs(*([row for row in one.layers if row.counts] for one in (before, after))),
        {op: (counts[0].get(op, 0), counts[1].get(op, 0)) for op in sorted({*counts[0], *counts[1]})},
        {name: Change(_known(before.whole, name), _known(after.whole, name)) for name in METRICS},
    )


def _known(whole: Whole, name: str) -> float | None:
    return None if IN_UNCOUNTED.get(name, name) in whole.uncounted else METRICS[name](whole)


def _pairs(before: Sequence[Row], after: Sequence[Row]) -> list[tuple[Row | None, Row | None]]:
    """In the order of the first; what only the second has stands behind the layer that it follows there."""
    places = {(row.place, row.node): index for index, row in enumerate(after)}
    found: list[tuple[Row | None, Row | None]] = []
    done = 0
    for row in before:
        place = places.get((row.place, row.node))
        if place is None or place < done:
            found.append((row, None))
            continue
        found += [(None, new) for new in after[done:place]]
        found.append((row, after[place]))
        done = place + 1
    return found + [(None, new) for new in after[done:]]
