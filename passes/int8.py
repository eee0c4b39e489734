"""Post-training INT8: weights per output channel, activations per tensor, symmetric, from calibrated ranges.

    x -> Conv(W)   becomes   x -> QuantizeLinear -> DequantizeLinear -> Conv(DequantizeLinear(W_int8))

Conv, Gemm and MatMul with a constant weight. Depthwise and transposed convolutions stay float: INT8 makes them slower on TensorRT, or is
not there; the option layers can ask for a depthwise one. Bias stays float. A residual Add behind a quantized convolution reads its other
operand quantized, so that TensorRT joins the two. The form is in passes/graph/quantized.py.
Source: Jacob et al., "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only Inference", CVPR 2018; Wu et
al., "Integer Quantization for Deep Learning Inference: Principles and Empirical Evaluation", 2020, sections 3 and 5.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from passes.base import Context, Pass, PassReport, TensorStatistics, option
from passes.graph import Constant, Graph, Node, Tensor, quantized, rewire
from passes.graph.layers import Weight, constant_shape, constant_value, is_constant, other_use, output_axis, weights
from passes.graph.model import export_model
from passes.graph.opset import raise_opset
from passes.graph.patterns import by_weight
from passes.graph.shapes import TensorType, infer_types
from passes.numerics import affine
from passes.registry import register

Operand = tuple[Node, int]
"""An input of a node, by position."""

WEIGHT_ONLY = "its weight is INT8 already; run int8 with activations on the float model"


@register
class Int8(Pass):
    """Quantizes weights and activations to 8 bits after training, with ranges from calibration data."""

    name = "int8"
    needs: tuple[str, ...] = ("calibrator",)
    after = {"fold": "batch normalization must be part of the weights before their range is measured"}

    @dataclass(frozen=True)
    class Config:
        activations: bool = option(True, "quantize activations too; false makes the file small, not fast, and needs no data")
        method: str = option("percentile", "how a range follows from the calibration data", choices=("minmax", "percentile"))
        percentile: float = option(99.999, "share of the values inside the range, with method=percentile", unit="percent", low=50, high=100)
        layers: dict[str, bool] = option({}, "quantize (true) or leave in float (false) single layers, by pattern")

    def __init__(self, config: Any = None) -> None:
        super().__init__(config)
        if not self.config.activations:
            self.needs = ()

    def apply(self, graph: Graph, context: Context) -> PassReport:
        report = PassReport()
        chosen = self._choose(graph, report)
        if chosen and graph.opset < quantized.LOWEST_OPSET:
            opset, reason = graph.opset, raise_opset(graph, quantized.LOWEST_OPSET)
            if reason is not None:
                for node in _layers(chosen):
                    report.skip(node.name, f"opset {opset} has no scale per channel and cannot be raised: {reason}; export at 13 or later")
                return report
            chosen = self._choose(graph, report := PassReport())
        writer = quantized.Writer(graph)
        if chosen and self.config.activations:
            chosen = self._quantize_activations(writer, chosen, context, report)
        for weight in chosen:
            context.progress(f"quantizing {weight.name}")
            _quantize_weight(writer, weight, report)
        if chosen:
            rewire.sweep(graph)
        report.metrics["layers"] = len(_layers(chosen))
        return report

    def _choose(self, graph: Graph, report: PassReport) -> list[Weight]:
        """Weights whose every reader is a layer that can be quantized; the layers of others are skipped with a reason."""
        found = list(weights(graph, refuse=report.skip))
        wanted = by_weight(self.config.layers, found, [skip.node for skip in report.skips], "int8(layers=...)")
        chosen = []
        for weight in found:
            explicit = wanted.get(weight.name)
            reason = "the option layers leaves it in float" if explicit is False else self._refusal(graph, weight, explicit is True)
            if reason is None:
                chosen.append(weight)
            else:
                _skip(weight, reason, report)
        return chosen

    def _refusal(self, graph: Graph, weight: Weight, explicit: bool) -> str | None:
        """Why the layers of this weight stay float; `explicit`: the option layers asks for them to be quantized."""
        shape = tuple(weight.tensor.shape) if isinstance(weight.tensor, Constant) else constant_shape(weight.tensor, graph.opset)
        for node in weight.nodes:
            if node.op == "ConvTranspose":
                return "a transposed convolution stays float"
            if not explicit and node.op == "Conv" and node.attrs.get("group", 1) > 1 and shape[1] == 1:
                return "a depthwise convolution stays float"
            if quantized.is_dequantized(node.inputs[0]):
                return "already quantized"
            if is_constant(node.inputs[0]):
                return "its input is constant"
        if "DequantizeLinear" in quantized.decoders(weight.tensor):
            return WEIGHT_ONLY if self.config.activations else "already quantized"
        if len(shape) < 2:
            return "its weight is a vector"
        if len(shape) > 2 and any(node.op == "MatMul" for node in weight.nodes):
            return "its weight is a batch of matrices, for which ONNX Runtime has no scale per channel"
        if len({output_axis(node, len(shape)) for node in weight.nodes}) > 1:
            return "its weight is shared with a layer that has its output channels on another axis"
        if reason := other_use(graph, weight):
            return reason
        values = constant_value(weight.tensor, weight.opset)
        if values.dtype != np.float32:
            return f"its weight is {values.dtype}, not float32"
        return None if np.isfinite(values).all() else "its weight holds NaN or infinity"

    def _quantize_activations(self, writer: quantized.Writer, chosen: list[Weight], context: Context, report: PassReport) -> list[Weight]:
        """Puts Q/DQ pairs in front of the layers and of residual Adds behind them. Returns the weights whose layers have them."""
        graph = writer.graph
        residuals = _residual_operands(graph, _layers(chosen))
        tensors = [node.inputs[0] for node in _layers(chosen)] + [add.inputs[index] for add, index in residuals]
        names = list(dict.fromkeys(tensor.name for tensor in tensors if quantized.twin(tensor) is None))
        ranges: dict[str, tuple[float, float]] = {}
        if names:
            context.progress("calibrating")
            statistics = context.need_calibrator().statistics(export_model(graph), names)
            ranges = {name: self._range(statistics[name]) for name in names}
        silent = {name for name, (low, high) in ranges.items() if low == high == 0}
        alive = []
        for weight in chosen:
            if any(node.inputs[0].name in silent for node in weight.nodes):
                _skip(weight, "its input is zero on all calibration data", report)
            else:
                alive.append(weight)
        if silent:
            residuals = [(a, i) for a, i in _residual_operands(graph, _layers(alive)) if a.inputs[i].name not in silent]
        before = len(graph.nodes)
        for node, index in [(node, 0) for node in _layers(alive)] + residuals:
            _quantize_operand(writer, node, index, ranges, report)
        report.metrics["quantized_activations"] = (len(graph.nodes) - before) // 2
        return alive

    def _range(self, statistics: TensorStatistics) -> tuple[float, float]:
        if self.config.method == "percentile":
            low, high = statistics.percentile(self.config.percentile)
            if low < high:  # else nearly all values are equal, and the range would hold nothing else
                return low, high
        return statistics.minimum, statistics.maximum


def _layers(chosen: Sequence[Weight]) -> list[Node]:
    return [node for weight in chosen for node in weight.nodes]


def _skip(weight: Weight, reason: str, report: PassReport) -> None:
    for node in weight.nodes:
        report.skip(node.name, reason)


def _residual_operands(graph: Graph, layers: Sequence[Node]) -> list[Operand]:
    """Additions of two activations of equal shape, one the result of a quantized convolution alone: the position of the other one."""
    convolutions = {id(node) for node in layers if node.op == "Conv"}
    found = []
    for node in graph.nodes:
        if node.op in ("Add", "Sum") and not node.domain and len(node.inputs) == 2:
            ends = [_is_result(graph, tensor, convolutions) for tensor in node.inputs]
            other = node.inputs[1 - ends.index(True)] if any(ends) else None
            if other is not None and not is_constant(other) and not quantized.is_dequantized(other):
                found.append((node, 1 - ends.index(True)))
    types = infer_types(graph) if found else {}
    return [(add, index) for add, index in found if _same_shape(types.get(add.inputs[0].name), types.get(add.inputs[1].name))]


def _same_shape(first: TensorType | None, second: TensorType | None) -> bool:
    """Whether two tensors may have one shape, as far as inference knows: a dimension without a number equals any."""
    if first is None or second is None or first.shape is None or second.shape is None:
        return True
    sizes = zip(first.shape, second.shape, strict=False)
    return len(first.shape) == len(second.shape) and all(a == b or not (isinstance(a, int) and isinstance(b, int)) for a, b in sizes)


def _is_result(graph: Graph, tensor: Tensor, convolutions: Collection[int]) -> bool:
    """Whether the tensor is what one of the convolutions computes, batch normalization included, for one reader."""
    if len(tensor.outputs) != 1 or len(tensor.inputs) != 1 or rewire.is_output(graph, tensor):
        return False
    producer = tensor.inputs[0]
    if producer.op == "BatchNormalization":
        return _is_result(graph, producer.inputs[0], convolutions)
    return id(producer) in convolutions


def _quantize_operand(
    writer: quantized.Writer, node: Node, index: int, ranges: Mapping[str, tuple[float, float]], report: PassReport
) -> None:
    """Makes the node read its operand quantized, by the pair that there is or by a new one."""
    tensor = node.inputs[index]
    twin = quantized.twin(tensor)
    if twin is None:
        low, high = ranges[tensor.name]
        twin = writer.activation(tensor, low, high)
        report.edit(node.name, f"{tensor.name} is INT8: range {low:.4g} to {high:.4g}, scale {affine.range_scale(low, high):.3g}")
    else:
        report.edit(node.name, f"reads {tensor.name} as INT8, like other layers")
    node.inputs[index] = twin


def _quantize_weight(writer: quantized.Writer, weight: Weight, report: PassReport) -> None:
    values = constant_value(weight.tensor, weight.opset)
    scale = affine.channel_scale(values, weight.axis)
    restored = affine.dequantize(affine.quantize(values, scale, weight.axis), scale, weight.axis)
    writer.weight(weight, values, scale)
    for node in weight.nodes:
        report.edit(node.name, f"weight is INT8, {scale.size} scales: {affine.signal_to_noise_db(values, restored):.1f} dB signal to noise")
