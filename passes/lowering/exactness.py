"""Which nodes cost the outputs what the canonical form keeps: computed on integers, they go back to float.

What this form loses against the model that int8 wrote is looked for by halves: of the quantized nodes, in the
order of the graph, the half goes on to be halved whose way back to float brings the outputs nearest to the
original's, as long as it is enough by itself. At most two trials for every halving.
"""

from collections.abc import Callable, Collection, Sequence

LOSS_DB = 1.0
"""By which the outputs may be further from the original's than the canonical form's are."""


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
