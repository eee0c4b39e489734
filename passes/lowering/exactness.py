"""Which nodes cost the outputs what the canonical form keeps: computed on integers, they go back to float.

What this form loses against the model that int8 wrote is looked for by halves: of the quantized nodes, in the
order of the graph, the half goes on to be halved whose way back to float brings the outputs nearest to the
original's, as long as it is enough by itself. At most two trials for every halving.

Where bytes count more than the number of nodes, it is looked for from the other end: of all nodes in float, the half
with most bytes is tried back on integers; what the outputs can do without stays there, and what they cannot is halved.
Source: Zeller and Hildebrandt, "Simplifying and Isolating Failure-Inducing Input", IEEE TSE 28 (2), 2002, section 3.
"""

from collections.abc import Callable, Collection, Mapping, Sequence

LOSS_DB = 1.0
"""By which the outputs may be further from the original's than the canonical form's are."""

MOST_TRIALS = 32
"""Of a search by bytes: enough for two nodes to blame among a hundred, or all among 16."""


def inexact_nodes(
    names: Sequence[str], wanted: float, sqnr: Callable[[Collection[str]], float]
) -> tuple[list[str], float]:
    """(Few neighbours among `names`, quantized nodes in graph order, the sqnr with them in float), with which
    the outputs reach `wanted` dB. None of them where that is not enough with all in float.

    `sqnr`: of the outputs in dB, with the named nodes in float.
    """
    left, reached = list(names), sqnr(names) if names else float("-inf")
    if not reached >= wanted:
        return [], reached
    while len(left) > 1:
        middle = len(left) // 2
        halves = [(sqnr(half), half) for half in (left[:middle], left[middle:])]
        best, half = max(halves, key=lambda found: found[0])
        if not best >= wanted:
            break
        left, reached = half, best
    return left, reached


def light_nodes(
    sizes: Mapping[str, int], wanted: float, sqnr: Callable[[Collection[str]], float]
) -> tuple[list[str], float]:
    """(Quantized nodes of few bytes, the sqnr with them in float), with which the outputs reach `wanted` dB, in the order
    of `sizes`. None of them where that is not enough with all in float. None can be left out of what a finished search
    gives without the outputs missing it, by the trials that it made; after MOST_TRIALS it ends with what it has.

    `sizes`: of each node's weight, in values or bytes; `sqnr`: of the outputs in dB, with the named nodes in float.
    """
    left, reached = list(sizes), sqnr(list(sizes)) if sizes else float("-inf")
    if not reached >= wanted:
        return [], reached
    waiting = _halves(sorted(sizes, key=sizes.__getitem__, reverse=True))
    for _ in range(MOST_TRIALS):
        if not waiting:
            break
        group = waiting.pop(0)
        rest = [name for name in left if name not in group]
        found = sqnr(rest)
        if found >= wanted:
            left, reached = rest, found
        else:
            waiting = _halves(group) + waiting
    return left, reached


def _halves(names: Sequence[str]) -> list[Sequence[str]]:
    """Both halves; nothing of what cannot be halved."""
    middle = (len(names) + 1) // 2
    return [names[:middle], names[middle:]] if len(names) > 1 else []
