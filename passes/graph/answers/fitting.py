"""One layer fitted to what another network answers in its place: what may still change of it, by how its weight is stored."""

from onnx_lathe.passes.core.report import PassReport
from onnx_lathe.passes.graph import Graph
from onnx_lathe.passes.graph.answers.aligned import Layer
from onnx_lathe.passes.graph.answers.choosing import Judged
from onnx_lathe.passes.graph.answers.forms import form_of
from onnx_lathe.passes.graph.evaluate import REFUSALS
from onnx_lathe.passes.numerics.second_order.paired import SplitJointMoments


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
    best = judged.best([form.now] if fitted is None else [fitted, form.now])
    if not judged.is_worth(best):
        return f"nothing better was found (answers {judged.decibels(judged.before)})"
    report.edit(layer.node.name, judged.take(graph, best, taken))
    return None
