"""Layers that compute on integers, as other quantizers write them, back to float layers.

    QLinearConv, QLinearMatMul, QGemm, QLinear*   become  DequantizeLinear -> the float layer -> QuantizeLinear,
                                                          which foreign_pairs.py then takes out or completes
    DynamicQuantizeLinear -> ConvInteger or MatMulInteger -> Cast -> Mul(scales)      become  Conv or MatMul
    MatMulIntegerToFloat, DynamicQuantizeMatMul, DynamicQuantizeLSTM   become  MatMul, and Add of the bias; LSTM

Operators that only move values, between integers, move floats between a pair of their own.
Source: the operators' definitions in the ONNX standard, and in ONNX Runtime's docs/ContribOperators.md.
"""

from collections.abc import Callable

import numpy as np

from onnx_lathe.layout import LAYOUT
from onnx_lathe.passes.core.report import PassReport
from onnx_lathe.passes.graph import Constant, Graph, Node, Tensor, Variable
from onnx_lathe.passes.graph.constants import constant_to_initializer
from onnx_lathe.passes.graph.initializers import read
from onnx_lathe.passes.graph.layers import is_integer
from onnx_lathe.passes.graph.model import taken_names, unused_name
from onnx_lathe.passes.graph.quantization.pairs import LOWEST_OPSET
from onnx_lathe.passes.graph.rewire import disconnect, is_output, sweep

_MOVES = (
    *LAYOUT,
    *("MaxPool", "Slice", "Expand", "Gather", "DepthToSpace", "SpaceToDepth", "Tile"),
)
_ONE_OPERAND = {
    "QLinearAveragePool": "AveragePool",
    "QLinearGlobalAveragePool": "GlobalAveragePool",
    "QLinearLeakyRelu": "LeakyRelu",
    "QLinearReduceMean": "ReduceMean",
    "QLinearSigmoid": "Sigmoid",
    "QLinearSoftmax": "Softmax",
}
_TWO_OPERANDS = {"QLinearAdd": "Add", "QLinearMul": "Mul", "QLinearMatMul": "MatMul"}
_PRIVATE_ATTRIBUTES = ("channels_last", "opset")
Scale = tuple[Tensor, Tensor]
"""Scale and zero-point."""


def to_float(graph: Graph, report: PassReport, dynamic: bool) -> None:
    """Rewrites every integer operator that it knows; the others are skipped by name.

    dynamic: those too whose activations are quantized at run time, for which there is no pair.
    """
    if not any(map(is_integer, graph.nodes)):
        return
    writer = _Writer(graph, report)
    for node in list(graph.nodes):
        if node.op == "Constant" and not is_output(graph, node.outputs[0]):
            constant_to_initializer(node)
    graph.nodes = [node for node in graph.nodes if node.outputs]
    for node in list(graph.nodes):  # in topological order
        writer.note(node)
        reason = writer.rewritten(node, dynamic) if is_integer(node) else writer.moved(node)
        if reason is not None:
            report.skip(node.name, f"{node.op} computes on integers, and stays: {reason}")
    graph.toposort()
    sweep(graph)


