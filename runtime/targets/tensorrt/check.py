"""What TensorRT will refuse of a quantized model, crash on, take wrongly, or quietly run in float. Reads
the ONNX model; needs no TensorRT.

The rules were found by building with TensorRT-RTX 1.7 (docs/tensorrt.md lists them).
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import onnx
from onnx import TensorProto

from onnx_lathe.engines import SYMMETRIC_ONLY
from onnx_lathe.runtime.targets.core.base import LAYERS, NOT_QUANTIZED, LayerVerdict, layers_of
from onnx_lathe.runtime.targets.tensorrt.following import Follower

QUANTIZERS = ("QuantizeLinear", "DequantizeLinear")
UNSUPPORTED = ("QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger", "DynamicQuantizeLinear")
TAKEN = (
    *(TensorProto.INT8, TensorProto.INT4, TensorProto.FLOAT8E4M3FN, TensorProto.FLOAT4E2M1),
    TensorProto.UNDEFINED,
)
SMALLEST = float(np.finfo(np.float32).tiny)
"""Of a scale: GPUs flush smaller floats to zero, and what they are a divisor of becomes infinite."""
BODIES = ("If", "Loop", "Scan")
IN_FLOAT = "the layer runs in float"
IN_BLOCKS = (
    "its weight is quantized in blocks and its input in INT8, for which TensorRT-RTX applies the scales wrongly; "
    "quantize the weight per output channel"
)
PADDED = "a depthwise convolution in INT8 is padded and grows; leave it in float"


class Concern(NamedTuple):
    node: str
    reason: str
    fatal: bool
    """Whether a build would fail, crash, or give an engine with wrong values."""
    op: str = ""


def concerns(model: onnx.ModelProto) -> Iterator[Concern]:
    """In graph order; those of a body of If, Loop or Scan behind the node that holds it."""
    yield from _concerns(Reader(model.graph))


def _concerns(reader: "Reader") -> Iterator[Concern]:
    for node, name in reader.nodes():
        if node.op_type in UNSUPPORTED and not node.domain:
            reason = f"TensorRT has no {node.op_type}; quantize the float model with 'int8' instead, or int8(existing=strip) gives the float layer back"
            yield Concern(name, reason, True, node.op_type)
        elif node.op_type in QUANTIZERS and not node.domain:
            for reason, fatal in reader.quantizer(node):
                yield Concern(name, reason, fatal, node.op_type)
        elif node.op_type in LAYERS and not node.domain:
            for reason in reader.layer(node):
                yield Concern(name, reason, reason == IN_BLOCKS, node.op_type)
        for body in reader.bodies(node):
            yield from _concerns(body)


def verdicts(model: onnx.ModelProto, in_float: str | None = None) -> list[LayerVerdict]:
    """One per layer, in graph order, those of bodies behind the main graph's, by the rules above: no engine is
    built. in_float: why the engine has no INT8 at all.
    """
    reader = Reader(model.graph)
    main = [
        reader.verdict(node, node.name or f"{node.op_type}_{index}", in_float)
        for index, node in layers_of(model).items()
    ]
    computed = {value.name for value in model.graph.input} - reader.constants.keys()
    return main + list(_inside(reader, computed, in_float, main=True))


def _inside(
    reader: "Reader", computed: set[str], in_float: str | None, main: bool = False
) -> Iterator[LayerVerdict]:
    """Of the layers in bodies; `computed`: names that depend on the model's inputs."""
    computed = computed | {value.name for value in reader.graph.input}
    for node, name in reader.nodes():
        if not main and node.op_type in LAYERS and not node.domain and node.input[1] not in computed:
            yield reader.verdict(node, name, in_float)
        bodies = list(reader.bodies(node))
        if bodies or computed.intersection(node.input):
            computed.update(node.output)
        for body in bodies:
            yield from _inside(body, computed, in_float)


