"""Pairs of QuantizeLinear and DequantizeLinear that other tools wrote, in whatever form: read, taken out,
or brought to the canonical form.

A pair clips. Where its lowest value is 0 the tool may have dropped a ReLU in front of it
(onnxruntime.quantization does), so a ReLU takes over what the zero-point did, or a Clip to 0..6 if the
range ends there; unless the values cannot be negative in any case.
"""

import json
from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import onnx

from onnx_lathe import metadata
from onnx_lathe.layout import LAYOUT
from onnx_lathe.passes.graph import Constant, Graph, Node, Tensor, Variable
from onnx_lathe.passes.graph.constants import constant_to_initializer
from onnx_lathe.passes.graph.evaluate import REFUSALS
from onnx_lathe.passes.graph.initializers import read
from onnx_lathe.passes.graph.layers import constant_value, is_constant
from onnx_lathe.passes.graph.model import node_metadata, taken_names, unused_name
from onnx_lathe.passes.graph.rewire import captured_names, disconnect, is_output, replace_input
from onnx_lathe.passes.numerics.quantization import affine

_DOMAINS = (None, "", "ai.onnx", "com.microsoft")
_BYTES = (np.dtype(np.int8), np.dtype(np.uint8))
_INTEGERS = (*_BYTES, np.dtype(np.int16), np.dtype(np.uint16))
CLIP_TOLERANCE = 6e-3
"""A range that ends so near to 6 comes from a ReLU6: a float16 scale is off by as much as 2^-11."""
_POSITIVE = ("Relu", "Sigmoid", "HardSigmoid", "Softmax", "Exp", "Abs")
_PASSED_ON = (
    *LAYOUT,
    *("MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool"),
    *("Dropout", "Slice", "Resize", "QuantizeLinear", "DequantizeLinear"),
)


@dataclass(frozen=True, eq=False)
class Parameters:
    """What a node of a pair quantizes with. `dtype`: of the integers; `scale` and `zero_point` as stored."""

    dtype: np.dtype
    scale: np.ndarray
    zero_point: np.ndarray

    @property
    def is_centred(self) -> bool:
        """Whether INT8 with zero-point 0 and the same scale has the very same values."""
        return bool((self.zero_point == {"int8": 0, "uint8": 128}.get(self.dtype.name, -1)).all())

    @property
    def is_canonical(self) -> bool:
        return self.dtype == np.int8 and self.is_centred and self.scale.ndim == 0

    @property
    def per_tensor_byte(self) -> bool:
        return self.dtype in _BYTES and self.scale.size == 1

    @property
    def cuts_negatives(self) -> bool:
        """Whether it has one scale, and 0 as its lowest value."""
        return self.dtype in _INTEGERS and self.scale.size == 1 and self.range[0] == 0

    @property
    def range(self) -> tuple[float, float]:
        """The lowest and the highest value, of a scale per tensor."""
        limits, zero, scale = (
            np.iinfo(self.dtype),
            int(self.zero_point.reshape(-1)[0]),
            float(self.scale.reshape(-1)[0]),
        )
        return (limits.min - zero) * scale, (limits.max - zero) * scale

    def __str__(self) -> str:
        zeros = np.unique(self.zero_point)
        return (
            f"{self.dtype.name.upper()} with zero-point {zeros[0]}"
            if zeros.size == 1
            else f"{self.dtype.name.upper()} with zero-points"
        )

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Parameters)
            and self.dtype == other.dtype
            and np.array_equal(self.scale, other.scale)
            and np.array_equal(self.zero_point, other.zero_point)
        )


def parameters(node: Node) -> Parameters | None:
    """Scale and zero-point of a QuantizeLinear or DequantizeLinear; None if they are computed at run time."""
    stored = [tensor for tensor in node.inputs[1:3] if not tensor.is_empty()]
    if not all(isinstance(tensor, Constant) for tensor in stored):
        return None
    scale = read(stored[0])
    if len(stored) > 1:
        return Parameters(np.dtype(stored[1].dtype), scale, read(stored[1]))
    if node.op == "DequantizeLinear":
        source = node.inputs[0]
        quantizer = (
            source.inputs[0] if source.inputs and is_node(source.inputs[0], "QuantizeLinear") else None
        )
        given = None if quantizer is None else parameters(quantizer)
        dtype = source.dtype if given is None else given.dtype
    else:
        dtype = onnx.helper.tensor_dtype_to_np_dtype(
            node.attrs.get("output_dtype", 0) or onnx.TensorProto.UINT8
        )
    return None if dtype is None else Parameters(np.dtype(dtype), scale, np.zeros(scale.shape, dtype))


