"""Milliseconds of a layer, whole and split in two."""

from collections.abc import Mapping

import numpy as np

from onnx_lathe.passes.core.services import Timer
from onnx_lathe.passes.graph.layer_times import alone
from onnx_lathe.passes.graph.layers import weights
from onnx_lathe.passes.graph.macs import Shape
from onnx_lathe.passes.graph.model import export_model
from onnx_lathe.passes.svd.layer_plans import LayerPlan
from onnx_lathe.passes.svd.two_layers import Layer, describe, split


def latencies(
    plan: LayerPlan, shapes: Mapping[str, Shape], opset: int, method: str, timer: Timer
) -> tuple[float, float] | None:
    """Milliseconds of the layer (whole, split), with random factors; None if the size of its input is
    not known.
    """
    parts = [alone(plan.layer.weight.nodes, plan.layer.adds, shapes, opset) for _ in range(2)]
    if parts[0] is None or parts[1] is None:
        return None
    layer = describe(parts[1], next(weights(parts[1], refuse=lambda node, reason: None)), ())
    if not isinstance(layer, Layer):
        return None
    spatial, generator = method == "spatial", np.random.default_rng(0)
    rows, columns = (layer.plane() if spatial else layer.matrix()).shape
    left, right = (
        generator.standard_normal((rows, plan.chosen)),
        generator.standard_normal((plan.chosen, columns)),
    )
    has_bias = method == "response" or (layer.bias is not None and not layer.adds)
    factors = layer.spatial_factors(left, right) if spatial else layer.factors(left, right)
    split(parts[1], layer, factors, np.zeros(layer.channels) if has_bias else None)
    return timer.latencies(export_model(parts[0]), export_model(parts[1]))
