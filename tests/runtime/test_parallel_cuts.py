"""Where a pipeline is cut, against all ways that there are."""

from collections.abc import Iterator, Sequence
from itertools import combinations, pairwise

from hypothesis import given
from hypothesis import strategies as st

from onnx_lathe.runtime.training.parallel.cuts import SLACK, cuts

Case = tuple[list[float], list[float], list[bool], int, list[tuple[int, int]], float]


@st.composite
def cases(draw: st.DrawFn) -> Case:
    count = draw(st.integers(1, 8))
    seconds = draw(st.lists(st.floats(0, 10), min_size=count, max_size=count))
    crossing = draw(st.lists(st.integers(0, 9).map(float), min_size=count, max_size=count))
    layers = draw(st.lists(st.booleans(), min_size=count, max_size=count))
    steps = st.integers(0, count - 1)
    tied = draw(st.lists(st.tuples(steps, steps).map(lambda pair: (min(pair), max(pair))), max_size=2))
    return seconds, crossing, layers, draw(st.integers(1, 4)), tied, draw(st.floats(0, 5))


def slowest(bounds: Sequence[int], seconds: Sequence[float], after: float) -> float:
    times = [sum(seconds[first:end]) for first, end in pairwise(bounds)]
    return max(*times[:-1], times[-1] + after) if len(times) > 1 else times[0] + after


def every_way(case: Case) -> Iterator[tuple[int, ...]]:
    seconds, _, layers, stages, tied, _ = case
    for chosen in combinations(range(1, len(seconds)), stages - 1):
        held = all(any(layers[first:end]) for first, end in pairwise((0, *chosen, len(seconds))))
        if held and not any(first < cut <= last for cut in chosen for first, last in tied):
            yield chosen


@given(cases())
def test_stages_are_as_short_as_can_be_and_then_send_least(case: Case) -> None:
    seconds, crossing, _, _, _, after = case
    found, ways = cuts(*case), list(every_way(case))
    if not ways:
        assert found is None
        return
    assert found in ways
    lengths = {way: slowest((0, *way, len(seconds)), seconds, after) for way in ways}
    limit = min(lengths.values()) * (1 + SLACK)
    assert lengths[found] <= limit * (1 + 1e-9) + 1e-12
    least = min(
        sum(crossing[cut] for cut in way) for way in ways if lengths[way] <= limit * (1 - 1e-9) - 1e-12
    ) if any(lengths[way] <= limit * (1 - 1e-9) - 1e-12 for way in ways) else None  # fmt: skip
    assert least is None or sum(crossing[cut] for cut in found) <= least


def test_cuts_go_where_little_crosses() -> None:
    assert cuts([1.0] * 40, [9.0] * 20 + [1.0] + [9.0] * 19, [True] * 40, 2) == (20,)
    assert cuts([1.0] * 40, [9.0] * 19 + [1.0] + [9.0] * 20, [True] * 40, 2) == (19,)
    assert cuts([1.0] * 40, [9.0] * 10 + [1.0] + [9.0] * 29, [True] * 40, 2) != (10,)


def test_the_last_stage_has_less_to_do_where_the_original_model_runs_there() -> None:
    assert cuts([1.0] * 10, [0.0] * 10, [True] * 10, 2, after=4.0) == (7,)


def test_no_cut_tears_a_weight() -> None:
    assert cuts([1.0] * 4, [0.0] * 4, [True] * 4, 2, [(0, 2)]) == (3,)
    assert cuts([1.0] * 4, [0.0] * 4, [True] * 4, 2, [(0, 3)]) is None
    assert cuts([1.0] * 4, [0.0] * 4, [True, False, False, False], 2) is None
