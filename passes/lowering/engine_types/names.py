"""Names that TensorRT carries: of nodes, and of tensors inside the model. Inputs and outputs are called as callers know
them; what TensorRT does not carry of those is refused by the target.
"""

from onnx_lathe.engines import carries
from onnx_lathe.passes.core.report import PassReport
from onnx_lathe.passes.graph import Graph, Variable
from onnx_lathe.passes.graph.bodies import parts
from onnx_lathe.passes.graph.model import free_name

KEPT = 64
"""Characters of a long name: the last ones, which tell layers of one block apart."""


def rename(graph: Graph, report: PassReport) -> None:
    """Gives nodes and tensors, also those of bodies, names that TensorRT carries, where theirs are none."""
    ports = {id(tensor) for tensor in (*graph.inputs, *graph.outputs)}
    for part in parts(graph):
        for node in part.graph.nodes:
            if not carries(node.name):
                node.name = free_name(graph, _carried(node.name))
                report.edit(node.name, "named so: TensorRT does not carry its name")
        made = [tensor for node in part.graph.nodes for tensor in node.outputs]
        for tensor in (*part.graph.inputs, *made):
            if isinstance(tensor, Variable) and id(tensor) not in ports and not carries(tensor.name):
                tensor.name = free_name(graph, _carried(tensor.name))
                report.edit(tensor.name, "named so: TensorRT does not carry its name")


def _carried(name: str) -> str:
    return name.replace("\0", "_")[-KEPT:]
