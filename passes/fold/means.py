"""The mean over all places of an image, written as the pooling that it is.

ReduceMean(axes 2, 3)                becomes  GlobalAveragePool
ReduceMean(axes 2, 3, keepdims 0)    becomes  GlobalAveragePool -> Flatten
"""

from collections.abc import Callable

import onnx

from onnx_lathe.passes.graph import Constant, Graph, Node, Tensor, Variable
from onnx_lathe.passes.graph.model import free_name
from onnx_lathe.passes.graph.shapes import TensorType


def write_pool(graph: Graph, node: Node, type_of: Callable[[Tensor], TensorType | None]) -> bool:
    """Writes a float32 ReduceMean over the axes behind the second as a GlobalAveragePool. `type_of` gives a
    tensor's type, if it is known.
    """
    if node.op != "ReduceMean" or node.domain or not node.inputs:
        return False
    axes = node.attrs.get("axes")
    if axes is None and len(node.inputs) > 1 and isinstance(node.inputs[1], Constant):
        axes = node.inputs[1].values.reshape(-1).tolist()
    known = type_of(node.inputs[0]) if axes is not None else None
    if known is None or known.shape is None or known.element != onnx.TensorProto.FLOAT:
        return False
    dimensions = len(known.shape)
    if dimensions < 3 or sorted(int(axis) % dimensions for axis in axes) != list(range(2, dimensions)):
        return False
    keeps, result = node.attrs.get("keepdims", 1), node.outputs[0]
    node.op, node.attrs, node.inputs = "GlobalAveragePool", {}, [node.inputs[0]]
    if not keeps:
        pooled = Variable(free_name(graph, f"{result.name}_pooled"), result.dtype)
        node.outputs = [pooled]
        flatten = Node("Flatten", free_name(graph, f"{node.name}_Flatten"), {"axis": 1}, [pooled], [result])
        graph.nodes.append(flatten)
    return True
