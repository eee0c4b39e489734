"""What each layer's settings cost and how much they harm, measured layer by layer before the first trial."""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from onnx_lathe.errors import LatheError
from onnx_lathe.optimizer.search.bench import Bench
from onnx_lathe.optimizer.search.clock import Clock
from onnx_lathe.optimizer.search.hull import Exploring, lower_hull
from onnx_lathe.optimizer.search.judging import noise
from onnx_lathe.optimizer.search.layerwise import Composer, combinations, layers, weakest
from onnx_lathe.optimizer.search.proposals import Option
from onnx_lathe.optimizer.search.sensitivity import alone
from onnx_lathe.optimizer.search.space import Dimension, Value

SHARE = 0.25
"""Of the budget that the profile may take."""
SAMPLED = 4
"""Strengths of each dimension that are measured where the others follow from how far the weights moved."""
RUNS = 110
"""Of the passes, each with another setting for every layer: more find the hull by some thousandths of a bit better."""
LEAST_NOISE = 1e-9

Progress = Callable[[str], None]


def measure_table(bench: Bench, clock: Clock, progress: Progress) -> dict[str, list[Option]]:
    """Layer -> its options. What the time does not suffice for is left out."""
    if not layers(bench.space):
        return {}
    begun, ends = clock.left, clock.left * (1 - SHARE)
    if bench.composer is not None:
        half = (begun + ends) / 2
        return _by_weights(
            bench, bench.composer, lambda: clock.left > ends, lambda: clock.left > half, progress
        )
    return _by_trials(bench, lambda: clock.left > ends, progress)


def _coarse_first(levels: Sequence[Value]) -> list[Value]:
    """The levels in an order in which any beginning covers the ladder: the strongest, the middle, quarters."""
    order, step = list[int](), len(levels) - 1
    while step >= 1:
        order += [place for place in range(len(levels) - 1, -1, -step) if place not in order]
        step //= 2
    return [levels[place] for place in order]


def _by_weights(
    bench: Bench,
    composer: Composer,
    in_time: Callable[[], bool],
    first_half: Callable[[], bool],
    progress: Progress,
) -> dict[str, list[Option]]:
    """Noise is measured for a few strengths of each layer; for the others it follows from the squared change of the
    weights, or of what the layer answers, to which it is nearly proportional.
    """
    base, found = weakest(bench.space), dict[str, list[Option]]()
    names = layers(bench.space)
    changes = _changes(bench, composer, first_half, progress)
    original = bench.costs.base(bench.goal.minimize)
    for number, name in enumerate(names):
        if not in_time():
            break
        progress(f"sensitivity of {name}, {number + 1} of {len(names)}")
        curve = _noise_curve(bench, composer, base, changes[name], name)
        found[name] = [Option(mine, cost / original, curve(moved)) for mine, cost, moved in changes[name]]
    return found


def _changes(
    bench: Bench, composer: Composer, in_time: Callable[[], bool], progress: Progress
) -> dict[str, list[tuple[Mapping[str, Value], float, float]]]:
    """Layer -> (settings, packed bytes, harm as Composer has it): on the lower convex hull, and on the way
    there. Each run has another setting for every layer. What earlier steps do begins with nothing: where the last
    one has a price on its code, they add little.
    """
    names, base = layers(bench.space), weakest(bench.space)
    own = {name: [one for one in bench.space.dimensions if one.layer == name] for name in names}
    exploring = {
        name: Exploring(
            [len(one.levels) for one in dimensions],
            {axis for axis, one in enumerate(dimensions) if one.step == dimensions[-1].step},
        )
        for name, dimensions in own.items()
    }
    changes: dict[str, list[tuple[Mapping[str, Value], float, float]]] = {name: [] for name in names}
    for number in range(1, RUNS + 1):
        places = {name: place for name in names if (place := exploring[name].next()) is not None}
        if not places or not in_time():
            return changes
        progress(f"codes of {len(places)} layers, run {number} of at most {RUNS}")
        chosen = {
            name: {one.name: one.levels[at] for one, at in zip(own[name], place, strict=True)}
            for name, place in places.items()
        }
        settings = {**base, **dict(itertools.chain(*(mine.items() for mine in chosen.values())))}
        for name, place in places.items():
            changed = composer.layer(name, settings)
            moved = composer.harm(name, changed)
            exploring[name].add(place, changed.packed_bytes, moved)
            changes[name].append((chosen[name], changed.packed_bytes, moved))
    return changes


