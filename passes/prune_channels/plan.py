"""Which channels are to go: those of groups that may lose some, by importance, as many as are asked for."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from onnx_lathe.passes.core.report import PassReport
from onnx_lathe.passes.core.services import Context
from onnx_lathe.passes.graph import Graph
from onnx_lathe.passes.graph.coupling.analysis import couple
from onnx_lathe.passes.graph.coupling.state import Coupling
from onnx_lathe.passes.graph.layers import WEIGHT_INPUT, weights
from onnx_lathe.passes.graph.patterns import by_weight
from onnx_lathe.passes.numerics.sparsity.channel_choice import Removal, Savings, Shares
from onnx_lathe.passes.prune_channels.allocation import Allocation
from onnx_lathe.passes.prune_channels.amount import Amount, Selection, layer_costs
from onnx_lathe.passes.prune_channels.answers import OBS, curves, places
from onnx_lathe.passes.prune_channels.groups import ChannelGroups
from onnx_lathe.passes.prune_channels.importance import importances


@dataclass(frozen=True)
class RemovalPlan:
    """What is to go: `removed`, bool by root of `coupling.units`; `free` is what might have gone."""

    coupling: Coupling
    groups: ChannelGroups
    free: np.ndarray
    removed: np.ndarray


def plan_channels(
    graph: Graph, context: Context, importance: str, amount: Amount, report: PassReport
) -> RemovalPlan:
    """Chooses channels, changing nothing; layers and groups that stay as they are become skips. Raises
    PassError if `amount.macs` cannot be reached, or a service that `importance` needs is missing.
    """
    found = list(weights(graph, refuse=report.skip))
    refused = [skip.node for skip in report.skips]
    single = by_weight(amount.layers, found, refused, "prune_channels(layers=...)")
    coupling = couple(graph)
    roots = coupling.units.roots(np.arange(len(coupling.units)))
    groups = ChannelGroups.found(coupling, roots)
    own = _own_sparsity(groups, single)
    free = _free(coupling, groups, own, report)
    if not free.any():
        return RemovalPlan(coupling, groups, free, np.zeros(roots.size, bool))
    context.progress("weighing channels")
    if importance == OBS:
        known = curves(graph, coupling, groups, free, amount, context, report)
        state = _state(coupling, roots, groups, free)
        selection: Selection = Allocation(state, groups, lambda: places(groups, known), own, amount, known)
    else:
        parts = importances(importance, graph, coupling, context)
        _leave_unknown(groups, free, parts, report)
        state = _state(coupling, roots, groups, free)
        selection = Selection(state, groups, Shares(state, parts), own, amount)
    if amount.macs is not None:
        selection.to_macs(amount.macs, Savings(state, list(layer_costs(coupling, state, roots))))
    elif amount.scope == "layer":
        selection.per_group()
    else:
        selection.globally()
    return RemovalPlan(coupling, groups, free, state.removed)


def _state(coupling: Coupling, roots: np.ndarray, groups: ChannelGroups, free: np.ndarray) -> Removal:
    return Removal(roots.size, (roots[view] for view in coupling.views()), groups.of, free.copy())


def _own_sparsity(groups: ChannelGroups, single: Mapping[str, float]) -> dict[int, float]:
    """By group, the smallest sparsity that the option `layers` gives for one of its layers, if any."""
    own = {}
    for group, layers in groups.layers.items():
        names = [node.inputs[WEIGHT_INPUT].name for node, _ in layers]
        given = [single[name] for name in names if name in single]
        if given:
            own[group] = min(given)
    return own


def _free(
    coupling: Coupling, groups: ChannelGroups, own: Mapping[int, float], report: PassReport
) -> np.ndarray:
    """Units that may go; a group without any is reported."""
    free = np.zeros(groups.of.size, bool)
    for group, layers in groups.layers.items():
        members = np.flatnonzero(groups.of == group)
        locks = {int(unit): coupling.units.lock_of(int(unit)) for unit in members}
        if own.get(group) == 0:
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
    groups: ChannelGroups,
    free: np.ndarray,
    parts: Sequence[tuple[np.ndarray, np.ndarray]],
    report: PassReport,
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
