"""Follows a graph node by node, and ties its channels by the rule of each operator."""

from onnx_lathe.passes.graph import Graph
from onnx_lathe.passes.graph.coupling.rules import RULES, layer
from onnx_lathe.passes.graph.coupling.state import Coupling
from onnx_lathe.passes.graph.layers import is_layer
from onnx_lathe.passes.graph.shapes import infer_types


def couple(graph: Graph) -> Coupling:
    """The units of the main graph. Nothing is changed."""
    coupling = Coupling(graph, infer_types(graph))
    for node in graph.nodes:
        if is_layer(node):
            reason = layer(coupling, node)
        elif any(coupling.of(tensor) is not None for tensor in node.inputs):
            rule = None if node.domain else RULES.get(node.op)
            reason = f"{node.op} has no rule for channels" if rule is None else rule(coupling, node)
        else:
            continue
        if reason is not None:
            coupling.lock(node.inputs, reason)
    coupling.lock_what_others_see()
    coupling.balance()
    return coupling
