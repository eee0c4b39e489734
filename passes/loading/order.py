"""Puts the nodes of a graph behind those that they read, as the ONNX standard asks for: ONNX Runtime runs a
file that does not keep to it, and tools that insert nodes write such files (onnxconverter-common's float16).
"""

import graphlib
import heapq
from collections.abc import Iterable

import onnx

from onnx_lathe.passes.loading.walk import bodies


def is_sorted(model: onnx.ModelProto) -> bool:
    """Whether every node of the main graph stands behind the nodes that it and its bodies read."""
    return _first_wrong(model.graph) is None


def sort_nodes(model: onnx.ModelProto) -> str | None:
    """Sorts, in place, the nodes of the main graph; in a body ONNX Runtime takes no other order either. Returns
    what was done; None if nothing was. A graph with a circle stays as it is.
    """
    node = _first_wrong(model.graph)
    if node is None:
        return None
    name = node.name or f"the writer of {node.output[0]}"
    return f"nodes sorted: {name} stood before a node that it reads" if _sort(model.graph) else None


def _first_wrong(graph: onnx.GraphProto) -> onnx.NodeProto | None:
    later = {name for node in graph.node for name in node.output if name}
    for node in graph.node:
        if not later.isdisjoint(_reads(node)):
            return node
        later.difference_update(node.output)
    return None


def _sort(graph: onnx.GraphProto) -> bool:
    """Whether there was an order. What may come first, of two nodes, is the one that did."""
    makers = {name: place for place, node in enumerate(graph.node) for name in node.output if name}
    sorter: graphlib.TopologicalSorter[int] = graphlib.TopologicalSorter()
    for place, node in enumerate(graph.node):
        sorter.add(place, *{makers[name] for name in _reads(node) if name in makers})
    try:
        sorter.prepare()
    except graphlib.CycleError:
        return False
    rank: dict[tuple[str, ...], int] = {}
    ready: list[int] = []
    while sorter.is_active():
        for place in sorter.get_ready():
            heapq.heappush(ready, place)
        place = heapq.heappop(ready)
        rank[tuple(graph.node[place].output)] = len(rank)
        sorter.done(place)
    graph.node.sort(key=lambda node: rank[tuple(node.output)])
    return True


def _reads(node: onnx.NodeProto) -> Iterable[str]:
    """What the node and its bodies read; names that a body makes itself are no names around it."""
    return {*node.input, *(name for body in bodies(node) for one in body.node for name in one.input)} - {""}
