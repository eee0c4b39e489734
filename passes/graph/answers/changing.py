"""Layers that lose something, from the inputs on: each sees what the changed network before it computes, and what is left
of it makes up for what it loses.
"""

from collections.abc import Callable, Mapping

import numpy as np
import onnx

from onnx_lathe.passes.core.report import PassReport
from onnx_lathe.passes.core.services import Context
from onnx_lathe.passes.graph import Graph
from onnx_lathe.passes.graph.answers.aligned import Layer, answers, layer_of
from onnx_lathe.passes.graph.answers.behind import with_what_follows
from onnx_lathe.passes.graph.answers.choosing import Judged
from onnx_lathe.passes.graph.answers.forms import form_of
from onnx_lathe.passes.graph.input_moments import ENOUGH_SAMPLES, Rows, few_samples
from onnx_lathe.passes.graph.layers import Weight
from onnx_lathe.passes.graph.model import export_model, taken_names
from onnx_lathe.passes.numerics.second_order.fitting import fit_free
from onnx_lathe.passes.numerics.second_order.paired import SplitJointMoments

Sweep = Callable[[Rows, np.ndarray, np.ndarray], np.ndarray]
"""(rows, weight [groups, r, d], second moments of its inputs [groups, d, d]) -> the weight with its zeros."""
Change = Callable[[Layer, SplitJointMoments], None]
"""Changes the layer in the graph."""


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


def change_layers(
    graph: Graph,
    weights: Mapping[str, Weight],
    change: Change,
    otherwise: Callable[[Weight, str], None],
    what: str,
    context: Context,
    report: PassReport,
    original: onnx.ModelProto | None = None,
    follows: bool = False,
) -> None:
    """Has the layers of these weights changed, one after another; those that cannot be measured by `otherwise`, which is
    told why. `what`: the option that asks for it; `original`: what gives the answers, if not the graph as it is now;
    `follows`: whether what is behind a layer counts, an addition and an activation.

    Raises PassError without calibration data.
    """
    calibrator, original = context.need_calibrator(), original or export_model(graph)
    layers, reasons = measurable(graph, weights)
    for name, reason in reasons.items():
        otherwise(weights[name], reason)
    samples = ENOUGH_SAMPLES
    if follows:
        layers = with_what_follows(
            graph, layers, {name for node in original.graph.node for name in node.output}
        )
    for layer, moments in answers(graph, layers, original, calibrator):
        samples = samples if isinstance(moments, str) else min(samples, moments.samples)
        refusal = moments if isinstance(moments, str) else moments.refusal()
        if refusal is None and not isinstance(moments, str):
            change(layer, moments)
        else:
            otherwise(layer.rows.weight, str(refusal))
    report.warnings += few_samples(what, samples)


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
    said, taken = dict[str, str](), taken_names(graph)

    def prune(layer: Layer, moments: SplitJointMoments) -> None:
        name = layer.rows.weight.name
        context.progress(f"pruning {name}")
        judged = Judged.of(graph, form_of(graph, layer.rows), moments)
        fitted = judged.moments.fitted
        found = sweep(layer.rows, judged.form.now, fitted.regular())
        best = judged.best([fit_free(fitted, found, found != 0), found])
        best = judged.refined(best, lambda asked: fit_free(asked, found, found != 0))
        said[name] = judged.take(graph, best, taken)

    def otherwise(weight: Weight, reason: str) -> None:
        by_magnitude(weight)
        said[weight.name] = f"by magnitude: {reason}"

    change_layers(graph, weights, prune, otherwise, "score=obs", context, report, follows=True)
    return said
