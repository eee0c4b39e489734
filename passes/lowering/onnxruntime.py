"""Canonical INT8 form -> what ONNX Runtime's CPU kernels compute on integers.

    activation -> Q -> DQ, INT8, zero-point 0    UINT8 over the calibrated range (`lathe.range`), with a zero-point
    Relu or Clip(0, m) -> Q -> DQ                Q -> DQ with zero-point 0 and a range that ends at m
    x -> MaxPool, Reshape, ... -> Q -> DQ        x -> Q -> DQ -> MaxPool -> Q -> DQ, one scale
    codebook weight -> Q -> DQ                   INT8 initializer -> DQ
    a layer that would run in float              float weight, and no pairs around it that serve nothing else

Why: ONNX Runtime makes a QLinearConv only of DQ -> Conv -> Q with nothing in between; saturation of UINT8
at zero-point 0 is the ReLU. What does not become such a kernel runs in float behind DequantizeLinear nodes,
slower than the float model.

An INT8 weight times a UINT8 activation is summed in pairs in 16 bits on x86-64 processors with AVX2 or
AVX-512 but without VNNI, and saturates there: `reduce_range` stores weights in 7 bits, of which no pair
can.
Source: ONNX Runtime's documentation, "Quantize ONNX models", "When and why do I need to try U8U8?".
"""

import json
import math
from dataclasses import dataclass
from typing import NamedTuple

import ml_dtypes
import numpy as np
import onnx

from onnx_lathe import metadata
from onnx_lathe.passes.core.base import Pass
from onnx_lathe.passes.core.options import option
from onnx_lathe.passes.core.report import PassReport
from onnx_lathe.passes.core.services import Context
from onnx_lathe.passes.graph import Constant, Graph, Node, Tensor, Variable
from onnx_lathe.passes.graph.constants import constant_to_initializer
from onnx_lathe.passes.graph.gates import clip_range
from onnx_lathe.passes.graph.layers import WEIGHT_INPUT, constant_value, is_constant, output_axis
from onnx_lathe.passes.graph.model import node_metadata, taken_names, unused_name
from onnx_lathe.passes.graph.quantization.pairs import is_dequantized
from onnx_lathe.passes.graph.quantization.placement import float_reason, hands_on, is_floor, quantized_layers
from onnx_lathe.passes.graph.rewire import captured_names, disconnect, is_output, replace_input, sweep
from onnx_lathe.passes.lowering.restoring import restore_weight
from onnx_lathe.passes.numerics.quantization import affine
from onnx_lathe.placement import Placement

UNQUANTIZED_RESULT = (
    "its result is not quantized, without which ONNX Runtime computes it in float; run int8 with --target ort"
)
OUTPUT_RESULT = "its result is an output of the model, which ONNX Runtime computes in float"
_MIDDLE = 128


class Lowering(Pass):
    name = "lower-onnxruntime"

    @dataclass(frozen=True)
    class Config:
        reduce_range: bool = option(False, "weights of 7 bits, for x86-64 processors without VNNI")

    def apply(self, graph: Graph, context: Context) -> PassReport:
        work = _Work(graph, context.placement)
        for node in graph.nodes:
            if node.op == "Constant" and not work.is_seen(node.outputs[0]):
                constant_to_initializer(node)
        work.restore_layers()
        work.drop_pairs()
        work.hand_on()
        graph.toposort()
        for pair in work.pairs():
            work.widen(pair)
        for node in quantized_layers(graph):
            work.weight(node, self.config.reduce_range)
            work.bias(node)
        for node in list(graph.nodes):
            if node.op == "HardSigmoid" and not node.domain and node.outputs:
                work.gate(node)
        sweep(graph)
        return work.report


class _Pair(NamedTuple):
    """An activation's QuantizeLinear and all DequantizeLinear nodes behind it."""

    quantize: Node
    dequantize: list[Node]

    @property
    def source(self) -> Tensor:
        return self.quantize.inputs[0]

    @property
    def nodes(self) -> list[Node]:
        return [self.quantize, *self.dequantize]


