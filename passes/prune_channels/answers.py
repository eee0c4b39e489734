"""importance=obs: which channels the layers that read them can best do without, on calibration data; and what is left,
fitted to what the network answered before.

A group's channels go one after another, each time the one whose part the others can best stand in for, added up over all
layers that read the group (passes/numerics/second_order/elimination.py). Where groups compete, each loses as many as cost
all together least: what layers lose at each number of channels is measured on samples that are kept apart, and what that
is worth at the outputs of the network (passes/prune_channels/outputs.py).
Sources: Frantar and Alistarh, "Optimal Brain Compression", NeurIPS 2022; "SPDY", ICML 2022, section 3.2.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import onnx

from onnx_lathe.passes.core.report import PassReport
from onnx_lathe.passes.core.services import Context
from onnx_lathe.passes.graph import Graph
from onnx_lathe.passes.graph.answers.aligned import Layer, layer_of
from onnx_lathe.passes.graph.answers.changing import measurable
from onnx_lathe.passes.graph.answers.fitting import fit_layers
from onnx_lathe.passes.graph.answers.outputs import LEAST, Outputs
from onnx_lathe.passes.graph.coupling.state import READ, Coupling, LayerUse
from onnx_lathe.passes.graph.initializers import read
from onnx_lathe.passes.graph.input_moments import ENOUGH_SAMPLES, few_samples, input_moments
from onnx_lathe.passes.graph.layers import WEIGHT_INPUT, other_use, weights
from onnx_lathe.passes.graph.model import export_model
from onnx_lathe.passes.graph.quantization.bias_places import bias_place
from onnx_lathe.passes.numerics.second_order.elimination import Reader, eliminate
from onnx_lathe.passes.numerics.second_order.moments import SplitMoments
from onnx_lathe.passes.numerics.sparsity.channel_choice import MOST
from onnx_lathe.passes.prune_channels.amount import Amount
from onnx_lathe.passes.prune_channels.groups import ChannelGroups
from onnx_lathe.passes.prune_channels.outputs import Part, worth

SAMPLES = 32
"""Calibration samples on which outputs are looked at for each group."""
OBS = "obs"
SETTINGS = 40
"""Of each group, numbers of channels that are measured, at most."""


@dataclass(frozen=True)
class Curve:
    """Of a group: its units in the order in which they go, and what it costs, [stops], when `stops` of them are out: what its
    readers lose, times what that is worth.
    """

    order: np.ndarray
    stops: np.ndarray
    losses: np.ndarray


@dataclass(frozen=True)
class _Source:
    """A layer that reads channels, and the unit of each of its inputs, int [groups, d]."""

    layer: Layer
    units: np.ndarray


def curves(
    graph: Graph,
    coupling: Coupling,
    groups: ChannelGroups,
    free: np.ndarray,
    amount: Amount,
    context: Context,
    report: PassReport,
) -> dict[int, Curve]:
    """Of each group that may lose channels; those of which it cannot be told what they cost are no
    longer `free`, and become skips. Raises PassError without calibration data.
    """
    context.need_calibrator()
    sources, wanted = _sources(graph, coupling, groups, free, report)
    for group in set(np.unique(groups.of[free]).tolist()) - set(wanted):
        _stay(groups, free, group, "no layer reads them", report)
    waiting = {group: set(names) for group, names in wanted.items()}
    parts: dict[str, Part] = {}
    found, worths, samples = dict[int, Curve](), dict[int, float](), ENOUGH_SAMPLES
    competes = amount.macs is not None or amount.scope == "global"
    outputs = Outputs(graph, context.need_calibrator(), SAMPLES) if competes else None
    measured = input_moments(
        export_model(graph),
        [one.layer.rows for one in sources.values()],
        context.need_calibrator(),
        context.progress,
    )
    for (name, source), (_, moments) in zip(sources.items(), measured, strict=True):
        samples = min(samples, moments.samples)
        part = _part(source, moments, bias_place(graph, source.layer.node) is not None)
        for group in [one for one, names in waiting.items() if name in names]:
            if isinstance(part, str):
                _stay(groups, free, group, f"{source.layer.node.name}'s {part}", report)
                del waiting[group]
                continue
            parts[name] = part
            waiting[group].remove(name)
            if not waiting[group]:
                context.progress(f"weighing channels of {groups.layers[group][0][0].name}")
                together = [parts[other] for other in wanted[group]]
                found[group] = curve = _curve(groups, free, group, together, amount)
                if outputs is not None:
                    worths[group] = worth(outputs, together, curve.order, curve.stops, curve.losses)
                del waiting[group]
        still = {one for group in waiting for one in wanted[group]}
        parts = {one: kept for one, kept in parts.items() if one in still}
    report.warnings += few_samples("prune_channels", samples)
    if outputs is not None and found:
        report.warnings += outputs.warnings("prune_channels")
    least = LEAST * max(worths.values(), default=0.0)
    return {
        group: replace(curve, losses=curve.losses * max(worths.get(group, 1.0), least))
        for group, curve in found.items()
    }


def _sources(
    graph: Graph, coupling: Coupling, groups: ChannelGroups, free: np.ndarray, report: PassReport
) -> tuple[dict[str, _Source], dict[int, list[str]]]:
    """The layers that are to be measured, by weight, in the order of the graph; and which of them read each group."""
    readers = _readers_of_groups(coupling, groups, free)
    by_name = {weight.name: weight for weight in weights(graph, refuse=_unsaid)}
    needed = {use.node.inputs[WEIGHT_INPUT].name for uses in readers.values() for use, _ in uses}
    layers, reasons = measurable(graph, {name: by_name[name] for name in needed if name in by_name})
    wanted: dict[int, list[str]] = {}
    for group, uses in readers.items():
        names = [use.node.inputs[WEIGHT_INPUT].name for use, _ in uses]
        refused = next(
            (use.node.name for (use, _), name in zip(uses, names, strict=True) if name in reasons), None
        )
        if refused is None:
            wanted[group] = names
        else:
            reason = next(reasons[name] for name in names if name in reasons)
            _stay(groups, free, group, f"what {refused} loses by them is not known: {reason}", report)
    units = {use.node.inputs[WEIGHT_INPUT].name: roots for uses in readers.values() for use, roots in uses}
    asked = {name for names in wanted.values() for name in names}
    sources = {}
    for layer in layers:
        name = layer.rows.weight.name
        if name in asked:
            conv_groups, _, inputs = layer.rows.sizes
            by_group = units[name].reshape(conv_groups, -1)
            sources[name] = _Source(layer, np.repeat(by_group, inputs // by_group.shape[1], axis=1))
    return sources, wanted


def _readers_of_groups(
    coupling: Coupling, groups: ChannelGroups, free: np.ndarray
) -> dict[int, list[tuple[LayerUse, np.ndarray]]]:
    """Layers whose weight has inputs of the group's free units, and the units of its inputs; a depthwise convolution, whose
    channels go with what they read, is none.
    """
    found: dict[int, list[tuple[LayerUse, np.ndarray]]] = {}
    reading = {name for (name, _), slot in coupling.slots.items() if slot.role == READ}
    for use in coupling.layers:
        if use.source is None or use.node.inputs[WEIGHT_INPUT].name not in reading:
            continue
        roots = coupling.units.roots(use.source.units)
        for group in np.unique(groups.of[roots[free[roots]]]).tolist():
            found.setdefault(group, []).append((use, roots))
    return found


def _unsaid(node: str, reason: str) -> None:
    """The report says elsewhere what stays as it is."""


def _stay(groups: ChannelGroups, free: np.ndarray, group: int, why: str, report: PassReport) -> None:
    report.skip(groups.layers[group][0][0].name, f"its channels stay: {why}")
    free[groups.of == group] = False


def _part(source: _Source, moments: SplitMoments, centered: bool) -> Part | str:
    """The layer as it was measured, or what is wrong with it."""
    weight = source.layer.rows.of(read(source.layer.rows.weight.tensor)).astype(np.float64)
    if not np.isfinite(weight).all():
        return "weights are NaN or infinite"
    if (reason := moments.refusal(centered)) is not None:
        return f"inputs {reason} on calibration data"
    covariance = moments.fitted.regular(centered)
    judging, energy = moments.judged(weight, centered)
    readers = [
        Reader(weight[place], covariance[place], judging[place], energy, source.units[place])
        for place in range(len(weight))
    ]
    return Part(source.layer, readers, moments.fitted.mean)


def _curve(groups: ChannelGroups, free: np.ndarray, group: int, parts: list[Part], amount: Amount) -> Curve:
    members = np.flatnonzero((groups.of == group) & free)
    size = int((groups.of == group).sum())
    stops = _stops(amount, members.size, size)
    number = np.full(free.size + 1, -1)  # the last for inputs that are of no unit
    number[members] = np.arange(members.size)
    local = [replace(one, units=number[one.units]) for part in parts for one in part.readers]
    order, losses = eliminate(local, groups.widths()[members], stops.tolist())
    return Curve(members[order], stops, losses)


def _stops(amount: Amount, members: int, size: int) -> np.ndarray:
    """Of a group of `size` units of which `members` may go: how many are out when it is measured what that costs."""
    asked = max(amount.sparsity, *amount.layers.values(), 0.0)
    if amount.macs is None and amount.scope == "layer":  # what a group loses does not depend on what it costs
        return np.array([min(members, math.ceil(asked * size))])
    most = MOST if amount.macs is not None else max(MOST, asked)
    counts = np.arange(min(members, int(most * size)) + 1)
    if amount.macs is not None:  # a share of the channels is chosen before the number left is rounded up
        counts = counts[((size - counts) % amount.keep_multiple == 0) | (counts == 0)]
    return counts[np.unique(np.linspace(0, counts.size - 1, SETTINGS + 1).round().astype(int))]


def fit(
    graph: Graph,
    coupling: Coupling,
    removed: np.ndarray,
    original: onnx.ModelProto,
    context: Context,
    report: PassReport,
) -> None:
    """Fits the layers from the first that reads fewer channels on to what `original`, the network before they were removed,
    answers: each of their channels that is left, from the inputs that are left.
    """
    roots = coupling.units.roots(np.arange(len(coupling.units)))
    stays = ~removed[roots]
    found: dict[int, Layer | str] = {}
    for weight in weights(graph, refuse=_unsaid):
        for node in weight.nodes:
            found[id(node)] = other_use(graph, weight) or layer_of(graph, weight)
    layers, changed = [], False
    for node in graph.nodes:
        layer = found.get(id(node))
        channels = [coupling.channels.get(tensor.name) for tensor in (*node.inputs[:1], *node.outputs[:1])]
        kept = [None if one is None else stays[one.units] for one in channels]
        changed = changed or (layer is not None and kept[0] is not None and not kept[0].all())
        if changed and isinstance(layer, Layer):
            layers.append(replace(layer, kept=kept[-1]))
        elif changed and layer is not None:
            report.skip(node.name, f"not fitted: {layer}")
    samples = fit_layers(
        graph,
        layers,
        original,
        context,
        report,
        lambda node, reason: report.skip(node, f"not fitted: {reason}"),
    )
    # choosing channels has said it of the same samples
    report.warnings += [
        said for said in few_samples("prune_channels", samples) if said not in report.warnings
    ]


def places(groups: ChannelGroups, found: Mapping[int, Curve]) -> np.ndarray:
    """An importance that gives this order where channels of a group are compared, float [units]."""
    order = np.zeros(groups.of.size)
    for curve in found.values():
        order[curve.order] = np.arange(curve.order.size)
    return order * np.maximum(groups.widths(), 1)
