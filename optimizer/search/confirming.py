"""The winner is named on samples that have ranked nothing: the best of hundreds of trials has had luck on those that it
was chosen on.

A few candidates are confirmed, in an order that these samples have no part in: from one with bytes to spare down to
the smallest, until one misses the gate. The one before it is the winner. A model that misses the gate is named only
if the first such model in the order passes by luck, so that each is judged with no more than the margin that was asked
for, however many they are (fixed sequence: Maurer, Hothorn and Lehmacher, "Multiple comparisons in drug clinical
trials and preclinical assays", 1995; of models: Angelopoulos et al., "Learn then Test", 2021, section 2).
Source of the bias: Cawley and Talbot, "On Over-fitting in Model Selection", JMLR 11, 2010, section 5.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from onnx_lathe.optimizer.gate import Gate
from onnx_lathe.optimizer.judging.metrics import of_data
from onnx_lathe.optimizer.search.judging import Leniency, Measured, Verdict, judged, noise
from onnx_lathe.optimizer.search.storage import Tried

LARGER = (0.16, 0.06, 0.02, 0.0)
"""How much larger than the smallest candidate the others may be that are confirmed before it."""
MOST = len(LARGER)

T = TypeVar("T")


def in_order(passed: Sequence[Tried], most: int = MOST) -> list[Tried]:
    """At most `most` of the trials that passed, the smallest last: of those up to each size the one with the least
    noise, so that each is likelier to hold than the next.
    """
    if not passed:
        return []
    least = min(one.outcome.ratio for one in passed)
    found: dict[str, Tried] = {}
    for larger in LARGER[-most:]:
        within = [one for one in passed if one.outcome.ratio <= least * (1 + larger)]
        best = min(within, key=lambda one: (_noise(one), one.outcome.ratio, one.number))
        found[best.key] = best
    return sorted(found.values(), key=lambda one: -one.outcome.ratio)


def _noise(one: Tried) -> float:
    return noise(Measured(one.outcome.metrics))


def confirm(gates: Sequence[Gate], base: dict[str, float], measured: Measured, margin: float) -> Verdict:
    """The gates about data, on the samples that confirm."""
    about = [gate for gate in gates if of_data(gate.metric)]
    return judged(about, base, measured, Leniency(-margin, at_bound=True))


@dataclass
class Named(Generic[T]):
    """`winner`: the last candidate that passed both; `near`: the one that passed neither or one. `tried`: how many
    were confirmed, or failed at that.
    """

    winner: T | None = None
    near: T | None = None
    tried: int = 0


def name_winner(
    candidates: Sequence[T], chosen: Callable[[T], bool], confirmed: Callable[[T], bool]
) -> Named[T]:
    """The last of the candidates, in order, before one that is not confirmed; those that do not pass as they are chosen
    are left out.
    """
    found = Named[T]()
    for one in candidates:
        if not chosen(one):
            found.near = found.near or one
            continue
        found.tried += 1
        if not confirmed(one):
            found.near = one
            break
        found.winner = one
    return found