class _Work:
    def __init__(self, graph: Graph, placement: Placement) -> None:
        self.graph, self.placement = graph, placement
        self.report = PassReport()
        self.captured = captured_names(graph)
        self.taken = taken_names(graph)
        self.reduced: set[str] = set()
        self.followed: dict[int, Node] = {}
        """A QuantizeLinear by identity -> the Q or DQ above, whose scale and zero-point it takes."""

    def is_seen(self, tensor: Tensor) -> bool:
        return is_output(self.graph, tensor) or tensor.name in self.captured

    def pairs(self) -> list[_Pair]:
        """Pairs per tensor with constant parameters, of which others read no more than the result."""
        found = []
        for node in self.graph.nodes:
            if node.op != "QuantizeLinear" or node.domain or not node.outputs or is_constant(node.inputs[0]):
                continue
            pair = _Pair(node, list(node.outputs[0].outputs))
            known = all(
                isinstance(tensor, Constant) and tensor.values.size == 1
                for part in pair.nodes
                for tensor in part.inputs[1:]
            )
            alone = all(part.op == "DequantizeLinear" and not part.domain for part in pair.dequantize)
            if (
                known
                and alone
                and pair.dequantize
                and self._gives_back(pair)
                and not self.is_seen(node.outputs[0])
            ):
                found.append(pair)
        return found

    def _gives_back(self, pair: _Pair) -> bool:
        """Whether the pair returns what it was given, as far as its steps allow."""
        scales = {float(node.inputs[1].values.item()) for node in pair.nodes}
        zeros = {int(node.inputs[2].values.item()) if len(node.inputs) > 2 else 0 for node in pair.nodes}
        return len(scales) == len(zeros) == 1

    def restore_layers(self) -> None:
        for node in quantized_layers(self.graph):
            if is_constant(node.inputs[WEIGHT_INPUT]) and (reason := self._why_float(node)) is not None:
                restore_weight(self.graph, node)
                self.report.skip(node.name, reason)
                self.report.edit(node.name, "its weight is float again")

    def _why_float(self, node: Node) -> str | None:
        weight = constant_value(node.inputs[WEIGHT_INPUT], self.graph.opset)
        if reason := float_reason(node, weight.shape, self.placement):
            return reason
        if node.op not in self.placement.results or self._lands(node.outputs[0]):
            return None
        return OUTPUT_RESULT if is_output(self.graph, node.outputs[0]) else UNQUANTIZED_RESULT

    def _lands(self, tensor: Tensor) -> bool:
        """Whether every reader of the tensor quantizes it, behind nothing but what ONNX Runtime does on
        integers.
        """
        return (
            bool(tensor.outputs)
            and not self.is_seen(tensor)
            and all(self._lands_in(reader, tensor) for reader in tensor.outputs)
        )

    def _lands_in(self, reader: Node, tensor: Tensor) -> bool:
        if reader.op == "QuantizeLinear":
            return True
        through = is_floor(reader) or hands_on(reader, self.placement)
        return through and reader.inputs[0] is tensor and self._lands(reader.outputs[0])

    def drop_pairs(self) -> None:
        """Takes out the pairs of the pass that no kernel on integers reads or writes."""
        kernels = {id(node) for node in quantized_layers(self.graph)}
        for node in self.graph.nodes:
            if (
                node.op in self.placement.operators
                and all(map(is_dequantized, node.inputs))
                and self._lands(node.outputs[0])
            ):
                kernels.add(id(node))
        for pair in self.pairs():
            writer = self._writer(pair.source)
            written = writer is not None and id(writer) in kernels
            seen = any(self.is_seen(node.outputs[0]) for node in pair.dequantize)
            if metadata.RANGE in node_metadata(pair.quantize) and not (
                written or seen or self._feeds(pair.quantize, kernels)
            ):
                self._drop(pair)

    def _writer(self, tensor: Tensor) -> Node | None:
        while tensor.inputs and (is_floor(tensor.inputs[0]) or hands_on(tensor.inputs[0], self.placement)):
            tensor = tensor.inputs[0].inputs[0]
        return tensor.inputs[0] if tensor.inputs else None

    def _feeds(self, node: Node, kernels: set[int]) -> bool:
        """Whether a kernel reads the node's result, behind quantization and what hands integers on."""
        for reader in node.outputs[0].outputs:
            if id(reader) in kernels:
                return True
            if (reader.op.endswith("quantizeLinear") or hands_on(reader, self.placement)) and self._feeds(
                reader, kernels
            ):
                return True
        return False

    def _drop(self, pair: _Pair) -> None:
        source = pair.source
        for node in pair.dequantize:
            for reader in list(node.outputs[0].outputs):
                replace_input(reader, node.outputs[0], source)
        self.report.edit(
            pair.quantize.name, f"{source.name} is float again: nothing computes on its integers"
        )
        for node in pair.nodes:
            disconnect(node)

    def hand_on(self) -> None:
        """Puts pairs in front of operators that hand integers on. All of a chain get the scale of the
        first, if it had a pair already.

        A tensor that others read too stays as it is: the range of one reader would clip what the others get.
        """
        pairs = {id(pair.source): pair for pair in self.pairs()}
        for pair in pairs.values():
            below, tensor = pair, pair.source
            while (
                tensor.inputs
                and hands_on(tensor.inputs[0], self.placement)
                and not self.is_seen(tensor)
                and len(tensor.outputs) == 1
            ):
                node = tensor.inputs[0]
                tensor = node.inputs[0]
                if is_dequantized(tensor):
                    self.followed[id(below.quantize)] = tensor.inputs[0]
                    break
                if id(tensor) in pairs:
                    node.inputs[0] = pairs[id(tensor)].dequantize[0].outputs[0]
                    self.followed[id(below.quantize)] = pairs[id(tensor)].quantize
                    break
                above = self._copy(pair, tensor)
                node.inputs[0] = above.dequantize[0].outputs[0]
                self.followed[id(below.quantize)] = above.quantize
                below = above

    def _copy(self, pair: _Pair, tensor: Tensor) -> _Pair:
        """A pair behind `tensor` like another, which nobody reads yet."""
        kind = self._parameters(pair.quantize)[1].dtype  # UINT8 in a model that was lowered before
        codes = Variable(self._name(f"{tensor.name}_codes"), kind, tensor.shape)
        result = Variable(self._name(f"{tensor.name}_handed_on"), np.float32, tensor.shape)
        parameters = list(pair.quantize.inputs[1:])
        quantize = Node(
            "QuantizeLinear",
            self._name(f"{tensor.name}_Q"),
            dict(pair.quantize.attrs),
            [tensor, *parameters],
            [codes],
        )
        dequantize = Node(
            "DequantizeLinear", self._name(f"{tensor.name}_DQ"), {}, [codes, *parameters], [result]
        )
        node_metadata(quantize).update(node_metadata(pair.quantize))
        self.graph.nodes += [quantize, dequantize]
        self.report.edit(pair.quantize.name, f"{tensor.name} is quantized before {tensor.outputs[0].name}")
        return _Pair(quantize, [dequantize])

    def widen(self, pair: _Pair) -> None:
        """UINT8 with a zero-point, over the range; without a range the scale stays."""
        above = self.followed.get(id(pair.quantize))
        if above is not None:
            self._write(pair, self._explicit(above))
            return
        scale, zero = self._parameters(pair.quantize)
        if zero.dtype != np.int8:
            return
        floor = self._floor(pair)
        ends = self._range(pair, scale) if zero == 0 else None
        if ends is None and zero == 0 and floor is not None:
            ends = 0.0, affine.LEVELS * float(scale)  # what the codes could hold
        if ends is not None:
            low, high = (0.0, min(ends[1], floor)) if floor is not None else ends
            scale, middle = affine.unsigned_scale(low, high)
        else:
            middle = np.uint8(int(zero) + _MIDDLE)
        if middle == 0 and floor is not None and 255 * float(scale) <= floor * (1 + 1e-6):
            self._take_floor(pair)
        name = pair.source.name
        stored: dict[str, np.ndarray] = {
            f"{name}_scale": np.asarray(scale, np.float32),
            f"{name}_zero": np.asarray(middle),
        }
        self._write(pair, [self._constant(key, values) for key, values in stored.items()])
        self.report.edit(
            pair.quantize.name, f"{name} is UINT8: scale {float(scale):.3g}, zero-point {middle}"
        )

    def _explicit(self, node: Node) -> list[Tensor]:
        """Scale and zero-point of a Q or DQ; the zero-point of one that leaves it out has the type of its
        integers.
        """
        if len(node.inputs) > 2:
            return list(node.inputs[1:])
        kind = node.inputs[0].dtype if node.op == "DequantizeLinear" else self._parameters(node)[1].dtype
        return [
            node.inputs[1],
            self._constant(f"{node.inputs[1].name}_zero", np.zeros(node.inputs[1].shape, kind)),
        ]

    def _parameters(self, node: Node) -> tuple[np.float32, np.generic]:
        """(scale, zero-point) of a Q per tensor."""
        scale = np.float32(node.inputs[1].values.item())
        if len(node.inputs) > 2:
            return scale, node.inputs[2].values.reshape(-1)[0]
        kind = onnx.helper.tensor_dtype_to_np_dtype(
            node.attrs.get("output_dtype", 0) or onnx.TensorProto.UINT8
        )
        return scale, kind.type(0)

    def _range(self, pair: _Pair, scale: np.float32) -> tuple[float, float] | None:
        """The calibrated range; as much wider or narrower as training has made the scale since."""
        text = node_metadata(pair.quantize).get(metadata.RANGE)
        if text is None:
            return None
        return affine.trained_range(scale, *json.loads(text))

    def _floor(self, pair: _Pair) -> float | None:
        """The upper end of the ReLU or Clip in front of the pair, if nothing else reads it; None without
        one.
        """
        tensor = pair.source
        if (
            not tensor.inputs
            or not is_floor(tensor.inputs[0])
            or len(tensor.outputs) > 1
            or self.is_seen(tensor)
        ):
            return None
        node = tensor.inputs[0]
        return math.inf if node.op == "Relu" else clip_range(node)[1]

    def _take_floor(self, pair: _Pair) -> None:
        """What saturates at the zero-point needs no ReLU."""
        node = pair.source.inputs[0]
        pair.quantize.inputs[0] = node.inputs[0]
        disconnect(node)

    def _write(self, pair: _Pair, parameters: list[Tensor]) -> None:
        for node in pair.nodes:
            node.inputs = [node.inputs[0], *parameters]
            node.attrs.pop("axis", None)
            node.attrs.pop("output_dtype", None)
        pair.quantize.outputs[0].dtype = parameters[1].dtype if len(parameters) > 1 else np.dtype(np.uint8)

    def gate(self, node: Node) -> None:
        """A HardSigmoid between integers becomes an addition, which there is a kernel for.

        HardSigmoid(x) = alpha * Clip(x + beta / alpha, 0, 1 / alpha): UINT8 at zero-point 0 clips, and
        reading it by alpha times the scale that wrote it is the product.
        """
        result, alpha, beta = node.outputs[0], node.attrs.get("alpha", 0.2), node.attrs.get("beta", 0.5)
        if (
            len(result.outputs) != 1
            or self.is_seen(result)
            or not is_dequantized(node.inputs[0])
            or alpha <= 0
        ):
            return
        pair = next((pair for pair in self.pairs() if pair.source is result), None)
        if pair is None:
            return
        scale, zero = self._parameters(pair.quantize)
        if zero != 0 or zero.dtype != np.uint8 or 255 * float(scale) > 1 + 1e-6:
            return
        shift = beta / alpha
        step = np.asarray(abs(shift) / 255 or 1.0, np.float32)
        code, middle = (np.asarray(255 * value, np.uint8) for value in (shift > 0, shift < 0))
        constants = [
            self._constant(f"{node.name}_{what}", value)
            for what, value in (("shift", code), ("scale", step), ("zero", middle))
        ]
        decoded = Variable(self._name(f"{node.name}_shift_dequantized"), np.float32, [])
        self.graph.nodes.append(
            Node("DequantizeLinear", self._name(f"{node.name}_shift_DQ"), {}, constants, [decoded])
        )
        node.op, node.attrs, node.inputs = "Add", {}, [node.inputs[0], decoded]
        pair.quantize.inputs[1] = self._constant(
            f"{pair.quantize.inputs[1].name}_sum", np.asarray(scale / alpha, np.float32)
        )
        node_metadata(pair.quantize).pop(metadata.RANGE, None)
        self.report.edit(node.name, "HardSigmoid computed as an addition that saturates")

    def weight(self, layer: Node, reduce_range: bool) -> None:
        """The layer's weight as an INT8 initializer, whatever decodes its integers."""
        node = layer.inputs[WEIGHT_INPUT].inputs[0]
        codes = node.inputs[0]
        if node.attrs.get("block_size", 0) or not is_constant(codes):
            return
        values = constant_value(codes, self.graph.opset)
        if not isinstance(codes, Constant) or values.dtype == ml_dtypes.int4:
            values = values.astype(np.int8) if values.dtype == ml_dtypes.int4 else values
            self._store(node, values)
            self.report.edit(node.name, "weight stored as INT8")
        centred = len(node.inputs) < 3 or not np.any(constant_value(node.inputs[2], self.graph.opset))
        if reduce_range and not centred:
            self.report.skip(layer.name, "the zero-point of its weight is not 0, and its weight keeps 8 bits")
        elif reduce_range and values.dtype == np.int8 and node.name not in self.reduced:
            self.reduced.add(node.name)
            self._store(node, np.rint(values / 2).astype(np.int8))
            node.inputs[1] = self._constant(node.inputs[1].name, node.inputs[1].values * np.float32(2))
            self.report.edit(node.name, "weight has 7 bits")

    def bias(self, layer: Node) -> None:
        """INT32 in units of input scale times weight scale, where the result is float: with a float bias
        there is no QGemm.
        """
        place = self._bias_of(layer)
        if place is None or self._lands(place[0].outputs[0]):
            return
        node, index = place
        source, decoder = (tensor.inputs[0] for tensor in layer.inputs[:2])
        if decoder.attrs.get("block_size", 0):
            return
        scale = constant_value(decoder.inputs[1], self.graph.opset) * constant_value(
            source.inputs[1], self.graph.opset
        )
        values = constant_value(node.inputs[index], self.graph.opset).reshape(-1)
        units = np.rint(values.astype(np.float64) / scale)
        if scale.size not in (1, values.size) or np.abs(units).max(initial=0) > np.iinfo(np.int32).max:
            return
        name = node.inputs[index].name
        stored = self._constant(f"{name}_int32", units.astype(np.int32))
        scales = self._constant(
            f"{name}_scale", np.broadcast_to(scale.astype(np.float32), values.shape).copy()
        )
        result = Variable(self._name(f"{name}_dequantized"), np.float32, list(values.shape))
        self.graph.nodes.append(
            Node("DequantizeLinear", self._name(f"{name}_DQ"), {"axis": 0}, [stored, scales], [result])
        )
        node.inputs[index] = result
        self.report.edit(layer.name, "bias is INT32")

    def _bias_of(self, layer: Node) -> tuple[Node, int] | None:
        """Where the float bias of a Gemm, or of the addition behind a MatMul, is read."""
        if (
            layer.op == "Gemm"
            and len(layer.inputs) > 2
            and {layer.attrs.get("alpha", 1.0), layer.attrs.get("beta", 1.0)} == {1.0}
        ):
            place = layer, 2
        elif (
            layer.op == "MatMul"
            and len(layer.outputs[0].outputs) == 1
            and layer.outputs[0].outputs[0].op == "Add"
        ):
            node = layer.outputs[0].outputs[0]
            place = node, 1 if node.inputs[0] is layer.outputs[0] else 0
        else:
            return None
        bias = place[0].inputs[place[1]]
        if not is_constant(layer.inputs[WEIGHT_INPUT]):
            return None
        columns = constant_value(layer.inputs[WEIGHT_INPUT].inputs[0].inputs[0], self.graph.opset).shape[
            output_axis(layer, 2)
        ]
        return (
            place if isinstance(bias, Constant) and tuple(bias.shape) in ((columns,), (1, columns)) else None
        )

    def _store(self, node: Node, values: np.ndarray) -> None:
        node.inputs[0] = self._constant(f"{node.outputs[0].name}_{values.dtype}", values)
        if len(node.inputs) > 2:
            node.inputs[2] = self._constant(node.inputs[2].name, np.zeros(node.inputs[2].shape, values.dtype))

    def _constant(self, name: str, values: np.ndarray) -> Constant:
        return Constant(self._name(name), values)

    def _name(self, wanted: str) -> str:
        name = unused_name(wanted, self.taken)
        self.taken.add(name)
        return name
