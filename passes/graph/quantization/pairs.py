"""The canonical INT8 form: what builds it, and what tells that it is there already.

    initializer W f32          becomes  INT8 initializer -> DequantizeLinear(scale [O], axis) -> W
    decoded weight W f32       becomes  W -> QuantizeLinear -> DequantizeLinear(scale [O], axis)
    activation x               becomes  x -> QuantizeLinear -> DequantizeLinear(scale [])
    recurrent W f32[2, G*H, I] becomes  INT8 [2*G*H, I] -> DequantizeLinear(scale [2*G*H], axis=0) -> Reshape -> W

    activation x, 16 bits      becomes  the same with INT16, from opset 21 on

Zero-points are INT8 zeros, as TensorRT asks; an activation's scale has rank 0, because shape [1] makes
TensorRT compute in float.
"""

import json

import numpy as np
import onnx

from onnx_lathe import metadata
from onnx_lathe.passes.core.report import PassReport
from onnx_lathe.passes.graph import Constant, Graph, Node, Tensor, Variable, rewire
from onnx_lathe.passes.graph.layers import Weight, is_recurrent
from onnx_lathe.passes.graph.model import node_metadata, taken_names, unused_name
from onnx_lathe.passes.numerics.quantization import affine

INT8 = np.dtype(np.int8)
LOWEST_OPSET = 13
"""The first opset whose DequantizeLinear has a scale per channel."""
WIDE_OPSET = 21
"""The first opset whose QuantizeLinear writes INT16."""


def decoders(tensor: Tensor) -> set[str]:
    """Operators between a constant tensor and the initializers that it comes from."""
    if isinstance(tensor, Constant) or not tensor.inputs:
        return set()
    node = tensor.inputs[0]
    return {node.op}.union(*(decoders(source) for source in node.inputs if not source.is_empty()))


def is_dequantized(tensor: Tensor) -> bool:
    return bool(tensor.inputs) and tensor.inputs[0].op == "DequantizeLinear"


def is_wide(tensor: Tensor) -> bool:
    """Whether the tensor is dequantized from 16 bits."""
    return is_dequantized(tensor) and tensor.inputs[0].inputs[-1].dtype in (np.int16, np.uint16)


def twin(tensor: Tensor, bits: int = 8) -> Tensor | None:
    """The tensor quantized to so many bits and dequantized, if a pair for another reader is there already."""
    for reader in tensor.outputs:
        if (
            reader.op == "QuantizeLinear"
            and metadata.RANGE in node_metadata(reader)
            and (reader.inputs[-1].dtype == np.int16) == (bits == affine.WIDE_BITS)
        ):
            twins = [node.outputs[0] for node in reader.outputs[0].outputs if node.op == "DequantizeLinear"]
            if twins:
                return twins[0]
    return None


def has_directions(weight: Weight) -> bool:
    """Whether the weight is that of a recurrent layer with two directions: its rows are on two axes."""
    return any(is_recurrent(node) for node in weight.nodes) and weight.tensor.shape[0] > 1


def state_zero_points(graph: Graph, report: PassReport) -> None:
    """States the zero-point 0 of int8's pairs that name their type INT8 by `output_dtype` instead, as
    earlier checkpoints have them from opset 21 on. The canonical form, which TensorRT gets, has it stated.
    """
    taken: set[str] | None = None
    for node in graph.nodes:
        if (
            node.op != "QuantizeLinear"
            or len(node.inputs) > 2
            or node.attrs.get("output_dtype") != onnx.TensorProto.INT8
            or metadata.RANGE not in node_metadata(node)
        ):
            continue
        taken = taken_names(graph) if taken is None else taken
        name = unused_name(f"{node.inputs[0].name}_zero_point", taken)
        taken.add(name)
        zero = Constant(name, np.zeros(node.inputs[1].shape or (), np.int8))
        del node.attrs["output_dtype"]
        for part in [node, *node.outputs[0].outputs]:
            if len(part.inputs) == 2 and part.op in ("QuantizeLinear", "DequantizeLinear"):
                part.inputs.append(zero)
        report.edit(node.name, "its zero-point is stated")


class PairWriter:
    """Writes the form into one graph. Names are looked up once: asking the graph for each would take longer
    than all else.
    """

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.taken = taken_names(graph)

    def weight(self, weight: Weight, levels: np.ndarray, scale: np.ndarray) -> None:
        """Stores the weight as INT8 `levels`, or puts a Q/DQ pair behind a codebook, whose indices are
        smaller still. `scale` is float32 [O]; `levels` of a weight that `has_directions` are [rows, inputs].

        What decoded the weight before, if anything did, is left without a reader.
        """
        name, axis = weight.name, weight.axis
        if "Gather" in decoders(weight.tensor):
            result = self._pair(weight.tensor, scale, axis).outputs[0]
        else:
            for producer in list(weight.tensor.inputs):
                producer.outputs.clear()
            shape = list(weight.tensor.shape) if has_directions(weight) else list(levels.shape)
            result = Variable(name, np.float32, shape)
            axis = 0 if has_directions(weight) else axis
            stored = Constant(self._name(f"{name}_int8"), levels)
            rows = result
            if shape != list(levels.shape):
                rows = Variable(self._name(f"{name}_rows"), np.float32, list(levels.shape))
            self._node("DequantizeLinear", name, [stored, *self._parameters(name, scale)], rows, axis)
            if rows is not result:
                target = Constant(self._name(f"{name}_shape"), np.array(shape, np.int64))
                self._node("Reshape", name, [rows, target], result, None)
        for node in weight.nodes:
            rewire.replace_input(node, weight.tensor, result)

    def activation(self, tensor: Tensor, low: float, high: float, bits: int = 8) -> Tensor:
        """Adds a Q/DQ pair behind `tensor` for the range low..high. Returns the dequantized tensor, which
        nobody reads yet.
        """
        kind = np.dtype(np.int16 if bits == affine.WIDE_BITS else np.int8)
        dequantize = self._pair(tensor, affine.range_scale(low, high, bits), None, kind)
        node_metadata(dequantize.inputs[0].inputs[0])[metadata.RANGE] = json.dumps([low, high])
        return dequantize.outputs[0]

    def _pair(
        self, tensor: Tensor, scale: np.ndarray | np.float32, axis: int | None, kind: np.dtype = INT8
    ) -> Node:
        """The DequantizeLinear of a new Q/DQ pair behind `tensor`."""
        parameters = self._parameters(tensor.name, scale, kind)
        levels = Variable(self._name(f"{tensor.name}_{kind}"), kind, tensor.shape)
        self._node("QuantizeLinear", tensor.name, [tensor, *parameters], levels, axis)
        result = Variable(self._name(f"{tensor.name}_dequantized"), np.float32, tensor.shape)
        return self._node("DequantizeLinear", tensor.name, [levels, *parameters], result, axis)

    def _parameters(self, name: str, scale: np.ndarray | np.float32, kind: np.dtype = INT8) -> list[Constant]:
        values = np.asarray(scale, np.float32)
        zeros = np.zeros(values.shape, kind)
        return [
            Constant(self._name(f"{name}_scale"), values),
            Constant(self._name(f"{name}_zero_point"), zeros),
        ]

    def _node(self, op: str, name: str, inputs: list[Tensor], output: Tensor, axis: int | None) -> Node:
        attrs = {} if axis is None else {"axis": axis}
        node = Node(op, self._name(f"{name}_{op}"), attrs, inputs, [output])
        self.graph.nodes.append(node)
        return node

    def _name(self, wanted: str) -> str:
        name = unused_name(wanted, self.taken)
        self.taken.add(name)
        return name
