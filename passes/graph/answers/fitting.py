"""Layers of a network that was made smaller, each fitted to what another network answers in its place."""

from collections.abc import Callable, Sequence

import onnx

from onnx_lathe.passes.core.report import PassReport
from onnx_lathe.passes.core.services import Context
from onnx_lathe.passes.graph import Graph
from onnx_lathe.passes.graph.answers.aligned import Layer, answers
from onnx_lathe.passes.graph.answers.behind import with_what_follows
from onnx_lathe.passes.graph.answers.choosing import Judged
from onnx_lathe.passes.graph.answers.forms import form_of
from onnx_lathe.passes.graph.evaluate import REFUSALS
from onnx_lathe.passes.graph.input_moments import ENOUGH_SAMPLES
from onnx_lathe.passes.graph.model import taken_names
from onnx_lathe.passes.numerics.second_order.paired import SplitJointMoments


def fit_layers(
    graph: Graph,
    layers: Sequence[Layer],
    original: onnx.ModelProto,
    context: Context,
    report: PassReport,
    refuse: Callable[[str, str], None],
) -> int:
    """Fits `layers`, in the order of the graph, to what `original` answers. What stays as it is goes to `refuse` with the
    reason. Returns by how many samples, or ENOUGH_SAMPLES where they were more.

    Raises PassError without calibration data.
    """
    taken, samples = taken_names(graph), ENOUGH_SAMPLES
    layers = with_what_follows(graph, layers, {name for node in original.graph.node for name in node.output})
    for layer, moments in answers(graph, layers, original, context.need_calibrator()):
        context.progress(f"fitting {layer.node.name}")
        samples = samples if isinstance(moments, str) else min(samples, moments.samples)
        reason = moments if isinstance(moments, str) else moments.refusal()
        if reason is None and not isinstance(moments, str):
            reason = fit_layer(graph, layer, moments, taken, report)
        if reason is not None:
            refuse(layer.node.name, reason)
    return samples


def fit_layer(
    graph: Graph, layer: Layer, moments: SplitJointMoments, taken: set[str], report: PassReport
) -> str | None:
    """Changes the layer, or says why it stays. `taken`: names that the graph has."""
    try:
        form = form_of(graph, layer.rows)
    except REFUSALS as error:
        return f"its weight cannot be computed: {' '.join(str(error).split())}"
    judged = Judged.of(graph, form, moments)
    if judged.is_good():
        return f"it answers as the original does ({judged.decibels(judged.before)})"
    fitted = form.fit(judged.moments.fitted)
    best = judged.refined(judged.best([form.now] if fitted is None else [fitted, form.now]))
    if not judged.is_worth(best):
        return f"nothing better was found (answers {judged.decibels(judged.before)})"
    report.edit(layer.node.name, judged.take(graph, best, taken))
    return None
