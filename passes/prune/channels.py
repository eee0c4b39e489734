"""prune(pattern=channels): whole channels leave the network, with everything that is coupled to them.

    Conv(W1 [O, I, ...], b1 [O]) -> Relu -> Conv(W2 [P, O, ...])
    Conv(W1 [O', I, ...], b1 [O']) -> Relu -> Conv(W2 [P, O', ...])       O' = O - round(sparsity * O)

The result is the network in which every weight that reads a removed channel is zero, and it is smaller and
faster on any runtime. Which channels go together is found by passes/graph/coupling/state.py: a group is all
that layers write into one sum, or what one layer writes alone. Importances are shares of a layer's, so that
layers compare; macs= takes the least importance per MAC saved first. Sources: Li et al., "Pruning Filters
for Efficient ConvNets", ICLR 2017; Molchanov et al., ICLR 2017, section 2; Fang et al., "DepGraph", CVPR
2023, sections 3.3 and 3.4.
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np

from onnx_lathe.errors import PassError
from onnx_lathe.passes.core.report import PassReport
from onnx_lathe.passes.core.services import Context
from onnx_lathe.passes.graph import Graph, Node
from onnx_lathe.passes.graph.coupling.analysis import couple
from onnx_lathe.passes.graph.coupling.removal import remove
from onnx_lathe.passes.graph.coupling.rules import positions
from onnx_lathe.passes.graph.coupling.state import WRITTEN, ChannelSets, Coupling
from onnx_lathe.passes.graph.layers import WEIGHT_INPUT, is_constant, is_layer, weights
from onnx_lathe.passes.graph.model import set_sparse_tensors, sparse_tensors
from onnx_lathe.passes.graph.patterns import by_weight
from onnx_lathe.passes.numerics.sparsity.channel_choice import (
    MOST,
    Cost,
    Savings,
    Shares,
    Thinning,
    round_up,
    thin_groups,
    thin_together,
)
from onnx_lathe.passes.prune.importance import importances


@dataclass(frozen=True)
class Amount:
    """How much goes: a share of each group's channels or of all, or down to a share `macs` of the MACs;
    `layers` by name pattern.
    """

    sparsity: float
    scope: str
    layers: Mapping[str, float]
    macs: float | None
    keep_multiple: int


@dataclass
class _Groups:
    """Units by root: the group of each (-1: none), and the layers that write each group, in graph order."""

    of: np.ndarray
    layers: dict[int, list[tuple[Node, np.ndarray]]]

    @classmethod
    def found(cls, coupling: Coupling, roots: np.ndarray) -> "_Groups":
        together = ChannelSets()
        together.fresh(roots.size)
        for _, written in coupling.births:
            members = np.unique(roots[written])
            together.tie(np.repeat(members[:1], members.size), members)
        groups, layers = np.full(roots.size, -1), dict[int, list[tuple[Node, np.ndarray]]]()
        for node, written in coupling.births:
            group = together.root(int(roots[written[0]]))
            groups[roots[written]] = group
            layers.setdefault(group, []).append((node, roots[written]))
        return cls(groups, layers)

    def widths(self) -> np.ndarray:
        """How many channels each unit is: int [units]. Layers that share a weight count once."""
        written = {
            node.inputs[WEIGHT_INPUT].name: units for layers in self.layers.values() for node, units in layers
        }
        return np.bincount(np.concatenate([np.zeros(0, np.int64), *written.values()]), minlength=self.of.size)


@dataclass(frozen=True)
class Plan:
    """What is to go: `removed`, bool by root of `coupling.units`; `free` is what might have gone."""

    coupling: Coupling
    groups: "_Groups"
    free: np.ndarray
    removed: np.ndarray


def prune_channels(graph: Graph, context: Context, importance: str, amount: Amount) -> PassReport:
    """Removes channels. Raises PassError if `macs` cannot be reached, or a service that `importance` needs
    is missing.
    """
    report = PassReport()
    plan = plan_channels(graph, context, importance, amount, report)
    if plan.removed.any():
        remove(graph, plan.coupling, plan.removed)
        _forget_patterns(graph, plan)
    _record(plan, report)
    return report


def plan_channels(
    graph: Graph, context: Context, importance: str, amount: Amount, report: PassReport
) -> Plan:
    """Chooses channels, changing nothing; `report` hears of layers and groups that stay as they are."""
    found = list(weights(graph, refuse=report.skip))
    single = by_weight(amount.layers, found, [skip.node for skip in report.skips], "prune(layers=...)")
    coupling = couple(graph)
    roots = coupling.units.roots(np.arange(len(coupling.units)))
    groups = _Groups.found(coupling, roots)
    shares = {group: _share(layers, single) for group, layers in groups.layers.items()}
    free = _free(coupling, groups, shares, report)
    if not free.any():
        return Plan(coupling, groups, free, np.zeros(roots.size, bool))
    context.progress("weighing channels")
    parts = importances(importance, graph, coupling, context)
    _leave_unknown(groups, free, parts, report)
    state = Thinning(roots.size, (roots[view] for view in coupling.views()), groups.of, free.copy())
    _thin(state, coupling, roots, groups, Shares(state, parts), shares, amount)
    return Plan(coupling, groups, free, state.removed)


def _share(layers: Sequence[tuple[Node, np.ndarray]], single: Mapping[str, float]) -> float | None:
    """The smallest share that the option `layers` gives for one of a group's layers."""
    given = [
        single[name] for name in (node.inputs[WEIGHT_INPUT].name for node, _ in layers) if name in single
    ]
    return min(given, default=None)


