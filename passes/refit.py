"""Refit: layer by layer, what may still change of a compressed network is fitted to what the original answers there.

    W', b'  =  argmin  E |f(W' x + b' + s) - f(y)|^2      x: what the layer reads now, y: what the original answers in its place

f is the activation behind it, if one is, and s what another branch adds to it, with which y is the sum.

What was decided stays: zeros are zero, weights that share a value share it, integers are the same. What is left is
fitted in closed form: weights that are not zero, values of codebooks, and then the deviation and the mean of every
channel, by the weights or their scales and by the bias. From the inputs on, so that a layer makes up for what those
before it lost. No labels are needed and nothing is trained. Of several candidates the one is taken whose error on
samples that are kept apart is least, and none unless it is one percent below what it was; the same samples choose and
judge, so that on others the gain may be smaller, or a loss. Behind an activation some rows of these samples judge, not all.
Sources: Frantar and Alistarh, "Optimal Brain Compression", NeurIPS 2022, sections 3 and 4; Nagel et al., "Data-Free
Quantization Through Weight Equalization and Bias Correction", ICCV 2019, section 4.2; Zhang, Zou, He and Sun, "Accelerating
Very Deep Convolutional Networks", TPAMI 2016, section 3.2, for what is behind an activation.
"""

from dataclasses import dataclass

from onnx_lathe.passes.core.base import Pass
from onnx_lathe.passes.core.options import option
from onnx_lathe.passes.core.registry import register
from onnx_lathe.passes.core.report import PassReport
from onnx_lathe.passes.core.services import Context
from onnx_lathe.passes.graph import Graph
from onnx_lathe.passes.graph.answers.aligned import Layer, layer_of
from onnx_lathe.passes.graph.answers.fitting import fit_layers
from onnx_lathe.passes.graph.input_moments import few_samples
from onnx_lathe.passes.graph.layers import other_use, weights
from onnx_lathe.passes.graph.patterns import by_weight


@register
class Refit(Pass):
    """Fits what may still change of each layer to what the original network answers; needs no labels."""

    name = "refit"
    after = {"fold": "a folded batch normalization is part of the weights that are fitted"}
    needs = ("calibrator", "original")

    @dataclass(frozen=True)
    class Config:
        layers: dict[str, bool] = option(
            {}, "fit (true) or leave as they are (false) single layers, by pattern"
        )

    def apply(self, graph: Graph, context: Context) -> PassReport:
        report = PassReport()
        context.need_calibrator()
        original = context.need_original()
        layers = self._layers(graph, {name for node in original.graph.node for name in node.output}, report)
        samples = fit_layers(graph, layers, original, context, report, report.skip)
        report.warnings += few_samples("refit", samples)
        return report

    def _layers(self, graph: Graph, known: set[str], report: PassReport) -> list[Layer]:
        found = list(weights(graph, refuse=report.skip))
        chosen = by_weight(
            self.config.layers, found, [skip.node for skip in report.skips], "refit(layers=...)"
        )
        layers = []
        for weight in found:
            node, layer = weight.nodes[0], layer_of(graph, weight)
            reason = layer if isinstance(layer, str) else other_use(graph, weight)
            if not chosen.get(weight.name, True):
                reason = "it is set to stay as it is"
            elif not isinstance(layer, str) and layer.answer not in known:
                reason = "the original network has no tensor of this name to compare with"
            if reason is None and not isinstance(layer, str):
                layers.append(layer)
            else:
                report.skip(node.name, str(reason))
        order = {id(node): place for place, node in enumerate(graph.nodes)}
        return sorted(layers, key=lambda layer: order[id(layer.node)])
