"""Two layers fitted to one: to its weight, or to what it answers on calibration data."""

import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import onnx

from onnx_lathe.passes.core.report import PassReport
from onnx_lathe.passes.core.services import Calibrator, Context
from onnx_lathe.passes.graph import Graph
from onnx_lathe.passes.graph.ancestors import model_up_to
from onnx_lathe.passes.graph.model import export_model
from onnx_lathe.passes.numerics.rank.low_rank import balanced, fit, fit_relu, truncated
from onnx_lathe.passes.numerics.rank.responses import Responses, as_rows
from onnx_lathe.passes.svd.layer_plans import LayerPlan
from onnx_lathe.passes.svd.settings import FittingOptions
from onnx_lathe.passes.svd.two_layers import Layer, split

MOST_RELU_CHANNELS = 1024
"""Channels up to which a ReLU is taken into account: the solver's time grows with their cube."""
COVARIANCE_BYTES = 1 << 28
"""Covariances that are streamed at a time."""


def split_by_weight(graph: Graph, layer: Layer, rank: int, spatial: bool) -> None:
    """Splits a layer so that the product of the two is nearest to its weight."""
    left, right = balanced(*truncated(layer.plane() if spatial else layer.matrix(), rank))
    factors = layer.spatial_factors(left, right) if spatial else layer.factors(left, right)
    split(graph, layer, factors, None if layer.adds or layer.bias is None else layer.bias)


def split_by_response(
    graph: Graph,
    original: onnx.ModelProto,
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
        changed = export_model(graph) if options.asymmetric else None
        collected = collect_responses(
            calibrator, original, changed, group, options.positions * options.nonlinear
        )
        for layer, responses in zip(group, collected, strict=True):
            plan = plans[layer.weight.name]
            better = None
            if options.nonlinear and layer.relu and layer.channels <= MOST_RELU_CHANNELS:
                low, better = fit_relu(responses, plan.chosen)
            else:
                low = fit(responses, plan.chosen)
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
    original: onnx.ModelProto,
    changed: onnx.ModelProto | None,
    layers: Sequence[Layer],
    sample: int,
) -> list[Responses]:
    """The responses of each layer over the calibration data; paired with those in the changed model, if
    anything changed them.
    """
    names = list(dict.fromkeys(tensor.name for layer in layers for tensor in layer.responses))
    before, after = model_up_to(original, names), None if changed is None else model_up_to(changed, names)
    collected = [
        Responses(layer.channels, sample if layer.relu and layer.channels <= MOST_RELU_CHANNELS else 0)
        for layer in layers
    ]
    wanted = calibrator.observe(before, names)
    if after is None or {node.name for node in after.graph.node} == {node.name for node in before.graph.node}:
        pairs: Iterator[tuple[Mapping[str, np.ndarray], Mapping[str, np.ndarray] | None]] = (
            (batch, None) for batch in wanted
        )
    else:
        pairs = zip(wanted, calibrator.observe(after, names), strict=True)
    for one, other in pairs:
        for layer, responses in zip(layers, collected, strict=True):
            for tensor in layer.responses:
                rows = as_rows(one[tensor.name], layer.response_axis)
                responses.add(
                    rows, None if other is None else as_rows(other[tensor.name], layer.response_axis)
                )
    return collected
