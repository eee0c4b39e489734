"""Where to cut a list of steps into stages that take equally long.

The slowest stage sets the pace of a pipeline, so its time is made as small as it can be. Measured times
repeat to a few percent only; among the cuts that are that close to the best, those win that the fewest bytes
cross. Both by dynamic programming over (stages so far, next step), as PipeDream does: Narayanan et al.,
"PipeDream: Generalized Pipeline Parallelism for DNN Training", SOSP 2019, section 3.1.
"""

from collections.abc import Callable, Sequence

import numpy as np

SLACK = 0.05
"""Share by which the slowest stage may be slower than it need be, if fewer bytes cross then."""


def cuts(
    seconds: Sequence[float],
    crossing: Sequence[float],
    layers: Sequence[bool],
    stages: int,
    tied: Sequence[tuple[int, int]] = (),
    after: float = 0.0,
) -> tuple[int, ...] | None:
    """The numbers of the `stages` - 1 steps that begin a new stage, ascending; None if there is no way.

    `seconds[i]` is the time of step i; the last stage has `after` to do besides. `crossing[i]` are the bytes
    sent over a cut before step i. Every stage has a step that `layers` marks. No cut goes between the two
    steps of a pair in `tied`.
    """
    count = len(seconds)
    allowed = np.ones(count + 1, bool)
    for first, last in tied:
        allowed[first + 1 : last + 1] = False
    allowed[[0, count]] = True
    starts = np.concatenate(([0.0], np.cumsum(seconds)))
    ends = starts.copy()
    ends[count] += after
    marked = np.concatenate(([0], np.cumsum(layers)))

    def lengths(end: int) -> np.ndarray:
        """Seconds of a stage up to `end` by its first step; infinite where it cannot begin."""
        firsts = ends[end] - starts[:end]
        firsts[(marked[:end] == marked[end]) | ~allowed[:end]] = np.inf
        return firsts

    slowest, _ = _best(count, stages, lambda ways, end: np.maximum(ways, lengths(end)))
    if not np.isfinite(slowest):
        return None
    limit = slowest * (1 + SLACK)
    sent = np.asarray(crossing, float)

    def bytes_over(ways: np.ndarray, end: int) -> np.ndarray:
        over = ways + sent[:end]
        over[lengths(end) > limit] = np.inf
        return over

    return _best(count, stages, bytes_over)[1][1:]


def _best(
    count: int, stages: int, extended: Callable[[np.ndarray, int], np.ndarray]
) -> tuple[float, tuple[int, ...]]:
    """(least cost, first steps of the stages) of `count` steps in `stages` stages.

    `extended(ways, end)` is the cost up to `end` by the last stage's first step, where `ways` is the cost
    of what lies before it.
    """
    cost = np.full(count + 1, np.inf)
    cost[0] = 0.0
    begins: list[np.ndarray] = []
    for _ in range(stages):
        further = np.full(count + 1, np.inf)
        begin = np.zeros(count + 1, int)
        for end in range(1, count + 1):
            ways = extended(cost[:end], end)
            begin[end] = int(np.argmin(ways))
            further[end] = ways[begin[end]]
        cost = further
        begins.append(begin)
    found: list[int] = []
    end = count
    for begin in reversed(begins):
        end = int(begin[end])
        found.append(end)
    return float(cost[count]), tuple(reversed(found))
