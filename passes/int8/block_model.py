"""A block of a quantized network as a model of its own, whose weights, scales and biases are inputs.

    x -> Q -> DQ -> Conv(DQ(W_int8), b) -> y       becomes       x -> Q -> DQ -> Where(mask, ., x) -> Conv(W, b) -> y

with inputs x, mask, W and b: who feeds it decides how weights follow from levels, and which elements are quantized.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx

from onnx_lathe import metadata
from onnx_lathe.passes.extraction.submodel import flow, submodel
from onnx_lathe.passes.graph import Constant, Graph, Node
from onnx_lathe.passes.graph.answers.blocks import Block
from onnx_lathe.passes.graph.initializers import read
from onnx_lathe.passes.graph.layers import WEIGHT_INPUT, constant_value
from onnx_lathe.passes.graph.model import sparse_tensors
from onnx_lathe.passes.graph.quantization.bias_places import bias_place, own_bias
from onnx_lathe.passes.int8.rounding import Rounded
from onnx_lathe.protocols import Levels

FLOAT = np.dtype(np.float32)


@dataclass(frozen=True)
class BlockModel:
    """`parts`: of a BlockTask, what does not depend on samples. `stored`: where levels and scales are, `floats`: where
    biases and float weights are.
    """

    parts: Mapping[str, Any]
    stored: Mapping[str, tuple[Constant, Constant]]
    floats: Mapping[str, Constant]


def block_model(
    graph: Graph, network: onnx.ModelProto, block: Block, known: Mapping[str, Rounded]
) -> BlockModel | str:
    """The model of the block as `network`, which is `graph`, has it; or why there is none. `known`: layers that are
    quantized, by what they write.
    """
    makers = {node.outputs[0].name: node for node in graph.nodes if node.outputs}
    levels, stored, floats = (
        dict[str, Levels](),
        dict[str, tuple[Constant, Constant]](),
        dict[str, Constant](),
    )
    for name in block.layers:
        node = makers.get(name)
        if node is None:
            return f"the network has no tensor '{name}' any more"
        weight = node.inputs[WEIGHT_INPUT]
        if name in known:
            one, decoder = known[name], weight.inputs[0]
            step = read(decoder.inputs[1]).reshape(one.step.shape)
            exact = constant_value(one.original.tensor, one.original.opset)
            levels[weight.name] = Levels(read(one.levels[0]), step, one.largest, exact != 0)
            stored[weight.name] = (one.levels[0], decoder.inputs[1])
        elif _is_own(graph, weight):
            floats[weight.name] = weight
        if (bias := _bias(graph, node)) is not None:
            floats[bias.name] = bias
    given = dict.fromkeys([block.source, *levels, *floats], FLOAT)
    part = submodel(network, flow(network), [block.answer], given)
    if others := [name for name in part.inputs if name not in given]:
        return f"it reads '{others[0]}' too"
    if missing := [name for name in given if name not in part.inputs]:
        return f"'{missing[0]}' has no part in what it answers"
    for value in part.model.graph.output:
        value.type.tensor_type.elem_type = onnx.TensorProto.FLOAT
    masks = _masked(part.model)
    values = {name: read(tensor) for name, tensor in floats.items()}
    parts = {"model": part.model, "source": block.source, "levels": levels, "values": values, "masks": masks}
    return BlockModel(parts, stored, floats)


def _is_own(graph: Graph, tensor: Any) -> bool:
    return (
        isinstance(tensor, Constant)
        and tensor.dtype == np.float32
        and len(tensor.outputs) == 1
        and tensor.name not in sparse_tensors(graph)
    )


def _bias(graph: Graph, node: Node) -> Constant | None:
    place = bias_place(graph, node)
    tensor = None if place is None else place.tensor
    if place is None or tensor is None or tensor.is_empty():
        return None
    return own_bias(graph, place, int(tensor.shape[-1])) if tensor.shape else None


def _masked(model: onnx.ModelProto) -> dict[str, str]:
    """Lets a mask choose behind each pair that int8 put around an activation. Returns, by mask, the tensor."""
    makers = {name: node for node in model.graph.node for name in node.output}
    found, nodes = dict[str, str](), list[onnx.NodeProto]()
    for node in model.graph.node:
        nodes.append(node)
        quantizer = makers.get(node.input[0]) if node.op_type == "DequantizeLinear" else None
        if quantizer is None or quantizer.op_type != "QuantizeLinear":
            continue
        if not any(entry.key == metadata.RANGE for entry in quantizer.metadata_props):
            continue
        name, source = node.output[0], quantizer.input[0]
        mask, whole = f"{name}/mask", f"{name}/quantized"
        node.output[0] = whole
        nodes.append(onnx.helper.make_node("Where", [mask, whole, source], [name], f"{name}/chosen"))
        model.graph.input.append(onnx.helper.make_tensor_value_info(mask, onnx.TensorProto.BOOL, None))
        found[mask] = source
    del model.graph.node[:]
    model.graph.node.extend(nodes)
    return found
