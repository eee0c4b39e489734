"""Chooses how workers share each layer, by the cost model, with memory as a constraint.

Dynamic programming along the list of layers: a state is the layouts of all results that a later layer still reads, so
branches are counted exactly (as by Jia et al., "Exploring Hidden Dimensions in Parallelizing Convolutional Neural
Networks", ICML 2018, who eliminate nodes and edges of the graph). What is chosen among: Dryden et al., "Improving
Strong-Scaling of CNN Training by Exploiting Finer-Grained Parallelism", IPDPS 2019, and "Channel and Filter Parallelism for
Large-Scale CNN Training", SC 2019; Jia, Zaharia and Aiken, "Beyond Data and Model Parallelism for Deep Neural Networks",
MLSys 2019.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from onnx_lathe.errors import UsageError
from onnx_lathe.runtime.training.parallel.costs import (
    BATCH,
    CHANNELS,
    HEIGHT,
    WAYS,
    WHOLE,
    Cost,
    Group,
    Machine,
    cost_of,
    move,
    refusal,
    way_of,
)
from onnx_lathe.runtime.training.parallel.geometry import CONCAT, JOIN, Layer

LAYOUTS = (WHOLE, HEIGHT, CHANNELS)
"""Among which `choose` chooses unasked."""
STATES = 512
"""Of so many states, and LABELS plans of each, the fastest and those of least memory go on: a bound on time and memory for
networks with very many branches at once.
"""
LABELS = 24


@dataclass(frozen=True)
class Placed:
    """A layer, how it is shared, and what it costs with the moves of what it reads."""

    layer: Layer
    way: str
    cost: Cost
    reason: str = ""

    @property
    def makes(self) -> str:
        return WAYS[self.way].makes


class _Plan(NamedTuple):
    """The best way to a state; `before` leads back to the first layer."""

    seconds: float
    memory: float
    way: str
    before: "_Plan | None"


State = tuple[tuple[int, str], ...]
"""(place, layout) of each result that a later layer reads."""


def choose(
    layers: Sequence[Layer], group: Group, machine: Machine, layouts: Collection[str] = LAYOUTS
) -> list[Placed]:
    """The ways that take least time together and fit in a worker's memory, with a reason each.

    Raises UsageError if none fits.
    """
    best = _search(layers, group, _roomy(machine), layouts, constrained=False)
    if best is None or best.memory > machine.memory:
        best = _search(layers, group, machine, layouts, constrained=True)
    if best is None:
        least = _search(layers, group, _roomy(machine), layouts, constrained=True, smallest=True)
        needed = "more than all ways have" if least is None else f"{least.memory / 1e9:.3g} GB at least"
        raise UsageError(
            f"{group.workers} workers of {machine.memory / 1e9:.3g} GB each cannot hold the network: it takes {needed}; "
            "give more workers or a smaller batch"
        )
    placed = follow(layers, _ways(best), group)
    return [_reasoned(placed, place, group, machine, layouts) for place in range(len(placed))]


def _roomy(machine: Machine) -> Machine:
    """The machine with memory for anything."""
    return replace(machine, memory=float("inf"))


def follow(layers: Sequence[Layer], ways: Sequence[str], group: Group) -> list[Placed]:
    """The layers by ways that are given. Raises UsageError for one that a layer does not go."""
    placed: list[Placed] = []
    read = {place for layer in layers for place in layer.reads}
    for number, (layer, way) in enumerate(zip(layers, ways, strict=True)):
        cost = cost_of(layer, way, group)
        if number not in read:
            cost = plus(cost, _end(layer, way, group))
        for place in layer.reads:
            cost = plus(cost, move(layers[place].result_size, placed[place].makes, WAYS[way].reads, group))
        placed.append(Placed(layer, way, cost))
    return placed


def uniform(layers: Sequence[Layer], strategy: str, group: Group) -> list[Placed]:
    """One strategy ("data", "height", "width", "filter", "channel", "whole") wherever a layer can: in a spatial split
    what reads flattened rows is cut by channels, and what cannot be shared runs whole.
    """
    ways: list[str] = []
    for layer in layers:
        wishes = _wishes(layer, strategy, [WAYS[ways[place]].makes for place in layer.reads])
        ways.append(next(way for way in wishes if not refusal(layer, way, group.workers)))
    return follow(layers, ways, group)


def _wishes(layer: Layer, strategy: str, made: Sequence[str]) -> Iterable[str]:
    if strategy == "data":
        return ("data",)
    wishes = [] if strategy == "whole" else [way_of(layer, strategy)]
    read = next((one for one in made if one != WHOLE), WHOLE)
    if read == CHANNELS:
        wishes = ["local", *(["channel"] if strategy in ("height", "width") else wishes)]
    elif strategy in ("height", "width") and read == strategy:
        wishes += (
            ["sum of rows", "rows to channels"]
            if read == HEIGHT
            else ["sum of columns", "columns to channels"]
        )
    elif made:  # nothing that is whole is cut again by rows: the height ended before
        wishes = [one for one in wishes if one not in ("height", "width")]
    if layer.kind not in ("conv", "gemm"):
        wishes = [one for one in wishes if one not in ("filter", "channel")]
    return (*wishes, "whole")


def _end(layer: Layer, way: str, group: Group) -> Cost:
    """Every worker computes the loss of samples that it has whole."""
    made = WAYS[way].makes
    return Cost() if made == BATCH else move(layer.result_size, made, WHOLE, group)


def plus(cost: Cost, other: Cost) -> Cost:
    """The cost with a move."""
    return replace(cost, moved=cost.moved + other.moved, moves=cost.moves + other.moves)


def _options(layer: Layer, made: Sequence[str], layouts: Collection[str], workers: int) -> list[str]:
    """Ways that the layer can go. A join takes the layout of the first result that is cut."""
    allowed = {WHOLE, *layouts}
    found = [
        way.name
        for way in WAYS.values()
        if way.reads in allowed and way.makes in allowed and not refusal(layer, way.name, workers)
    ]
    if layer.kind in (JOIN, CONCAT):
        first = next((one for one in made if one != WHOLE), WHOLE)
        fitting = [way for way in found if WAYS[way].reads == first]
        return fitting or ["whole"]
    return found


def _search(
    layers: Sequence[Layer],
    group: Group,
    machine: Machine,
    layouts: Collection[str],
    constrained: bool,
    smallest: bool = False,
) -> _Plan | None:
    last = {place: number for number, layer in enumerate(layers) for place in layer.reads}
    states: dict[State, list[_Plan]] = {(): [_Plan(0.0, 0.0, "", None)]}
    for number, layer in enumerate(layers):
        found: dict[State, list[_Plan]] = {}
        costs: dict[str, Cost] = {}
        for state, plans in states.items():
            live = dict(state)
            made = [live[place] for place in layer.reads]
            for way in _options(layer, made, layouts, group.workers):
                if way not in costs:
                    own = cost_of(layer, way, group)
                    costs[way] = own if number in last else plus(own, _end(layer, way, group))
                cost = costs[way]
                seconds = machine.seconds(cost)
                for place in layer.reads:
                    moved = move(layers[place].result_size, live[place], WAYS[way].reads, group)
                    seconds += machine.communication(moved.moves, moved.sent)
                after = {place: layout for place, layout in live.items() if last[place] > number}
                if number in last:
                    after[number] = WAYS[way].makes
                reached = found.setdefault(tuple(sorted(after.items())), [])
                reached += [
                    _Plan(plan.seconds + seconds, plan.memory + cost.memory, way, plan)
                    for plan in plans
                    if plan.memory + cost.memory <= machine.memory
                ]
        states = _pruned(found, constrained)
    ends = [plan for plans in states.values() for plan in plans]
    by = (lambda plan: plan.memory) if smallest else (lambda plan: plan.seconds)
    return min(ends, key=by, default=None)


def _pruned(states: Mapping[State, list[_Plan]], constrained: bool) -> dict[State, list[_Plan]]:
    """Of each state the plans that no other beats in both time and memory; without a constraint the fastest alone."""
    kept = {}
    for state, plans in states.items():
        plans = sorted(plans, key=lambda plan: plan[:2])
        frontier: list[_Plan] = []
        for plan in plans:
            if not frontier or (constrained and plan.memory < frontier[-1].memory):
                frontier.append(plan)
        if len(frontier) > LABELS:
            step = (len(frontier) - 1) / (LABELS - 1)
            frontier = [frontier[round(place * step)] for place in range(LABELS)]
        if frontier:
            kept[state] = frontier
    if len(kept) <= STATES:
        return kept
    fastest = sorted(kept, key=lambda state: kept[state][0].seconds)[: STATES // 2]
    smallest = sorted(kept, key=lambda state: kept[state][-1].memory)[: STATES // 2]
    return {state: kept[state] for state in dict.fromkeys([*fastest, *smallest])}


def _ways(plan: _Plan) -> list[str]:
    found: list[str] = []
    while plan.before is not None:
        found.append(plan.way)
        plan = plan.before
    return found[::-1]


def _reasoned(
    placed: Sequence[Placed], place: int, group: Group, machine: Machine, layouts: Collection[str]
) -> Placed:
    """With what the way takes, and the next best one from the same layouts."""
    one = placed[place]
    layer = one.layer
    if not layer.product(1).flops:
        return replace(one, reason=f"in the layout of what it reads: {WAYS[one.way].makes}")
    made = [(placed[at].layer.result_size, placed[at].makes) for at in layer.reads]
    taken = _said(one.cost, machine)
    others = []
    for way in _options(layer, [layout for _, layout in made], layouts, group.workers):
        if way == one.way:
            continue
        cost = cost_of(layer, way, group)
        for elements, layout in made:
            cost = plus(cost, move(elements, layout, WAYS[way].reads, group))
        others.append((machine.seconds(cost), f"{way} {_said(cost, machine)}"))
    refused = [
        f"{way}: {reason}"
        for way in ("height", "filter", "channel")
        if WAYS[way].reads in {WHOLE, *layouts}
        and WAYS[way].makes in {WHOLE, *layouts}
        and (reason := refusal(layer, way, group.workers))
    ]
    next_best = f"; next {min(others)[1]}" if others else ""
    if others and min(others)[0] < machine.seconds(one.cost):
        next_best = f"; {min(others)[1]} alone, but the layers behind it gain more"
    why_not = f"; {', '.join(refused)}" if refused and not others else ""
    return replace(one, reason=f"{taken}{next_best}{why_not}")


def _said(cost: Cost, machine: Machine) -> str:
    """ "1.20 ms (0.90 arithmetic, 4.82 MB sent)"."""
    return (
        f"{1e3 * machine.seconds(cost):.3g} ms ({1e3 * machine.arithmetic(cost):.3g} arithmetic, "
        f"{cost.sent / 1e6:.3g} MB sent)"
    )