class _Writer:
    def __init__(self, graph: Graph, report: PassReport) -> None:
        self.graph, self.report = graph, report
        self.taken = taken_names(graph)
        self.scales: dict[str, Scale] = {}
        """Integer tensor -> what it is quantized with."""

    def note(self, node: Node) -> None:
        """A QuantizeLinear says what its integers mean."""
        if node.op == "QuantizeLinear" and len(node.inputs) > 2:
            self.scales[node.outputs[0].name] = (node.inputs[1], node.inputs[2])

    def moved(self, node: Node) -> str | None:
        """A node that moves the integers of a pair moves its floats."""
        source = node.inputs[0] if node.inputs else None
        if node.domain or node.op not in _MOVES or source is None or source.name not in self.scales:
            return None
        if len(node.outputs) > 1 or is_output(self.graph, node.outputs[0]):
            return None
        scale = self.scales[source.name]
        node.inputs[0] = self.dequantized(source, scale)
        self.quantized(node, scale)
        return None

    def rewritten(self, node: Node, dynamic: bool) -> str | None:
        """Why not, having changed nothing; None when it was."""
        static: dict[str, Callable[[Node], str | None]] = {
            "QLinearConv": self._conv,
            "QLinearConcat": self._concat,
            "QGemm": self._gemm,
            **dict.fromkeys(_ONE_OPERAND, self._one),
            **dict.fromkeys(_TWO_OPERANDS, self._two),
        }
        at_run_time: dict[str, Callable[[Node], str | None]] = {
            "ConvInteger": self._integer,
            "MatMulInteger": self._integer,
            "MatMulIntegerToFloat": self._to_float,
            "DynamicQuantizeMatMul": self._dynamic_matmul,
            "DynamicQuantizeLSTM": self._lstm,
        }
        if node.op == "DynamicQuantizeLinear":
            return None  # goes with its layer
        if node.op in at_run_time and not dynamic:
            return "its activations are quantized at run time; existing=strip gives the float layer back"
        found = (static | at_run_time).get(node.op)
        if found is None:
            return "there is no float form of it here"
        if not dynamic and self.graph.opset < LOWEST_OPSET:
            return f"a pair per channel needs opset {LOWEST_OPSET}, and this is opset {self.graph.opset}; existing=strip gives the float layer back"
        op, reason = node.op, found(node)
        if reason is None:
            self.report.edit(node.name, f"{op} became {node.op}, on floats")
        return reason

    def dequantized(self, tensor: Tensor, scale: Scale, axis: int | None = None) -> Tensor:
        result = Variable(self.name(f"{tensor.name}_float"), np.float32)
        attrs = {} if axis is None else {"axis": axis}
        self.graph.nodes.append(
            Node(
                "DequantizeLinear",
                self.name(f"{result.name}_DequantizeLinear"),
                attrs,
                [tensor, *scale],
                [result],
            )
        )
        return result

    def quantized(self, node: Node, scale: Scale) -> None:
        """The node writes floats, of which a QuantizeLinear makes the tensor that it wrote before."""
        result = node.outputs[0]
        values = Variable(self.name(f"{result.name}_float"), np.float32, result.shape)
        node.outputs[0] = values
        self.graph.nodes.append(
            Node("QuantizeLinear", self.name(f"{result.name}_QuantizeLinear"), {}, [values, *scale], [result])
        )
        self.scales[result.name] = scale

    def _conv(self, node: Node) -> str | None:
        x, x_scale, x_zero, w, w_scale, w_zero, y_scale, y_zero = node.inputs[:8]
        bias = node.inputs[8] if len(node.inputs) > 8 and not node.inputs[8].is_empty() else None
        floats = self._bias(bias, x_scale, w_scale)
        if isinstance(floats, str):
            return floats
        inputs = [self.dequantized(x, (x_scale, x_zero)), self.dequantized(w, (w_scale, w_zero), 0)]
        self._become(node, "Conv", inputs + floats, (y_scale, y_zero))
        return None

    def _gemm(self, node: Node) -> str | None:
        a, a_scale, a_zero, b, b_scale, b_zero = node.inputs[:6]
        rest = [None if tensor.is_empty() else tensor for tensor in node.inputs[6:]]
        bias, y_scale, y_zero = (rest + [None] * 3)[:3]
        if bias is not None and node.attrs.get("alpha", 1.0) != 1.0:
            return "its bias is in units of alpha"
        floats = self._bias(bias, a_scale, b_scale)
        if isinstance(floats, str):
            return floats
        axis = 0 if node.attrs.get("transB", 0) else 1
        inputs = [self.dequantized(a, (a_scale, a_zero)), self.dequantized(b, (b_scale, b_zero), axis)]
        scale = None if y_scale is None or y_zero is None else (y_scale, y_zero)
        self._become(node, "Gemm", inputs + floats, scale)
        return None

    def _bias(self, bias: Tensor | None, first: Tensor, second: Tensor) -> list[Tensor] | str:
        """The bias, INT32 in units of both scales, as floats."""
        if bias is None:
            return []
        if not all(isinstance(tensor, Constant) for tensor in (bias, first, second)):
            return "its bias or a scale is computed at run time"
        unit = read(first).astype(np.float64) * read(second).reshape(-1)
        return [Constant(self.name(f"{bias.name}_float"), (read(bias) * unit).astype(np.float32))]

    def _one(self, node: Node) -> str | None:
        x, x_scale, x_zero, y_scale, y_zero = node.inputs[:5]
        if node.attrs.get("channels_last", 0):
            return "its channels come last"
        inputs = [self.dequantized(x, (x_scale, x_zero)), *node.inputs[5:]]
        self._become(node, _ONE_OPERAND[node.op], inputs, (y_scale, y_zero))
        return None

    def _two(self, node: Node) -> str | None:
        a, a_scale, a_zero, b, b_scale, b_zero, y_scale, y_zero = node.inputs[:8]
        rank = len(b.shape) if isinstance(b, Constant) else 0
        axis = rank - 1 if rank and isinstance(b_scale, Constant) and b_scale.values.size > 1 else None
        inputs = [self.dequantized(a, (a_scale, a_zero)), self.dequantized(b, (b_scale, b_zero), axis)]
        self._become(node, _TWO_OPERANDS[node.op], inputs, (y_scale, y_zero))
        return None

    def _concat(self, node: Node) -> str | None:
        y_scale, y_zero, *parts = node.inputs
        inputs = [self.dequantized(parts[i], (parts[i + 1], parts[i + 2])) for i in range(0, len(parts), 3)]
        self._become(node, "Concat", inputs, (y_scale, y_zero))
        return None

    def _become(self, node: Node, op: str, inputs: list[Tensor], scale: Scale | None) -> None:
        node.op, node.domain, node.inputs = op, None, inputs
        for name in _PRIVATE_ATTRIBUTES:
            node.attrs.pop(name, None)
        if scale is not None:
            self.quantized(node, scale)

    def _integer(self, node: Node) -> str | None:
        """DynamicQuantizeLinear -> ConvInteger | MatMulInteger -> Cast -> Mul of both scales."""
        quantizer = node.inputs[0].inputs[0] if node.inputs[0].inputs else None
        if quantizer is None or quantizer.op != "DynamicQuantizeLinear":
            return "its input is not quantized by a DynamicQuantizeLinear"
        if len(node.inputs) < 3 or node.inputs[2] is not quantizer.outputs[2]:
            return "its zero-point is not that of its input"
        levels = _levels(node, 1, 3)
        found = self._scaled_result(node, quantizer.outputs[1])
        if isinstance(found, str) or isinstance(levels, str):
            return found if isinstance(found, str) else str(levels)
        last, factor, bias = found
        weight = _weight(node, levels, factor)
        if isinstance(weight, str):
            return weight
        node.op = node.op.removesuffix("Integer")
        node.inputs = [quantizer.inputs[0], self._constant(node.inputs[1], weight), *bias]
        result = last.outputs[0]
        disconnect(last)
        node.outputs = [result]
        return None

    def _scaled_result(self, node: Node, scale: Tensor) -> tuple[Node, np.ndarray, list[Tensor]] | str:
        """The Mul after which the result is in floats, the constant that was multiplied in on the way, and
        the bias of a convolution.
        """
        lost = "its result is not cast and multiplied by the scales alone"
        factor, seen, tensor, bias = np.ones(()), False, node.outputs[0], list[Tensor]()
        last = _only_reader(self.graph, tensor)
        if last is not None and last.op == "Add" and node.op == "ConvInteger":
            added = _rounded_bias(last.inputs[1] if last.inputs[0] is tensor else last.inputs[0])
            if added is None:
                return "its bias is not a constant that was rounded"
            bias.append(added)
            last = _only_reader(self.graph, last.outputs[0])
        if last is None or last.op != "Cast":
            return lost
        while not seen:
            tensor = last.outputs[0]
            last = _only_reader(self.graph, tensor)
            if last is None or last.op != "Mul":
                return lost
            other = last.inputs[1] if last.inputs[0] is tensor else last.inputs[0]
            for part in _factors(other):
                if part is scale and not seen:
                    seen = True
                elif isinstance(part, Constant):
                    factor = factor * read(part).astype(np.float64)
                else:
                    return lost
        return last, factor, bias

    def _to_float(self, node: Node) -> str | None:
        a, b_scale = node.inputs[0], node.inputs[3]
        quantizer = a.inputs[0] if a.inputs else None
        if quantizer is None or quantizer.op != "DynamicQuantizeLinear":
            return "its input is not quantized by a DynamicQuantizeLinear"
        bias = node.inputs[6] if len(node.inputs) > 6 and not node.inputs[6].is_empty() else None
        return self._matmul(node, quantizer.inputs[0], _levels(node, 1, 5), b_scale, bias)

    def _dynamic_matmul(self, node: Node) -> str | None:
        bias = node.inputs[4] if len(node.inputs) > 4 and not node.inputs[4].is_empty() else None
        return self._matmul(node, node.inputs[0], _levels(node, 1, 3), node.inputs[2], bias)

    def _matmul(
        self, node: Node, source: Tensor, levels: np.ndarray | str, scale: Tensor, bias: Tensor | None
    ) -> str | None:
        if isinstance(levels, str):
            return levels
        if not isinstance(scale, Constant):
            return "a scale is computed at run time"
        weight = _weight(node, levels, read(scale).astype(np.float64))
        if isinstance(weight, str):
            return weight
        stored = self._constant(node.inputs[1], weight)
        node.op, node.domain, node.inputs = "MatMul", None, [source, stored]
        if bias is not None:
            result = node.outputs[0]
            product = Variable(self.name(f"{result.name}_product"), np.float32, result.shape)
            node.outputs[0] = product
            self.graph.nodes.append(Node("Add", self.name(f"{node.name}_Add"), {}, [product, bias], [result]))
        return None

    def _lstm(self, node: Node) -> str | None:
        """Its weights are [directions, inputs, 4 * hidden], transposed beside an LSTM's."""
        inputs = list(node.inputs)
        stored, floats = inputs[8:12], list[np.ndarray]()
        if len(stored) < 4 or not all(isinstance(t, Constant) for t in [*inputs[1:3], *stored]):
            return "its weight is computed at run time"
        for weight, scale, zero in ((inputs[1], *stored[:2]), (inputs[2], *stored[2:])):
            levels, steps, zeros = (read(t).astype(np.float64) for t in (weight, scale, zero))
            directions = levels.shape[0]
            values = (levels - zeros.reshape(directions, 1, -1)) * steps.reshape(directions, 1, -1)
            floats.append(values.transpose(0, 2, 1).astype(np.float32))
        inputs[1], inputs[2] = (
            self._constant(t, value) for t, value in zip(inputs[1:3], floats, strict=True)
        )
        node.op, node.domain, node.inputs = "LSTM", None, inputs[:8]
        return None

    def _constant(self, stored: Tensor, weight: np.ndarray) -> Constant:
        return Constant(self.name(f"{stored.name}_float"), weight)

    def name(self, wanted: str) -> str:
        name = unused_name(wanted, self.taken)
        self.taken.add(name)
        return name


