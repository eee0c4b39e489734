"""Which quantized nodes do not pay: they and the quantizing around them take longer than they do in float.

Two profiles are compared, of the model with all layers in float and of the one lowered as it stands. A region
that computes on integers costs its kernels and the quantizing and dequantizing at its borders; in float, its
nodes alone. What takes longer on integers goes back to float, region by region and then layer by layer, and
stays there only if the whole model becomes faster by it: times of single nodes are hints, that of the model
counts.
"""

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import partial

import onnx

from onnx_lathe.passes.core.services import Profiler
from onnx_lathe.protocols import Profile

ROUNDS = 3
TRIALS = 3
"""Groups that are tried alone in a round, those that lose most first."""
SLOWER = 1.05
"""A region this much slower on integers does not pay; less is noise."""
LEAST_SHARE = 0.005
"""Of the model's time that must be at stake."""
FASTER = 0.99
"""What the whole model must become by it."""
ALLOWED = 1.03
"""A model on integers may take so much of float's time; else no layer pays."""

CONFIRMATIONS = 3
"""Measurements that must agree before anything is left out."""

Lower = Callable[[Collection[str]], onnx.ModelProto]


@dataclass(frozen=True)
class Cost:
    """Milliseconds of a layer's region on integers, and of the same nodes in float."""

    integers: float
    floats: float

    @property
    def loss(self) -> float:
        return self.integers - self.floats

    def __str__(self) -> str:
        return f"on integers it takes {self.integers:.3g} ms, with the quantizing around it, in float {self.floats:.3g} ms"


def slow_nodes(
    model: onnx.ModelProto, names: Collection[str], lower: Lower, profiler: Profiler
) -> dict[str, str] | None:
    """The quantized layers and operators among `names` that do not pay, each with the reason. `model` is in
    canonical form; `lower` gives it lowered, with the named ones in float. None for a model that is too large
    to tell.
    """
    left: dict[str, str] = {}
    base, current = lower(names), lower(())
    in_float = profiler.profile(base)
    if in_float is None:
        return None
    owners = _Owners(model)
    for _ in range(ROUNDS):
        profile = profiler.profile(current)
        if profile is None:
            break
        groups = _not_paying(in_float, profile, set(names) - left.keys(), owners)
        for found in [one for kind in groups for one in _trials(kind)]:
            trial = lower({*left, *found})
            if _holds(partial(_is_faster, profiler, current, trial)):
                left |= {name: str(cost) for name, cost in found.items()}
                current = trial
                break
        else:
            break
    if left.keys() != set(names) and _holds(partial(_is_slower_than, profiler, base, current)):
        whole, now = profiler.latencies(base, current)
        reason = f"the model takes {now:.3g} ms with layers on integers, and {whole:.3g} ms in float"
        return {name: left.get(name, reason) for name in names}
    return left


def pays(profiler: Profiler, in_float: onnx.ModelProto, model: onnx.ModelProto) -> bool:
    """Whether the model takes no longer than ALLOWED of the time in float."""
    return not _holds(partial(_is_slower_than, profiler, in_float, model))


def _trials(groups: list[dict[str, Cost]]) -> Iterator[dict[str, Cost]]:
    """What is tried: all groups together, then those that lose most alone, since a hint may be wrong."""
    if len(groups) > 1:
        yield {name: cost for group in groups for name, cost in group.items()}
    yield from sorted(groups, key=lambda group: next(iter(group.values())).loss, reverse=True)[:TRIALS]


def _is_faster(profiler: Profiler, model: onnx.ModelProto, trial: onnx.ModelProto) -> bool:
    before, after = profiler.latencies(model, trial)
    return after <= FASTER * before


def _is_slower_than(profiler: Profiler, in_float: onnx.ModelProto, model: onnx.ModelProto) -> bool:
    before, after = profiler.latencies(in_float, model)
    return after > ALLOWED * before


def _holds(found: Callable[[], bool]) -> bool:
    """Whether it is found again and again: something else may have run beside one measurement."""
    return all(found() for _ in range(CONFIRMATIONS))


class _Owners:
    """By the name of a node of the canonical model, the nearest nodes above it."""

    def __init__(self, model: onnx.ModelProto) -> None:
        producer = {name: node for node in model.graph.node for name in node.output}
        self.above = {
            node.name: [producer[name].name for name in node.input if name in producer]
            for node in model.graph.node
        }

    def owner(self, name: str, known: Mapping[str, int]) -> int | None:
        """The region of the nearest node above that has one: a ReLU is part of the convolution before it."""
        seen, ahead = set(), [name]
        while ahead:
            one = ahead.pop(0)
            if one in known:
                return known[one]
            if one not in seen:
                seen.add(one)
                ahead += self.above.get(one, [])
        return None


def _not_paying(
    in_float: Profile, profile: Profile, names: Collection[str], owners: _Owners
) -> tuple[list[dict[str, Cost]], list[dict[str, Cost]]]:
    """Regions that do not pay, and single nodes that do not."""
    least = LEAST_SHARE * profile.total
    region_of = {name: index for index, region in enumerate(profile.regions) for name in region.nodes}
    floats = dict.fromkeys(range(len(profile.regions)), 0.0)
    for name, ms in in_float.nodes.items():
        # what has a time of its own beside the regions is in float in both
        index = region_of.get(name)
        if index is None and name not in profile.nodes:
            index = owners.owner(name, region_of)
        if index is not None:
            floats[index] += ms
    found: list[dict[str, Cost]] = []
    for index, region in enumerate(profile.regions):
        cost, inside = Cost(region.ms, floats[index]), [name for name in region.nodes if name in names]
        if inside and _is_slower(cost, least):
            found.append(dict.fromkeys(inside, cost))
    return found, [{name: cost} for name, cost in _single_nodes(in_float, profile, names, least)]


def _single_nodes(
    in_float: Profile, profile: Profile, names: Collection[str], least: float
) -> Iterator[tuple[str, Cost]]:
    """What is slower by itself, inside regions that pay as a whole."""
    for name in names:
        if name not in in_float.nodes:  # there it is part of another kernel, and what it takes is not known
            continue
        cost = Cost(profile.nodes.get(name, 0.0), in_float.nodes[name])
        if _is_slower(cost, least):
            yield name, cost


def _is_slower(cost: Cost, least: float) -> bool:
    return cost.integers > SLOWER * cost.floats and cost.integers - cost.floats > least