def is_blocked(tensor: Tensor) -> bool:
    """Whether a constant tensor is decoded from integers with a scale per block."""
    if isinstance(tensor, Constant) or not tensor.inputs:
        return False
    node = tensor.inputs[0]
    return bool(node.op == "DequantizeLinear" and node.attrs.get("block_size", 0)) or is_blocked(
        node.inputs[0]
    )


def is_node(node: Node, op: str) -> bool:
    return node.op == op and node.domain in _DOMAINS


class Pairs:
    """Edits the pairs of one graph."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.taken = taken_names(graph)
        self.captured: Collection[str] = captured_names(graph)
        self._clipped: dict[int, Tensor] = {}
        self._positive: dict[int, bool] = {}
        quantizing = [
            node
            for node in graph.nodes
            if is_node(node, "QuantizeLinear") or is_node(node, "DequantizeLinear")
        ]
        for node in quantizing:
            for tensor in node.inputs:  # PyTorch exports scales as Constant nodes
                producer = tensor.inputs[0] if tensor.inputs else None
                if producer is not None and producer.op == "Constant" and tensor.name not in self.captured:
                    constant_to_initializer(producer)
        self.quantizers = [node for node in quantizing if node.op == "QuantizeLinear"]
        self.dequantizers = [node for node in quantizing if node.op == "DequantizeLinear"]

    def unpair(self, node: Node) -> str | None:
        """Readers of this DequantizeLinear read what was quantized. Returns why not, having changed
        nothing.
        """
        source, found = node.inputs[0], parameters(node)
        quantizer = source.inputs[0] if source.inputs else None
        if quantizer is None or not is_node(quantizer, "QuantizeLinear"):
            return (
                f"its integers come from {quantizer.name or quantizer.op}"
                if quantizer is not None
                else "its integers are an input"
            )
        if found is None or parameters(quantizer) != found or node.attrs.get("output_dtype", 0):
            return "it does not give back what its QuantizeLinear was given: other scales, another type, or scales computed at run time"
        self._replace(
            node, quantizer.inputs[0] if is_constant(quantizer.inputs[0]) else self.clipped(quantizer)
        )
        return None

    def decode(self, node: Node) -> str | None:
        """The constant behind this DequantizeLinear becomes a float initializer. Returns why not, having
        changed nothing.
        """
        domain, node.domain = node.domain, None  # that of com.microsoft computes alike
        try:
            values = constant_value(node.outputs[0], self.graph.opset)
        except REFUSALS as error:
            node.domain = domain
            return f"it cannot be computed: {' '.join(str(error).split())}"
        result = node.outputs[0]
        is_seen = result.name in self.captured or is_output(self.graph, result)
        self._replace(node, Constant(self.name(f"{result.name}_float") if is_seen else result.name, values))
        return None

    def _replace(self, node: Node, value: Tensor) -> None:
        result = node.outputs[0]
        if result.name in self.captured or is_output(self.graph, result):
            node.op, node.domain = "Identity", None
            node.attrs.clear()
            node.inputs.clear()
            node.inputs.append(value)
            return
        disconnect(node)
        for reader in list(result.outputs):
            replace_input(reader, result, value)

    def clipped(self, quantizer: Node) -> Tensor:
        """What the pair was given, with values below 0 clipped if the pair did that."""
        tensor, found = quantizer.inputs[0], parameters(quantizer)
        if found is None or not found.cuts_negatives or self.is_positive(tensor):
            return tensor
        if id(tensor) not in self._clipped:
            high = found.range[1]
            result = Variable(self.name(f"{tensor.name}_relu"), tensor.dtype, tensor.shape)
            bounds = [
                Constant(self.name(f"{tensor.name}_{end}"), np.asarray(value, found.scale.dtype))
                for end, value in (("low", 0), ("high", 6))
            ]
            node = Node("Relu", self.name(f"{tensor.name}_Relu"), {}, [tensor], [result])
            if abs(high - 6) < CLIP_TOLERANCE:
                node.op = "Clip"
                node.inputs.extend(bounds)
            self.graph.nodes.append(node)
            self._clipped[id(tensor)] = result
        return self._clipped[id(tensor)]

    def is_positive(self, tensor: Tensor) -> bool:
        """Whether no value is negative, as far as the operators tell."""
        if id(tensor) not in self._positive:
            self._positive[id(tensor)] = self._tell_positive(tensor)
        return self._positive[id(tensor)]

    def _tell_positive(self, tensor: Tensor) -> bool:
        node = tensor.inputs[0] if tensor.inputs else None
        if node is None or node.op in _POSITIVE:
            return node is not None
        if node.op == "Clip":
            low = node.inputs[1] if len(node.inputs) > 1 else None
            return isinstance(low, Constant) and bool(np.all(read(low) >= 0))
        if node.op in ("Concat", "Add"):
            return all(self.is_positive(source) for source in node.inputs)
        return node.op in _PASSED_ON and self.is_positive(node.inputs[0])

    def form(self, quantizer: Node) -> Parameters | str:
        """What this QuantizeLinear and all readers of its integers quantize with; why there is no such
        thing, if there is none.
        """
        codes, found = quantizer.outputs[0], parameters(quantizer)
        if found is None:
            return "its scale or zero-point is computed at run time"
        if not (found.scale > 0).all():
            return "its scale is not positive"
        if is_output(self.graph, codes) or codes.name in self.captured:
            return "its integers are read elsewhere too"
        for reader in codes.outputs:
            if not is_node(reader, "DequantizeLinear"):
                return f"its integers are read by {reader.name or reader.op}"
            if parameters(reader) != found:
                return f"{reader.name} has another scale or zero-point"
        return found

    def make_canonical(self, quantizer: Node) -> float:
        """Brings a pair of bytes per tensor to INT8 with zero-point 0, its range kept. Returns how many
        times wider its steps are.
        """
        before = parameters(quantizer)
        if before is None or not before.per_tensor_byte:
            raise ValueError(f"{quantizer.name} is no pair of bytes per tensor")
        low, high = before.range
        old = before.scale.reshape(-1)[0]
        scale = old if before.is_centred else affine.range_scale(low, high).astype(old.dtype)
        source = self.clipped(quantizer)
        stored = [
            Constant(self.name(f"{source.name}_scale"), np.asarray(scale)),
            Constant(self.name(f"{source.name}_zero_point"), np.asarray(0, np.int8)),
        ]
        for node in [quantizer, *quantizer.outputs[0].outputs]:
            while len(node.inputs) > 1:
                node.inputs.pop()
            node.inputs.extend(stored)
            node.domain = None
            node.attrs.clear()
        quantizer.inputs[0] = source
        quantizer.outputs[0].dtype = np.dtype(np.int8)
        node_metadata(quantizer)[metadata.RANGE] = json.dumps([low, high])
        return float(scale / old)

    def note_range(self, quantizer: Node) -> None:
        """Says in the metadata of a pair in the canonical form what its range is, unless it says so
        already.
        """
        found, notes = parameters(quantizer), node_metadata(quantizer)
        if found is not None and metadata.RANGE not in notes:
            notes[metadata.RANGE] = json.dumps(found.range)

    def centre_constant(self, node: Node) -> bool:
        """The constant bytes behind this DequantizeLinear become an INT8 initializer with zero-point 0, if
        that holds the same values.
        """
        source, found, opset = node.inputs[0], parameters(node), self.graph.opset
        if found is None or found.dtype not in _BYTES:
            return False
        try:
            codes = constant_value(source, opset).astype(np.int32)
        except REFUSALS:
            return False
        zeros = found.zero_point.astype(np.int32)
        if zeros.size > 1:
            axis = node.attrs.get("axis", 1) % codes.ndim
            zeros = zeros.reshape([-1 if index == axis else 1 for index in range(codes.ndim)])
        levels = codes - (zeros if zeros.ndim > 1 else zeros.reshape(-1)[0])
        if levels.size == 0 or levels.min() < -128 or levels.max() > 127:
            return False
        name = node.outputs[0].name
        constants = {
            "int8": levels.astype(np.int8),
            "scale": found.scale,
            "zero_point": np.zeros(found.scale.shape, np.int8),
        }
        node.inputs.clear()
        node.inputs.extend(
            Constant(self.name(f"{name}_{role}"), np.asarray(values)) for role, values in constants.items()
        )
        node.domain = None
        return True

    def name(self, wanted: str) -> str:
        name = unused_name(wanted, self.taken)
        self.taken.add(name)
        return name
