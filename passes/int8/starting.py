"""Where the training of a block begins: levels, scales and biases of each layer that answer best together, in closed form."""

from collections.abc import Collection

import numpy as np
import onnx

from onnx_lathe.passes.graph import Constant, Graph
from onnx_lathe.passes.graph.answers.aligned import Layer, layer_of
from onnx_lathe.passes.graph.answers.choosing import Judged
from onnx_lathe.passes.graph.answers.forms import form_of
from onnx_lathe.passes.graph.initializers import read, write
from onnx_lathe.passes.graph.layers import constant_value, other_use, weights
from onnx_lathe.passes.int8.rounding import Rounded
from onnx_lathe.passes.numerics.second_order.levels import descend, rescale
from onnx_lathe.passes.numerics.second_order.paired import SplitJointMoments

RESCALED = 4
"""Times that levels are chosen for a scale, and the scale for the levels."""


def float_layers(graph: Graph, known: Collection[int], original: onnx.ModelProto) -> list[Layer]:
    """Layers beside the quantized ones whose own weight may be fitted."""
    names = {name for node in original.graph.node for name in node.output}
    found = []
    for weight in weights(graph, refuse=lambda node, reason: None):
        if (
            id(weight.nodes[0]) in known
            or not isinstance(weight.tensor, Constant)
            or other_use(graph, weight)
        ):
            continue
        layer = layer_of(graph, weight)
        if not isinstance(layer, str) and layer.answer in names:
            found.append(layer)
    return found


def begin(graph: Graph, one: Rounded, moments: SplitJointMoments, rounds: int, taken: set[str]) -> str | None:
    """Changes the layer, if samples kept apart gain by it, and says so."""
    rows, stored = one.layer.rows, one.levels[0]
    form = form_of(graph, rows)
    before = Judged.of(graph, form, moments)
    fitted, nearest = before.moments.fitted, read(stored).copy()
    exact = constant_value(one.original.tensor, one.original.opset)
    weight = rows.of(exact) * form.alpha
    scale = rows.of(np.broadcast_to(one.step, exact.shape))[..., 0] * form.alpha
    limits = np.where(weight == 0, np.float32(0), np.float32(one.largest))
    loss = weight, fitted.regular(), fitted.yx - weight @ fitted.xx
    levels, step = rows.of(nearest), scale
    for _ in range(RESCALED):
        levels = descend(levels, step, *loss, (-limits, limits), rounds)
        step = rescale(levels, step, *loss)
    form.store(form.now, step / scale)
    write(stored, np.ascontiguousarray(rows.back(levels)).astype(np.int8))
    after = Judged.of(graph, form_of(graph, rows), moments)
    choices = [(judged, judged.best([judged.form.now])) for judged in (before, after)]
    judged, best = min(choices, key=lambda choice: choice[1].error)
    if judged is before or not before.is_worth(best):
        write(stored, nearest)
        form.store(form.now, scale / step)
    if not before.is_worth(best):
        return None
    judged.take(graph, best, taken)
    return f"levels, scales and bias that answer together: {before.decibels(before.before)} -> {before.decibels(best.error)}"
