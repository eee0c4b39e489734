"""Names that TensorRT carries: of nodes, and of tensors inside the model. Inputs and outputs are called as callers know
them; what TensorRT does not carry of those is refused by the target.
"""

from collections.abc import Iterator

from onnx_lathe.engines import carries
from onnx_lathe.passes.core.report import PassReport
from onnx_lathe.passes.graph import Graph, Tensor, bodies
from onnx_lathe.passes.graph.bodies import Part
from onnx_lathe.passes.graph.model import free_name, set_sparse_tensors, sparse_tensors

KEPT = 64
"""Characters of a long name: the last ones, which tell layers of one block apart."""
SAID = "named so: TensorRT does not carry its name"


def rename(graph: Graph, report: PassReport) -> None:
    """Gives nodes and tensors, also those of bodies, names that TensorRT carries, where theirs are none."""
    ports = {id(tensor) for tensor in (*graph.inputs, *graph.outputs)}
    found = bodies.parts(graph)
    for part in found:
        for node in part.graph.nodes:
            if not carries(node.name):
                node.name = free_name(graph, _carried(node.name))
                report.edit(node.name, SAID)
    others = {}
    for tensor, part in list(_tensors(found)):
        if id(tensor) not in ports and not carries(tensor.name):
            others[tensor.name] = free_name(graph, _carried(tensor.name))
            bodies.rename(part, tensor, others[tensor.name])
            report.edit(tensor.name, SAID)
    if others:
        sparse = sparse_tensors(graph)
        set_sparse_tensors(graph, {others.get(name, name): what for name, what in sparse.items()})


def _tensors(found: list[Part]) -> Iterator[tuple[Tensor, Part]]:
    """Each that is stored, handed in or computed, and where."""
    yield from bodies.constants(found)
    for part in found:
        made = [tensor for node in part.graph.nodes for tensor in node.outputs]
        yield from ((tensor, part) for tensor in (*part.graph.inputs, *made))


def _carried(name: str) -> str:
    return name.replace("\0", "_")[-KEPT:]