def _noise_curve(
    bench: Bench,
    composer: Composer,
    base: Mapping[str, Value],
    changes: Sequence[tuple[Mapping[str, Value], float, float]],
    layer: str,
) -> Callable[[float], float]:
    """Noise of the outputs by the squared change of the layer's weights: measured in a few places, in between and
    beyond on a double logarithmic scale.
    """
    kept = lower_hull([(packed_bytes, moved) for _, packed_bytes, moved in changes])
    hull = [changes[index] for index in kept if changes[index][2] > 0]
    if not hull:
        return lambda moved: 0.0
    places = np.unique(np.linspace(0, len(hull) - 1, min(SAMPLED, len(hull))).round().astype(int))
    single = composer.single()
    points = []
    for place in places:
        own, _, moved = hull[place]
        measured = bench.judges[0].measure(single.candidate({**_untouched(base), **own}))
        points.append((math.log(moved), math.log(max(noise(measured), LEAST_NOISE))))
    x, y = np.array(points).T
    y = np.maximum.accumulate(y)

    def curve(moved: float) -> float:
        if moved <= 0:
            return 0.0
        at = math.log(moved)
        if at < x[0]:  # noise is a quadratic form of small changes
            return float(math.exp(y[0] + at - x[0]))
        return float(math.exp(np.interp(at, x, y)))

    return curve


def _untouched(base: Mapping[str, Value]) -> dict[str, Value]:
    """Layers' strengths set to nothing, whether or not the ladder has it."""
    return {name: 0 if "[" in name else value for name, value in base.items()}


def _by_trials(bench: Bench, in_time: Callable[[], bool], progress: Progress) -> dict[str, list[Option]]:
    """Each strength of each layer is tried by itself; where a layer has several dimensions, harms and costs add up."""
    singles: dict[str, dict[Value, tuple[float, float]]] = {}
    work = [
        (rank, one, level)
        for one in bench.space.dimensions
        if one.layer
        for rank, level in enumerate(_coarse_first(one.levels))
        if level != one.levels[0]
    ]
    work.sort(key=lambda item: item[0])
    reference = _reference_cost(bench)
    for number, (_, one, level) in enumerate(work):
        if not in_time():
            break
        progress(f"sensitivity: {one.layer} at {level}, {number + 1} of {len(work)}")
        singles.setdefault(one.name, {})[level] = _tried(bench, one, level, reference)
    found: dict[str, list[Option]] = {}
    for layer in layers(bench.space):
        own = [one for one in bench.space.dimensions if one.layer == layer]
        options = []
        for mine in combinations(bench.space, layer):
            parts = [
                (0.0, 0.0)
                if mine[one.name] == one.levels[0]
                else singles.get(one.name, {}).get(mine[one.name])
                for one in own
            ]
            known = [part for part in parts if part is not None]
            if len(known) == len(parts):
                options.append(Option(mine, sum(c for c, _ in known), sum(h for _, h in known)))
        found[layer] = options
    return found


def _reference_cost(bench: Bench) -> float:
    """Of the model before the steps that are tuned, over the original's."""
    return bench.costs.of(bench.base, {bench.goal.minimize})[bench.goal.minimize] / bench.costs.base(
        bench.goal.minimize
    )


def _tried(bench: Bench, one: Dimension, level: Value, reference: float) -> tuple[float, float]:
    """(what is minimized, less than without it; noise)."""
    step = bench.space.steps[one.step]
    try:
        model = alone(bench.base, step, one, level, bench.services.context("sensitivity"))
        measured = bench.judges[0].measure(model)
        cost = bench.costs.of(model, {bench.goal.minimize})[bench.goal.minimize]
    except LatheError:
        return 0.0, math.inf
    return cost / bench.costs.base(bench.goal.minimize) - reference, noise(measured)
