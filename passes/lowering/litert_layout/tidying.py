"""What is left to do in the graph that was rewritten: nodes that do nothing, and orders of orders."""

from collections.abc import Collection

import numpy as np

from onnx_lathe.passes.graph import Constant, Node
from onnx_lathe.passes.graph.rewire import bypass, is_output, sweep
from onnx_lathe.passes.lowering.litert_layout.joining import join_transposes
from onnx_lathe.passes.lowering.litert_layout.work import Work


def tidy(work: Work, spared: Collection[int]) -> None:
    """`spared`: ids of the Transposes of sandwiches."""
    join_transposes(work, spared)
    for node in list(work.graph.nodes):
        if (
            node.op == "Identity"
            and not node.domain
            and node.inputs
            and not isinstance(node.inputs[0], Constant)
        ):
            bypass(work.graph, node, work.captured)
    for node in work.graph.nodes:
        _pick_at_once(work, node)
    sweep(work.graph)
    work.graph.toposort()


def _pick_at_once(work: Work, node: Node) -> None:
    """Gather(Gather(shape, order), places) -> Gather(shape, order[places])."""
    if node.op != "Gather" or node.domain or node.attrs.get("axis", 0) != 0 or not node.inputs[0].inputs:
        return
    first = node.inputs[0].inputs[0]
    if first.op != "Gather" or not first.inputs[0].inputs or first.inputs[0].inputs[0].op != "Shape":
        return
    order, places = first.inputs[1], node.inputs[1]
    if not isinstance(order, Constant) or not isinstance(places, Constant):
        return
    if order.values.ndim != 1 or is_output(work.graph, node.inputs[0]):
        return
    node.inputs = [
        first.inputs[0],
        work.constant(f"{node.name}_places", np.asarray(order.values[places.values])),
    ]
