"""Branches of which one body always runs.

    If(condition) < then_branch = a, else_branch = b >     the nodes of a or of b

Where what they depend on is known: the caller says which way each goes.
"""

from collections.abc import Mapping, Sequence

from onnx_lathe.passes.core.report import PassReport
from onnx_lathe.passes.graph import Graph, Node, Tensor, Variable
from onnx_lathe.passes.graph.model import free_name
from onnx_lathe.passes.graph.rewire import disconnect, is_output

BODIES = {True: "then_branch", False: "else_branch"}


def take_branches(graph: Graph, chosen: Mapping[str, bool], report: PassReport) -> None:
    """Puts one body of each If in its place. `chosen`: condition -> what it is; it may name those of branches that lie
    in a body that is taken.

    What the bodies and their readers are declared to be is forgotten: an If is what either of its bodies gives.
    """
    while (place := _place(graph, chosen)) is not None:
        node = graph.nodes[place]
        which = BODIES[chosen[node.inputs[0].name]]
        body: Graph = node.attrs[which]
        results, values = list(node.outputs), list(body.outputs)
        _forget_shapes(graph, [*results, *(tensor for one in body.nodes for tensor in one.outputs)])
        disconnect(node)
        graph.nodes[place : place + 1] = body.nodes
        for value, result in zip(values, results, strict=False):
            if not result.is_empty():
                graph.nodes.append(
                    Node("Identity", free_name(graph, f"{node.name}_{which}"), {}, [value], [result])
                )
        report.edit(node.name, f"its {which} takes its place")
    graph.toposort()


def _place(graph: Graph, chosen: Mapping[str, bool]) -> int | None:
    return next(
        (
            place
            for place, node in enumerate(graph.nodes)
            if node.op == "If" and not node.domain and node.inputs[0].name in chosen
        ),
        None,
    )


def _forget_shapes(graph: Graph, tensors: Sequence[Tensor]) -> None:
    """Of these and of all that is computed of them; outputs of the graph stay what callers know."""
    waiting, seen = list(tensors), set[int]()
    while waiting:
        tensor = waiting.pop()
        if id(tensor) in seen:
            continue
        seen.add(id(tensor))
        if isinstance(tensor, Variable) and not is_output(graph, tensor):
            tensor.shape = None
        waiting += [result for reader in tensor.outputs for result in reader.outputs]
