"""Layers that are pruned from the inputs on: each sees what the pruned network before it computes, and what is left of it
makes up for what became zero.
"""

from collections.abc import Callable, Mapping

import numpy as np

from onnx_lathe.passes.core.report import PassReport
from onnx_lathe.passes.core.services import Context
from onnx_lathe.passes.graph import Graph
from onnx_lathe.passes.graph.answers.aligned import Layer, answers, layer_of
from onnx_lathe.passes.graph.answers.choosing import Judged
from onnx_lathe.passes.graph.answers.forms import form_of
from onnx_lathe.passes.graph.input_moments import ENOUGH_SAMPLES, Rows, few_samples
from onnx_lathe.passes.graph.layers import Weight
from onnx_lathe.passes.graph.model import export_model, taken_names
from onnx_lathe.passes.numerics.second_order.fitting import fit_free
from onnx_lathe.passes.numerics.second_order.paired import SplitJointMoments

Sweep = Callable[[Rows, np.ndarray, np.ndarray], np.ndarray]
"""(rows, weight [groups, r, d], second moments of its inputs [groups, d, d]) -> the weight with its zeros."""


def measurable(graph: Graph, weights: Mapping[str, Weight]) -> tuple[list[Layer], dict[str, str]]:
    """The layers whose inputs can be measured, in the order of the graph, and why each other weight's cannot."""
    layers, others = [], {}
    for name, weight in weights.items():
        layer = layer_of(graph, weight)
        if isinstance(layer, str):
            others[name] = layer
        else:
            layers.append(layer)
    order = {id(node): place for place, node in enumerate(graph.nodes)}
    return sorted(layers, key=lambda layer: order[id(layer.node)]), others


def prune_layers(
    graph: Graph,
    weights: Mapping[str, Weight],
    sweep: Sweep,
    by_magnitude: Callable[[Weight], None],
    context: Context,
    report: PassReport,
) -> dict[str, str]:
    """Prunes these weights by `sweep`, those that cannot be measured `by_magnitude`. Returns, by weight, what to say of it.

    Raises PassError without calibration data.
    """
    calibrator, original = context.need_calibrator(), export_model(graph)
    layers, reasons = measurable(graph, weights)
    said, taken, samples = dict[str, str](), taken_names(graph), ENOUGH_SAMPLES
    for layer, moments in answers(graph, layers, original, calibrator):
        name = layer.rows.weight.name
        context.progress(f"pruning {name}")
        samples = samples if isinstance(moments, str) else min(samples, moments.samples)
        refusal = moments if isinstance(moments, str) else moments.refusal()
        if refusal is None and not isinstance(moments, str):
            said[name] = _swept(graph, layer, moments, sweep, taken)
        else:
            reasons[name] = str(refusal)
    report.warnings += few_samples("score=obs", samples)
    for name, reason in reasons.items():
        by_magnitude(weights[name])
        said[name] = f"by magnitude: {reason}"
    return said


def _swept(graph: Graph, layer: Layer, moments: SplitJointMoments, sweep: Sweep, taken: set[str]) -> str:
    form = form_of(graph, layer.rows)
    judged = Judged.of(graph, form, moments)
    fitted = judged.moments.fitted
    found = sweep(layer.rows, form.now, fitted.regular())
    best = judged.best([fit_free(fitted, found, found != 0), found])
    return judged.take(graph, best, taken)
