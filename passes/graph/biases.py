"""Biases: the small float32 initializers that layers add to what they compute."""

from collections.abc import Callable, Iterator

import numpy as np

from onnx_lathe.passes.graph import Constant, Graph, Node, Tensor
from onnx_lathe.passes.graph.layers import is_layer

BIAS_INPUT = 2


def biases(graph: Graph, refuse: Callable[[str, str], None]) -> Iterator[tuple[Node, Constant]]:
    """(first layer, bias) for the third input of a Conv, ConvTranspose or Gemm, or the operand of an Add
    behind a layer; each tensor once.

    `refuse(node name, reason)` is called for each layer whose bias is there but cannot be changed.
    """
    seen: set[str] = set()
    for node in graph.nodes:
        tensor = _bias(node)
        if tensor is None or tensor.name in seen:
            continue
        seen.add(tensor.name)
        if reason := _refusal(graph, tensor):
            refuse(node.name, reason)
        else:
            yield node, tensor


def _bias(node: Node) -> Constant | None:
    if not is_layer(node):
        return None
    if len(node.inputs) > BIAS_INPUT:
        tensor = node.inputs[BIAS_INPUT]
        return tensor if isinstance(tensor, Constant) else None
    readers = node.outputs[0].outputs
    if len(readers) != 1 or readers[0].op != "Add" or readers[0].domain:
        return None
    return next((tensor for tensor in readers[0].inputs if _is_vector(tensor)), None)


def _is_vector(tensor: Tensor) -> bool:
    return isinstance(tensor, Constant) and sum(size > 1 for size in tensor.shape) <= 1


def _refusal(graph: Graph, tensor: Constant) -> str | None:
    if tensor.dtype != np.float32:
        return f"its bias is {tensor.dtype}, not float32"
    if 0 in tensor.shape:
        return "its bias is empty"
    if any(tensor is output for output in graph.outputs):
        return "its bias is an output of the model"
    other = next((reader for reader in tensor.outputs if not _adds(reader, tensor)), None)
    return None if other is None else f"its bias is also read by {other.name or other.op}"


def _adds(reader: Node, tensor: Constant) -> bool:
    if reader.op == "Add" and not reader.domain:
        return True
    positions = [index for index, source in enumerate(reader.inputs) if source is tensor]
    return is_layer(reader) and positions == [BIAS_INPUT]