def _free(
    coupling: Coupling, groups: _Groups, shares: Mapping[int, float | None], report: PassReport
) -> np.ndarray:
    """Units that may go; a group without any is reported."""
    free = np.zeros(groups.of.size, bool)
    for group, layers in groups.layers.items():
        members = np.flatnonzero(groups.of == group)
        locks = {int(unit): coupling.units.lock_of(int(unit)) for unit in members}
        if shares[group] == 0:
            report.skip(layers[0][0].name, "its sparsity is set to 0")
        elif None not in locks.values():
            report.skip(layers[0][0].name, f"its channels stay: {next(iter(locks.values()))}")
        elif members.size == 1:
            alone = all(written.size == 1 for _, written in layers)
            reason = (
                "it has one channel"
                if alone
                else "its channels are coupled so that they could only go all together"
            )
            report.skip(layers[0][0].name, reason)
        else:
            free[[unit for unit, lock in locks.items() if lock is None]] = True
    return free


def _leave_unknown(
    groups: _Groups, free: np.ndarray, parts: Sequence[tuple[np.ndarray, np.ndarray]], report: PassReport
) -> None:
    """Groups of which no importance is known, or one is not a number, stay."""
    known, broken = np.zeros(free.size, bool), np.zeros(free.size, bool)
    for units, values in parts:
        known[units] = True
        broken[units[~np.isfinite(values)]] = True
        values[~np.isfinite(values)] = 0
    for group, layers in groups.layers.items():
        mine = groups.of == group
        if not (mine & free).any():
            continue
        if broken[mine].any():
            report.skip(
                layers[0][0].name,
                "its channels cannot be compared: weights or activations have NaN or infinite elements",
            )
        elif not known[mine & free].any():
            report.skip(layers[0][0].name, "nothing says how important its channels are; give importance=l2")
        else:
            continue
        free[mine] = False