def _only_reader(graph: Graph, tensor: Tensor) -> Node | None:
    alone = len(tensor.outputs) == 1 and not is_output(graph, tensor)
    return tensor.outputs[0] if alone else None


def _rounded_bias(tensor: Tensor) -> Tensor | None:
    """The float bias [C] of which a quantizer made integers in units of both scales: Reshape(Cast(Floor(b / s)))."""
    for op in ("Reshape", "Cast", "Floor", "Div"):
        node = tensor.inputs[0] if tensor.inputs else None
        if node is None or node.op not in ((op, "Round") if op == "Floor" else (op,)):
            return None
        tensor = node.inputs[0]
    return tensor if isinstance(tensor, Constant) and len(tensor.shape) == 1 else None


def _factors(tensor: Tensor) -> list[Tensor]:
    """What the tensor is the product of."""
    node = tensor.inputs[0] if tensor.inputs else None
    if node is None or node.op != "Mul" or node.domain:
        return [tensor]
    return [part for source in node.inputs for part in _factors(source)]


def _levels(node: Node, weight: int, zero: int) -> np.ndarray | str:
    """The weight's integers without their zero-point, which is one for all, or one per output channel."""
    stored = node.inputs[weight]
    given = node.inputs[zero] if len(node.inputs) > zero and not node.inputs[zero].is_empty() else None
    if not isinstance(stored, Constant) or not (given is None or isinstance(given, Constant)):
        return "its weight is computed at run time"
    levels = read(stored).astype(np.float64)
    return (
        levels if given is None else _along_output(node, levels, read(given).astype(np.float64), np.subtract)
    )


def _weight(node: Node, levels: np.ndarray, factor: np.ndarray) -> np.ndarray | str:
    """levels * factor as float32; the factor multiplies the layer's result, so it must be one for all, or
    one per output channel.
    """
    found = _along_output(node, levels, factor, np.multiply)
    return found if isinstance(found, str) else found.astype(np.float32)


def _along_output(node: Node, levels: np.ndarray, values: np.ndarray, by: np.ufunc) -> np.ndarray | str:
    convolution = node.op == "ConvInteger"
    channels = levels.shape[0] if convolution else levels.shape[-1]
    if values.size not in (1, channels):
        return "its scales are not one for all, or one per output channel"
    shape = (-1, *[1] * (levels.ndim - 1)) if convolution else (-1,)
    result: np.ndarray = by(levels, values.reshape(shape) if values.size > 1 else values.reshape(()))
    return result