class Reader:
    """A graph, or a body, with what it sees of the graph around it."""

    def __init__(self, graph: onnx.GraphProto, outer: "Reader | None" = None) -> None:
        self.graph = graph
        self.constants: dict[str, TensorProto] = {} if outer is None else dict(outer.constants)
        self.producers: dict[str, onnx.NodeProto] = {} if outer is None else dict(outer.producers)
        self.constants |= {tensor.name: tensor for tensor in graph.initializer}
        self.producers |= {name: node for node in graph.node for name in node.output}
        for node in graph.node:
            if node.op_type == "Constant" and node.attribute and node.attribute[0].name == "value":
                self.constants[node.output[0]] = node.attribute[0].t
        self.follower = Follower(self.producers, self.constants)
        self.known: set[str] = set(self.constants) | (set() if outer is None else outer.known)
        """Tensors that do not depend on the inputs."""
        for node in graph.node:
            if node.input and node.op_type not in BODIES and self.known.issuperset(filter(None, node.input)):
                self.known.update(node.output)

    def nodes(self) -> Iterator[tuple[onnx.NodeProto, str]]:
        """Each node with what to call it."""
        for index, node in enumerate(self.graph.node):
            yield node, node.name or f"{node.op_type}_{index}"

    def bodies(self, node: onnx.NodeProto) -> Iterator["Reader"]:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield Reader(attribute.g, self)

    def quantizer(self, node: onnx.NodeProto) -> Iterator[tuple[str, bool]]:
        scale = self.constants.get(node.input[1])
        if scale is None:
            yield "its scale is computed at run time, on which TensorRT crashes; it must be a constant", True
            return
        zero_point = self.constants.get(node.input[2]) if len(node.input) > 2 and node.input[2] else None
        code_type = self._code_type(node, zero_point)
        if code_type not in TAKEN:
            yield f"it is {TensorProto.DataType.Name(code_type)}; {SYMMETRIC_ONLY}", True
        elif zero_point is not None and np.any(_values(zero_point)):
            yield f"its zero-point is not 0; {SYMMETRIC_ONLY}", True
        values = _values(scale)
        if values is not None and not np.all(np.isfinite(values) & (values > 0)):
            yield "a scale is not positive and finite; calibrate and export the model again", True
        elif values is not None and values.size and float(values.min()) < SMALLEST:
            yield (
                f"a scale is {values.min():.2g}, which a GPU takes for 0; give it one of {SMALLEST:.2g} or more",
                True,
            )
        if blocks := self._blocks(node):
            yield blocks, True
        if scale.dims and node.input[0] not in self.known:
            yield (
                "its activation is not quantized per tensor with a scale of rank 0: the layers behind it run in float",
                False,
            )

    def _blocks(self, node: onnx.NodeProto) -> str:
        """Why TensorRT does not take the blocks of a constant; empty if it does, or there are none."""
        attributes = {attribute.name: attribute.i for attribute in node.attribute}
        dims = self._dims(node.input[0])
        if not attributes.get("block_size") or not dims:
            return ""
        axis = attributes.get("axis", 1) % len(dims)
        if axis < len(dims) - 2:
            return f"its blocks lie along axis {axis} of {len(dims)}; TensorRT takes them along one of the last two"
        if dims[axis] % attributes["block_size"]:
            return (
                f"its blocks of {attributes['block_size']} do not divide {dims[axis]}; take a divisor of it"
            )
        return ""

    def eight_bit_float(self, node: onnx.NodeProto) -> bool:
        zero_point = self.constants.get(node.input[2]) if len(node.input) > 2 and node.input[2] else None
        return self._code_type(node, zero_point) == TensorProto.FLOAT8E4M3FN

    def _code_type(self, node: onnx.NodeProto, zero_point: TensorProto | None) -> int:
        if zero_point is not None:
            return zero_point.data_type
        if node.op_type == "DequantizeLinear":
            source = self.constants.get(node.input[0])
            return source.data_type if source is not None else TensorProto.UNDEFINED
        declared = next((attribute.i for attribute in node.attribute if attribute.name == "output_dtype"), 0)
        return declared or TensorProto.UINT8

    def verdict(self, node: onnx.NodeProto, name: str, in_float: str | None) -> LayerVerdict:
        found = (self.follower.activation(node.input[0]), self.follower.weight(node.input[1]))
        pairs = [pair for pair in found if pair is not None]
        if not pairs:
            return LayerVerdict(name, node.op_type, False, NOT_QUANTIZED)
        reasons = [*self.layer(node), *(reason for pair in pairs for reason, _ in self.quantizer(pair))]
        if any(map(self.eight_bit_float, pairs)):
            reasons.append("it runs in FP8")
        int8 = not any(reason != PADDED for reason in reasons)
        if int8 and in_float is not None:
            return LayerVerdict(name, node.op_type, False, in_float)
        return LayerVerdict(name, node.op_type, int8, "; ".join(reasons))

    def layer(self, node: onnx.NodeProto) -> Iterator[str]:
        activation, weight = self.follower.activation(node.input[0]), self.follower.weight(node.input[1])
        if activation is None and weight is None:
            return
        if weight is None:
            yield f"only its input is quantized: {IN_FLOAT}, and quantizing costs time"
        elif activation is None:
            stopper = self.follower.stopper(node.input[0])
            if stopper is None:
                yield f"only its weight is quantized: {IN_FLOAT}; the weight stays small"
            else:
                yield f"{stopper.op_type} stands between its input's pair and it: {IN_FLOAT}; move the pair behind it"
        elif node.op_type == "ConvTranspose":
            yield f"TensorRT-RTX has no INT8 transposed convolution: {IN_FLOAT}"
        elif node.op_type == "Conv" and self._depthwise(node):
            yield PADDED
        elif any(attribute.name == "block_size" and attribute.i for attribute in weight.attribute):
            yield IN_BLOCKS
        elif self._wrong_axis(node, weight):
            yield f"its weight is not quantized per output channel: {IN_FLOAT}"

    def _depthwise(self, node: onnx.NodeProto) -> bool:
        return any(
            attribute.name == "group" and attribute.i > 1 for attribute in node.attribute
        ) and self._dims(node.input[1])[1:2] == [1]

    def _wrong_axis(self, node: onnx.NodeProto, weight: onnx.NodeProto) -> bool:
        """Whether the weight is quantized along another axis than the layer's outputs. Only told where its shape is
        known.
        """
        scale, codes = self.constants.get(weight.input[1]), self._dims(weight.input[0])
        if scale is None or len(scale.dims) != 1 or scale.dims[0] == 1 or not codes:
            return False
        attributes = {attribute.name: attribute.i for attribute in weight.attribute}
        axis = attributes.get("axis", 1) % len(codes)
        found = self.follower.weight_axis(node.input[1], axis, codes)
        transposed = any(attribute.name == "transB" and attribute.i for attribute in node.attribute)
        if found is None:
            return True
        place, rank = found
        return bool(place != (0 if node.op_type == "Conv" or transposed else rank - 1))

    def _dims(self, tensor: str) -> list[int]:
        """Shape of a constant, or of what a DequantizeLinear or QuantizeLinear made of one; empty if
        unknown.
        """
        while tensor not in self.constants:
            node = self.producers.get(tensor)
            if node is None or node.op_type not in QUANTIZERS:
                return []
            tensor = node.input[0]
        return list(self.constants[tensor].dims)


def _values(tensor: TensorProto) -> np.ndarray | None:
    """None for data that is kept in another file: scales there are not read."""
    if tensor.data_location == TensorProto.EXTERNAL:
        return None
    return np.asarray(onnx.numpy_helper.to_array(tensor)).astype(np.float64)
