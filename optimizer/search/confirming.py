"""The winner is named on samples that have ranked nothing: the best of hundreds of trials has had luck on those that it
was chosen on.

At most `MOST` candidates are confirmed, the smallest first. Each must pass by a one-sided bound whose level is divided
among them (Bonferroni), so that all together let a model through that misses the gate no more often than one would by
the margin that was asked for.
Source of the bias: Cawley and Talbot, "On Over-fitting in Model Selection", JMLR 11, 2010, section 5.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Generic, TypeVar

from onnx_lathe.optimizer.gate import Gate
from onnx_lathe.optimizer.judging.metrics import of_data
from onnx_lathe.optimizer.search.judging import Leniency, Measured, Verdict, judged

MOST = 4

T = TypeVar("T")


def level(margin: float, most: int = MOST) -> float:
    """Standard errors that each of `most` candidates must have to spare; 0 for a margin of 0."""
    if margin <= 0:
        return 0.0
    normal = NormalDist()
    beyond = (1 - normal.cdf(margin)) / most
    # beyond eight standard errors a probability is 0 in floating point
    return margin if beyond <= 0 else max(margin, -normal.inv_cdf(beyond))


def confirm(gates: Sequence[Gate], base: dict[str, float], measured: Measured, errors: float) -> Verdict:
    """The gates about data, on the samples that confirm."""
    about = [gate for gate in gates if of_data(gate.metric)]
    return judged(about, base, measured, Leniency(-errors, at_bound=True))


@dataclass
class Named(Generic[T]):
    """`winner`: the first candidate that passed both; `near`: the first that passed neither or one. `tried`: how many
    were confirmed, or failed at that.
    """

    winner: T | None = None
    near: T | None = None
    tried: int = 0


def name_winner(
    candidates: Iterable[T], chosen: Callable[[T], bool], confirmed: Callable[[T], bool], most: int = MOST
) -> Named[T]:
    """The first of at most `most` candidates that passes as it is chosen, and is then confirmed."""
    found = Named[T]()
    for number, one in enumerate(candidates):
        if number >= most:
            break
        if chosen(one):
            found.tried += 1
            if confirmed(one):
                found.winner = one
                return found
        if found.near is None:
            found.near = one
    return found