def _thin(
    state: Thinning,
    coupling: Coupling,
    roots: np.ndarray,
    groups: _Groups,
    importance: Shares,
    shares: Mapping[int, float | None],
    amount: Amount,
) -> None:
    views = {group: [written for _, written in layers] for group, layers in groups.layers.items()}
    savings = Savings(state, list(_costs(coupling, state, roots))) if amount.macs is not None else None
    before = 0.0 if savings is None else savings.macs()
    if savings is None and amount.scope == "layer":
        thin_groups(
            state,
            importance(),
            groups.widths(),
            {group: amount.sparsity if share is None else share for group, share in shares.items()},
        )
        round_up(state, views, amount.keep_multiple)
        return
    thin_groups(
        state,
        importance(),
        groups.widths(),
        {group: share for group, share in shares.items() if share is not None},
    )
    competing = [
        group for group, share in shares.items() if share is None and state.free[groups.of == group].any()
    ]
    members = np.isin(groups.of, competing)
    state.free &= members
    if savings is None:
        widths = groups.widths() * members
        wanted = round(amount.sparsity * int(widths.sum()))
        thin_together(
            state, importance, lambda: int(widths[state.removed].sum()) >= wanted, max(MOST, amount.sparsity)
        )
        round_up(state, views, amount.keep_multiple)
        return
    goal = wanted_macs = (amount.macs or 0.0) * before
    while True:  # rounding up gives some back, so that more has to go
        thin_together(
            state, lambda: importance() / np.maximum(savings(), 1e-30), partial(_at_most, savings, goal)
        )
        reached = savings.macs()
        round_up(state, views, amount.keep_multiple)
        if savings.macs() <= wanted_macs:
            return
        if reached > goal:
            left = 100 * savings.macs() / before
            raise PassError(
                f"prune(macs={amount.macs:g}) cannot be reached: {left:.3g} % of the MACs are left when no more may go; give more"
            )
        goal = reached - (savings.macs() - wanted_macs)


def _at_most(savings: Savings, goal: float) -> bool:
    return savings.macs() <= goal


def _costs(coupling: Coupling, state: Thinning, roots: np.ndarray) -> Iterator[Cost]:
    """MACs of every layer, those that lose nothing included. Raises PassError where they are not known."""
    known = {id(use.node): use for use in coupling.layers}
    for node in coupling.graph.nodes:
        if not is_layer(node) or (node.op == "MatMul" and not is_constant(node.inputs[WEIGHT_INPUT])):
            continue
        shape, use = coupling.shape(node.inputs[WEIGHT_INPUT]), known.get(id(node))
        times = positions(coupling, node)
        if times is None or shape is None or not all(isinstance(size, int) for size in shape):
            raise PassError(
                f"prune(macs=...) counts MACs, but the shapes at {node.name} are not known; fix the sizes of the model's inputs"
            )
        name = node.inputs[WEIGHT_INPUT].name
        slots = (
            []
            if use is None
            else [coupling.slots[name, axis] for axis in range(len(shape)) if (name, axis) in coupling.slots]
        )
        views = tuple(state.number(roots[slot.units]) for slot in slots)
        yield Cost(
            times
            * math.prod(int(size or 0) for size in shape)
            / math.prod(slot.units.size for slot in slots),
            views,
        )


def _forget_patterns(graph: Graph, plan: Plan) -> None:
    """A weight that lost inputs may no longer be N:M along them; its zeros stay."""
    sparse, roots = sparse_tensors(graph), plan.coupling.units.roots(np.arange(len(plan.coupling.units)))
    for (name, _), slot in plan.coupling.slots.items():
        if name in sparse and slot.role != WRITTEN and plan.removed[roots[slot.units]].any():
            sparse[name] = "unstructured"
    set_sparse_tensors(graph, sparse)


def _record(plan: Plan, report: PassReport) -> None:
    for group, layers in plan.groups.layers.items():
        lost = [(node, int(plan.removed[written].sum()), written.size) for node, written in layers]
        shorter = [(node.name, count, size) for node, count, size in lost if count]
        if shorter:
            (name, count, size), *others = shorter
            named = ", ".join(other for other, _, _ in others[:3]) + (
                f" and {len(others) - 3} more" if len(others) > 3 else ""
            )
            report.edit(
                name,
                f"{count} of {size} channels are removed" + (f", with those of {named}" if others else ""),
            )
        elif (plan.free & (plan.groups.of == group)).any():
            report.skip(layers[0][0].name, "none of its channels is among the least important")
    prunable = plan.groups.widths() * np.isin(plan.groups.of, np.unique(plan.groups.of[plan.free]))
    if prunable.any():
        report.metrics["channels_removed"] = float(prunable[plan.removed].sum() / prunable.sum())
