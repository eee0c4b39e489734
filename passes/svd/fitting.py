"""Two layers fitted to one: to its weight, or to what it answers on calibration data."""

import math
import uuid
from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import partial

import numpy as np

from onnx_lathe.passes.core.report import PassReport
from onnx_lathe.passes.core.services import Calibrator, Context
from onnx_lathe.passes.graph import Graph
from onnx_lathe.passes.graph.ancestors import model_up_to
from onnx_lathe.passes.graph.input_moments import by_sample
from onnx_lathe.passes.graph.model import Snapshot
from onnx_lathe.passes.numerics.rank.low_rank import balanced, fitted
from onnx_lathe.passes.numerics.rank.principal import truncated
from onnx_lathe.passes.numerics.rank.responses import Responses, as_rows
from onnx_lathe.passes.numerics.second_order.moments import HELD_OUT
from onnx_lathe.passes.svd.layer_plans import LayerPlan
from onnx_lathe.passes.svd.settings import FittingOptions
from onnx_lathe.passes.svd.two_layers import Layer, split

MOST_RELU_CHANNELS = 1024
"""Channels up to which a ReLU is taken into account: the solver's time grows with their cube."""
COVARIANCE_BYTES = 1 << 28
"""Covariances that are streamed at a time."""


def split_by_weight(graph: Graph, plan: LayerPlan, spatial: bool) -> None:
    """Splits a layer so that the product of the two is nearest to its weight."""
    layer = plan.layer
    left, right = balanced(
        *truncated(layer.plane() if spatial else layer.matrix(), plan.chosen, plan.vectors)
    )
    factors = layer.spatial_factors(left, right) if spatial else layer.factors(left, right)
    split(graph, layer, factors, None if layer.adds or layer.bias is None else layer.bias)


def split_by_response(
    graph: Graph,
    original: Snapshot,
    chosen: Sequence[LayerPlan],
    options: FittingOptions,
    context: Context,
    report: PassReport,
) -> None:
    """Splits group after group of layers, each fitted to what the network is by then if `asymmetric`."""
    calibrator = context.need_calibrator()
    plans = {plan.layer.weight.name: plan for plan in chosen}
    at_once = math.ceil(len(chosen) / options.rounds) if options.asymmetric else len(chosen)
    for group in groups([plan.layer for plan in chosen], at_once):
        context.progress(f"fitting {', '.join(layer.weight.name for layer in group)}")
        changed = Snapshot(graph) if options.asymmetric else None
        collected = collect_responses(
            calibrator, original, changed, group, options.positions * options.nonlinear
        )
        for layer, responses in zip(group, collected, strict=True):
            plan = plans[layer.weight.name]
            relu = options.nonlinear and layer.relu and layer.channels <= MOST_RELU_CHANNELS
            low, better = fitted(responses, plan.chosen, relu)
            bias = low.offset if layer.bias is None else low.left @ (low.right @ layer.bias) + low.offset
            left, right = balanced(low.left, low.right @ layer.matrix())
            split(graph, layer, layer.factors(left, right), bias)
            report.edit(
                layer.name,
                plan.summary()
                + ("" if better is None else f", {100 * better:.3g} % of the linear fit's error"),
            )


def groups(layers: Sequence[Layer], most: int) -> Iterator[list[Layer]]:
    """Layers, in order: at most `most` together, and no more than have their covariances in memory
    together.
    """
    group: list[Layer] = []
    size = 0
    for layer in layers:
        own = 8 * layer.channels**2
        if group and (len(group) == most or size + own > COVARIANCE_BYTES):
            yield group
            group, size = [], 0
        group.append(layer)
        size += own
    if group:
        yield group


def collect_responses(
    calibrator: Calibrator,
    original: Snapshot,
    changed: Snapshot | None,
    layers: Sequence[Layer],
    sample: int,
) -> list[Responses]:
    """The responses of each layer over the calibration data; paired with those in the changed model, if
    anything changed them. Of equal parts of networks they are the same: a search, whose trials have most layers
    in common, measures each once.
    """
    samples = [sample if layer.relu and layer.channels <= MOST_RELU_CHANNELS else 0 for layer in layers]
    names = list(dict.fromkeys(tensor.name for layer in layers for tensor in layer.responses))
    apart = None if changed is None or _nodes(changed, names) == _nodes(original, names) else changed
    measured: list[Responses] = []

    def measure(place: int) -> Responses:
        if not measured:  # of all layers by one run of the data, if any of them is new
            measured.extend(_measured(calibrator, original, apart, layers, samples))
        return measured[place]

    found = []
    for place, layer in enumerate(layers):
        own, count = [tensor.name for tensor in layer.responses], samples[place]
        part, what = original.up_to(own), f"responses {own} on axis {layer.response_axis}, {count} sampled"
        if apart is not None:
            known = calibrator.remembered(part, "a name for it", lambda: uuid.uuid4().hex, 0)
            part, what = apart.up_to(own), f"{what}, beside those of {known}"
        size_bytes = Responses.most_bytes(layer.channels, count)
        found.append(calibrator.remembered(part, what, partial(measure, place), size_bytes))
    return found


def _measured(
    calibrator: Calibrator,
    original: Snapshot,
    changed: Snapshot | None,
    layers: Sequence[Layer],
    samples: Sequence[int],
) -> list[Responses]:
    """As `collect_responses`; `samples`: how many responses are sampled of each layer."""
    names = list(dict.fromkeys(tensor.name for layer in layers for tensor in layer.responses))
    collected = [Responses(layer.channels, count) for layer, count in zip(layers, samples, strict=True)]
    wanted = calibrator.observe(original.up_to(names), names)
    if changed is None:
        pairs: Iterator[tuple[Mapping[str, np.ndarray], Mapping[str, np.ndarray] | None]] = (
            (batch, None) for batch in wanted
        )
    else:
        pairs = zip(wanted, calibrator.observe(changed.up_to(names), names), strict=True)
    for one, other in pairs:
        for layer, responses in zip(layers, collected, strict=True):
            for tensor in layer.responses:
                rows = as_rows(one[tensor.name], layer.response_axis)
                responses.add(
                    rows, None if other is None else as_rows(other[tensor.name], layer.response_axis)
                )
    return collected


def collect_split(
    calibrator: Calibrator, original: Snapshot, layers: Sequence[Layer]
) -> list[tuple[Responses, Responses]]:
    """The responses of each layer over the calibration data: those to fit by, and those of samples that are held back."""
    names = list(dict.fromkeys(tensor.name for layer in layers for tensor in layer.responses))
    collected = [(Responses(layer.channels), Responses(layer.channels)) for layer in layers]
    samples = 0
    for number, batch in enumerate(calibrator.observe(original.up_to(names), names)):
        for layer, (own, held) in zip(layers, collected, strict=True):
            for tensor in layer.responses:
                for sample, values in by_sample(batch[tensor.name], batch):
                    place = number if sample is None else samples + sample
                    kept = own if (place + 1) % HELD_OUT else held
                    kept.add(as_rows(values, layer.response_axis))
        samples += batch.samples
    return collected


def _nodes(snapshot: Snapshot, tensors: Collection[str]) -> set[str]:
    """Names of the nodes that the tensors depend on."""
    return {node.name for node in model_up_to(snapshot.frame, tensors).graph.node}
