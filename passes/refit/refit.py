"""Refit: layer by layer, what may still change of a compressed network is fitted to what the original answers there.

    W', b'  =  argmin  E |W' x + b' - y|^2      x: what the layer reads now, y: what the original answers in its place

What was decided stays: zeros are zero, weights that share a value share it, integers are the same. What is left is
fitted in closed form: weights that are not zero, values of codebooks, and then the deviation and the mean of every
channel, by the weights or their scales and by the bias. From the inputs on, so that a layer makes up for what those
before it lost. No labels are needed and nothing is trained. A layer's error on samples that are kept apart is never
made larger.
Sources: Frantar and Alistarh, "Optimal Brain Compression", NeurIPS 2022, sections 3 and 4; Nagel et al., "Data-Free
Quantization Through Weight Equalization and Bias Correction", ICCV 2019, section 4.2.
"""

import math
from dataclasses import dataclass

import numpy as np

from onnx_lathe.passes.core.base import Pass
from onnx_lathe.passes.core.options import option
from onnx_lathe.passes.core.registry import register
from onnx_lathe.passes.core.report import PassReport
from onnx_lathe.passes.core.services import Context
from onnx_lathe.passes.graph import Graph
from onnx_lathe.passes.graph.aligned import Layer, answers
from onnx_lathe.passes.graph.evaluate import REFUSALS
from onnx_lathe.passes.graph.initializers import read
from onnx_lathe.passes.graph.input_moments import rows_of
from onnx_lathe.passes.graph.layers import other_use, weights
from onnx_lathe.passes.graph.model import taken_names
from onnx_lathe.passes.graph.patterns import by_weight
from onnx_lathe.passes.graph.quantization.bias_places import BiasPlace, bias_place, shift
from onnx_lathe.passes.numerics.second_order.fitting import centered_bias, gains
from onnx_lathe.passes.numerics.second_order.paired import SplitJointMoments
from onnx_lathe.passes.refit.forms import Form, form_of

import os
MODE = os.environ.get("REFIT", "gain")

@register
class Refit(Pass):
    """Fits what may still change of each layer to what the original network answers; needs no labels."""

    name = "refit"
    needs = ("calibrator", "original")

    @dataclass(frozen=True)
    class Config:
        layers: dict[str, bool] = option(
            {}, "fit (true) or leave as they are (false) single layers, by pattern"
        )

    def apply(self, graph: Graph, context: Context) -> PassReport:
        report = PassReport()
        calibrator, original = context.need_calibrator(), context.need_original()
        layers = self._layers(graph, {name for node in original.graph.node for name in node.output}, report)
        taken = taken_names(graph)
        for layer, moments in answers(graph, layers, original, calibrator):
            context.progress(f"fitting {layer.node.name}")
            reason = moments if isinstance(moments, str) else moments.refusal()
            if reason is None and not isinstance(moments, str):
                reason = _fit(graph, layer, moments, taken, report)
            if reason is not None:
                report.skip(layer.node.name, reason)
        return report

    def _layers(self, graph: Graph, known: set[str], report: PassReport) -> list[Layer]:
        found = list(weights(graph, refuse=report.skip))
        chosen = by_weight(self.config.layers, found, [skip.node for skip in report.skips], "refit(layers=...)")
        layers = []
        for weight in found:
            node = weight.nodes[0]
            rows = rows_of(weight, graph.opset)
            if len(weight.nodes) > 1:
                reason: str | None = "its weight is shared by several layers"
            elif not chosen.get(weight.name, True):
                reason = "it is set to stay as it is"
            elif isinstance(rows, str):
                reason = rows
            elif node.outputs[0].name not in known:
                reason = "the original network has no tensor of this name to compare with"
            elif bias_place(graph, node) is None:
                reason = "it has no place for a bias of its own"
            else:
                reason = other_use(graph, weight)
            if reason is None and not isinstance(rows, str):
                layers.append(Layer(node, rows))
            else:
                report.skip(node.name, str(reason))
        order = {id(node): place for place, node in enumerate(graph.nodes)}
        return sorted(layers, key=lambda layer: order[id(layer.node)])


def _fit(
    graph: Graph, layer: Layer, moments: SplitJointMoments, taken: set[str], report: PassReport
) -> str | None:
    """Changes the layer, or says why it stays."""
    try:
        form = form_of(graph, layer.rows)
    except REFUSALS as error:
        return f"its weight cannot be computed: {' '.join(str(error).split())}"
    place = bias_place(graph, layer.node)
    assert place is not None
    bias = _bias(place, form.now.shape[:2])
    judge = moments.judging
    energy = float((judge.yy).sum())
    before = float(judge.error(form.now, bias).sum())
    best = None
    for weight, gain in _candidates(form, moments):
        full = form.scaled(weight, gain) if (gain != 1).any() else weight
        new = centered_bias(moments.fitted, full)
        error = float(judge.error(full, new).sum())
        if error < before and (best is None or (MODE == "least" and error < best[0])):
            best = error, weight, gain, full, new
    if best is None:
        return f"nothing better was found ({_decibels(before, energy)} signal to noise behind the layer)"
    error, weight, gain, full, new = best
    form.store(weight, gain)
    shift(graph, place, (new - bias).reshape(-1), taken)
    report.edit(layer.node.name, f"{_decibels(before, energy)} -> {_decibels(error, energy)} signal to noise")
    return None


def _candidates(form: Form, moments: SplitJointMoments):
    one = np.ones(form.now.shape[:2])
    fitted = form.fit(moments.fitted) if "fit" not in os.environ.get("REFIT_NO", "") else None
    for weight in (fitted, form.now):
        if weight is None:
            continue
        gain = gains(moments.fitted, weight)
        if form.scaled(weight, gain) is not None and "gain" not in os.environ.get("REFIT_NO", ""):
            yield weight, gain
        yield weight, one


def _decibels(error: float, energy: float) -> str:
    return f"{10 * math.log10(energy / error):.1f} dB" if error > 0 and energy > 0 else "exact"


def _bias(place: BiasPlace, shape: tuple[int, int]) -> np.ndarray:
    tensor = place.tensor
    if tensor is None or tensor.is_empty():
        return np.zeros(shape)
    values = read(tensor).astype(np.float64).reshape(-1) * place.factor
    return np.broadcast_to(values, (shape[0] * shape[1],)).reshape(shape)
