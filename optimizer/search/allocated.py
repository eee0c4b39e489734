"""First settings that the passes choose themselves: each shares out a budget over the layers by its own measure of them,
and says what every layer got.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from onnx_lathe.errors import LatheError
from onnx_lathe.optimizer.recipe import Call
from onnx_lathe.optimizer.search.bench import Bench
from onnx_lathe.optimizer.search.clock import Clock
from onnx_lathe.optimizer.search.layerwise import weakest
from onnx_lathe.optimizer.search.proposals import UNIFORM
from onnx_lathe.optimizer.search.space import Dimension, Value
from onnx_lathe.optimizer.step import apply_pass
from onnx_lathe.passes.core.options import configure
from onnx_lathe.passes.core.registry import find

SHARE = 0.15
"""Of the budget that the passes' own allocations may take."""
Progress = Callable[[str], None]


@dataclass(frozen=True)
class Budget:
    """The option that says how much all layers together keep or lose, `amounts` of it, those likeliest to pass just so
    first, and options that go with it. `idle`: options of the same purpose, with which the pass has no budget.
    """

    option: str
    amounts: tuple[float, ...]
    others: Mapping[str, Any]
    idle: frozenset[str] = frozenset()


RANKS = Budget("macs", (0.6, 0.7, 0.5, 0.8, 0.4, 0.9), {}, frozenset({"rank", "energy", "macs"}))
BUDGETS: Mapping[str, Budget] = {
    "svd": RANKS,
    "tucker": RANKS,
    "prune": Budget("sparsity", (0.5, 0.6, 0.4, 0.7, 0.3), {"scope": "global"}, frozenset({"sparsity"})),
}


def allocated(bench: Bench, clock: Clock, progress: Progress) -> list[dict[str, Value]]:
    """Settings as the first step that is tuned shares out each of its budgets, later steps at the first of their
    uniform strengths; of equal ones the first. None of passes without a budget, and none where candidates are put
    together of layers: there the table is whole, and its own allocations, over all steps, are better ones. What the time
    does not suffice for is left out.
    """
    if bench.composer is not None:
        return []
    steps = bench.space.tuned
    index = steps[0] if steps else 0
    call = bench.space.steps[index]
    budget = BUDGETS.get(call.name)
    own = [one for one in bench.space.dimensions if one.step == index and one.layer]
    if budget is None or not own or not budget.idle.isdisjoint(call.options):
        return []
    base = {**weakest(bench.space), **_others(bench, index)}
    ends = clock.left * (1 - SHARE)
    found: dict[str, dict[str, Value]] = {}
    for amount in budget.amounts:
        if clock.left <= ends:
            break
        progress(f"{call.name} with {budget.option}={amount:g}, as it shares it out")
        chosen = _chosen(bench, Call(call.name, {**call.options, **budget.others, budget.option: amount}))
        settings = {**base, **{one.name: _nearest(one, chosen.get(one.layer, 0)) for one in own}}
        if chosen:
            found.setdefault(repr(sorted(settings.items())), settings)
    return list(found.values())


def _chosen(bench: Bench, call: Call) -> Mapping[str, float]:
    """What each weight got; nothing if the pass refuses."""
    try:
        _, report = apply_pass(
            configure(find(call.name), call.options), bench.base, bench.services.context("allocations")
        )
    except LatheError:
        return {}
    return report.chosen


def _others(bench: Bench, index: int) -> dict[str, Value]:
    return {
        one.name: one.levels[round(UNIFORM[1] * (len(one.levels) - 1))]
        for one in bench.space.dimensions
        if one.levels and one.step != index
    }


def _nearest(one: Dimension, value: float) -> Value:
    """Of the ladder, of two as near the weaker. Where the first is 0 and the second the largest, as of ranks, 0 is the
    whole layer, and near to nothing else.
    """
    levels = [level for level in one.levels if isinstance(level, int | float)]
    if value and levels[0] == 0 and levels[1] > levels[-1]:
        levels = levels[1:]
    return min(levels, key=lambda level: abs(level - value))
