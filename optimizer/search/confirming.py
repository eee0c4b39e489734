"""The winner is named on samples that have ranked nothing: the best of hundreds of trials has had luck on those that it
was chosen on.

A few candidates are confirmed, in an order that these samples have no part in: from one with so much to spare that it
is nearly sure to pass, down to the smallest, until one misses the gate. The one before it is the winner. A model that
misses the gate is named only if the first such model in the order passes by luck, so that each is judged with no more
than the margin that was asked for, however many they are (fixed sequence: Maurer, Hothorn and Lehmacher, "Multiple
comparisons in drug clinical trials and preclinical assays", 1995; of models: Angelopoulos et al., "Learn then Test",
2021, section 2). For that the whole order must be settled before the first candidate is confirmed: by trials on the
samples that choose, and by how many samples confirm, but never by what these say. Where the first one misses the gate
nothing is named, and no larger one is confirmed in its place: it would have a second chance. What can be done is done
before: trials that are larger than the best are measured whole where they have enough to spare.
Source of the bias: Cawley and Talbot, "On Over-fitting in Model Selection", JMLR 11, 2010, section 5.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from onnx_lathe.optimizer.gate import Gate
from onnx_lathe.optimizer.judging.metrics import of_data
from onnx_lathe.optimizer.search.judging import Leniency, Measured, Verdict, judged, noise
from onnx_lathe.optimizer.search.storage import Tried

SURENESS = (1.0, 0.5, 0.15, -math.inf)
"""What the candidates that are confirmed have, one after the other, of that which is nearly sure."""
ALIKE = 0.04
"""How much larger than the smallest a surer one may be that is confirmed in its place."""
LARGER = (0.16, 0.06, 0.02, 0.0)
"""How much larger than the smallest candidate the others may be that are confirmed before it, where the spread of a
metric is not known.
"""
MOST = len(SURENESS)

T = TypeVar("T")


def in_order(
    passed: Sequence[Tried],
    sureness: Callable[[Tried], float] | None = None,
    sure: float = 0.0,
    most: int = MOST,
) -> list[Tried]:
    """At most `most` of the trials that passed, the smallest last, each likelier to hold than the next. Of those that
    are so sure to be confirmed, or come nearest to that, the smallest, or one as small that is surer: the one that
    just seems sure has been lucky. `sureness`: of a trial; None if that cannot be told. `sure`: what is nearly sure.
    """
    if sureness is None or not passed:
        return _by_size(passed, most)
    known = {one.key: sureness(one) for one in passed}
    found: dict[str, Tried] = {}
    for share in SURENESS[:most]:
        wanted = sure * share if share > 0 else -math.inf
        able = [one for one in passed if known[one.key] >= min(wanted, max(known.values()))]
        least = min(one.outcome.ratio for one in able) * (1 + ALIKE * (share > 0))
        within = [one for one in able if one.outcome.ratio <= least]
        best = max(within, key=lambda one: (known[one.key], -one.outcome.ratio, -one.number))
        found[best.key] = best
    return list(found.values())


def _by_size(passed: Sequence[Tried], most: int) -> list[Tried]:
    """Of those up to each size the one with the least noise."""
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
