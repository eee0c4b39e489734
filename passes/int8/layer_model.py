"""One layer and the activation that follows it, as a model of its own: the same nodes, with the weight and
what the layer reads as inputs.

    x, W -> Conv(b) -> BatchNormalization -> Add(skip) -> Relu      from inputs x, W, skip to what Relu gives

What lies between the layer and the activation comes along if it works channel by channel, or adds another
tensor of equal shape; where no activation follows in that way, the model is the layer alone. A convolution
is unpadded: who feeds the model pads.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx
from onnx_graphsurgeon.exporters.onnx_exporter import OnnxExporter

from onnx_lathe.passes.graph import Graph, Node, Tensor
from onnx_lathe.passes.graph.layers import WEIGHT_INPUT, constant_value, is_constant
from onnx_lathe.passes.graph.model import unused_name
from onnx_lathe.passes.graph.rewire import is_output
from onnx_lathe.passes.graph.shapes import TensorType

ACTIVATIONS = (
    "Clip",
    "Elu",
    "Gelu",
    "HardSigmoid",
    "HardSwish",
    "LeakyRelu",
    "PRelu",
    "Relu",
    "Selu",
    "Sigmoid",
    "Softplus",
    "Tanh",
)
CHANNELWISE = (
    "Add",
    "BatchNormalization",
    "DequantizeLinear",
    "Div",
    "Identity",
    "Mul",
    "QuantizeLinear",
    "Sub",
)
LONGEST = 6
"""Nodes from a layer to the activation behind it, at most."""


@dataclass(frozen=True)
class LayerModel:
    """`model` has the inputs `inputs`, the layer's own first, and then `weight`; a Gemm or MatMul takes
    rows, [N, K].

    `sources` are the tensors of the graph that the inputs stand for, `output` the one that the model
    computes.
    """

    node: Node
    model: onnx.ModelProto
    weight: str
    inputs: tuple[str, ...]
    sources: tuple[str, ...]
    output: str

    @property
    def is_convolution(self) -> bool:
        return bool(self.node.op == "Conv")


@dataclass
class _Cut:
    nodes: list[Node]
    others: list[Tensor] = field(default_factory=list)
    """Tensors computed at run time that the nodes read besides the layer's input."""


def layer_model(
    graph: Graph, node: Node, shape: Sequence[int], types: Mapping[str, TensorType], captured: Collection[str]
) -> LayerModel | str:
    """The model of a Conv, Gemm or MatMul whose weight has this shape, or why there is none.

    `types` are those of infer_types, `captured` the names that subgraphs read.
    """
    if node.op == "Gemm" and node.attrs.get("transA", 0):
        return "its input is transposed"
    biases = [tensor for tensor in node.inputs[WEIGHT_INPUT + 1 :] if not tensor.is_empty()]
    if not all(is_constant(tensor) for tensor in biases):
        return "its bias is computed at run time"
    rank = len(shape) if node.op == "Conv" else 2
    if node.op == "Gemm" and not all(_is_channelwise(node, tensor, rank, graph.opset) for tensor in biases):
        return "its bias differs from row to row"
    return _cut_out(graph, _behind(graph, node, rank, types, captured), shape, rank)


def _behind(
    graph: Graph, node: Node, rank: int, types: Mapping[str, TensorType], captured: Collection[str]
) -> _Cut:
    """The nodes from the layer to the activation behind it, or the layer alone."""
    cut = _Cut([node])
    while len(cut.nodes) <= LONGEST:
        tensor = cut.nodes[-1].outputs[0]
        if len(tensor.outputs) != 1 or tensor.name in captured or is_output(graph, tensor):
            break
        reader = tensor.outputs[0]
        if reader.domain or reader.op not in ACTIVATIONS + CHANNELWISE:
            break
        operands = [source for source in reader.inputs if source is not tensor and not source.is_empty()]
        computed = [source for source in operands if not is_constant(source)]
        if computed and not (
            reader.op == "Add" and _equal_shapes(types.get(tensor.name), types.get(computed[0].name))
        ):
            break
        if reader.op == "BatchNormalization":
            if node.op == "MatMul" or len(reader.outputs) > 1:
                break
        elif not all(
            _is_channelwise(node, source, rank, graph.opset) for source in operands if is_constant(source)
        ):
            break
        cut.nodes.append(reader)
        cut.others += computed
        if reader.op in ACTIVATIONS:
            return cut
    return _Cut([node])


def _equal_shapes(first: TensorType | None, second: TensorType | None) -> bool:
    """Whether two tensors are known to have one shape; of the batch, that they have one size is taken for
    granted.
    """
    if first is None or second is None or first.shape is None or second.shape is None:
        return False
    return None not in first.shape[1:] and first.shape[1:] == second.shape[1:]


def _is_channelwise(layer: Node, tensor: Tensor, rank: int, opset: int) -> bool:
    """Whether a constant is one number, or one number per channel of what the layer computes."""
    shape = constant_value(tensor, opset).shape
    if layer.op == "Conv" and len(shape) > rank:
        return False
    aligned = [1] * (rank - len(shape)) + list(shape)
    del aligned[1 if layer.op == "Conv" else -1]
    return all(size == 1 for size in aligned)


def _cut_out(graph: Graph, cut: _Cut, shape: Sequence[int], rank: int) -> LayerModel:
    node = cut.nodes[0]
    source, weight = node.inputs[0], node.inputs[WEIGHT_INPUT]
    others = tuple(dict.fromkeys(tensor.name for tensor in cut.others))
    protos = [_proto(one) for one in cut.nodes]
    # The layer's input is padded, and cut out otherwise than the same tensor where it is added behind.
    own = unused_name(
        f"{source.name}_layer", {name for proto in protos for name in [*proto.input, *proto.output]}
    )
    protos[0].input[0] = own
    constants: dict[str, np.ndarray] = {}
    for tensor in [tensor for one in cut.nodes for tensor in one.inputs]:
        if not tensor.is_empty() and tensor is not weight and is_constant(tensor):
            values = constant_value(tensor, graph.opset)
            # Rows have two dimensions, whatever a MatMul's input had: a constant of three would give the
            # result three.
            constants[tensor.name] = values if node.op == "Conv" or values.ndim < 2 else values.reshape(-1)
    output = cut.nodes[-1].outputs[0].name
    made = onnx.helper.make_graph(
        protos,
        "layer",
        [*(_value(name, [None] * rank) for name in (own, *others)), _value(weight.name, shape)],
        [_value(output, [None] * rank)],
        [onnx.numpy_helper.from_array(np.asarray(values), name) for name, values in constants.items()],
    )
    opsets = [onnx.helper.make_opsetid("", graph.opset)]
    # the onnx package's own default may be newer than what the installed ONNX Runtime takes
    ir_version = graph.ir_version or onnx.helper.find_min_ir_version_for(opsets)
    model = onnx.helper.make_model(made, opset_imports=opsets, ir_version=ir_version)
    return LayerModel(node, model, weight.name, (own, *others), (source.name, *others), output)


def _value(name: str, shape: Sequence[int | None]) -> onnx.ValueInfoProto:
    value: onnx.ValueInfoProto = onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape)
    return value


def _proto(node: Node) -> onnx.NodeProto:
    proto: onnx.NodeProto = OnnxExporter.export_node(node)
    if node.op == "Conv":
        kept = [attribute for attribute in proto.attribute if attribute.name not in ("auto_pad", "pads")]
        del proto.attribute[:]
        proto.attribute.extend(kept)
    return proto
