"""The graph as a reader wants to see it: one box per layer, with its activation and its Q/DQ pairs inside, and one
for each place where branches meet.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from onnx_lathe.optimizer.pairing import Network, stored
from onnx_lathe.passes.graph import Constant, Node, Tensor
from onnx_lathe.passes.graph.bodies import bodies_of

MOST_BOXES = 1500
"""A graph of more takes a browser seconds to lay out; the table has all of its layers."""
MOST_MEMBERS = 60
LONG, MOST_LONG = 3, 300
"""Edges over more ranks, and how many of them are drawn: of a densely connected network they would hide the rest."""


@dataclass
class _Box:
    name: str
    op: str
    layer: bool
    members: list[Node] = field(default_factory=list)
    sources: dict[str, None] = field(default_factory=dict)


def picture(side: Network, owner: Mapping[str, str]) -> dict[str, Any]:
    """`boxes`: `id`, `op`, `layer` (the name of the original's layer that it belongs to, if any), `part` (whether
    another box ends that layer), `members` [name, op], those of a node with bodies with the layers in them; `inside`:
    the layers of the original that those are;
    `edges` as pairs of places in `boxes`; `far` counts a box's inputs that are not drawn. `owner`: node -> layer of the original. Without boxes and with a `reason` where
    the graph is too large.
    """
    boxes = _boxes(side)
    if len(boxes) > MOST_BOXES:
        reason = f"a graph of {len(boxes):,} boxes is not drawn; the table above has its layers"
        return {"boxes": [], "edges": [], "reason": reason}
    places = {name: place for place, name in enumerate(boxes)}
    last = {owner[name]: name for name, box in boxes.items() if box.layer and name in owner}
    found = [
        {
            "id": box.name,
            "op": box.op,
            "layer": owner.get(box.name, "") if box.layer else "",
            "part": box.layer and last.get(owner.get(box.name, "")) != box.name,
            "members": [[node.name, node.op] for node in members[:MOST_MEMBERS]],
            "more": max(len(members) - MOST_MEMBERS, 0),
            "inside": [owner[node.name] for node in _inside(box.members, side.layers) if node.name in owner],
        }
        for box in boxes.values()
        for members in [_listed(box.members, side.layers)]
    ]
    edges = [[places[source], places[name]] for name, box in boxes.items() for source in box.sources]
    return {"boxes": found, "edges": _drawn(found, edges), "reason": ""}


def _drawn(boxes: Sequence[dict[str, Any]], edges: list[list[int]]) -> list[list[int]]:
    """The edges, but for the long ones where there are too many: boxes count theirs as `far`."""
    ranks = [0] * len(boxes)
    for source, place in sorted(edges, key=lambda edge: edge[1]):
        ranks[place] = max(ranks[place], ranks[source] + 1)
    long = [edge for edge in edges if ranks[edge[1]] - ranks[edge[0]] > LONG]
    if len(long) <= MOST_LONG:
        return edges
    for _, place in long:
        boxes[place]["far"] = boxes[place].get("far", 0) + 1
    return [edge for edge in edges if ranks[edge[1]] - ranks[edge[0]] <= LONG]


def _boxes(side: Network) -> dict[str, _Box]:
    """In an order in which every box comes behind its sources."""
    layers, boxes = side.layers, dict[str, _Box]()
    home: dict[int, str] = {}
    for tensor in side.graph.inputs:
        boxes[f"input {tensor.name}"] = _Box(f"input {tensor.name}", "input", False)
        home[id(tensor)] = f"input {tensor.name}"
    for node in side.graph.nodes:
        if stored(node):
            continue
        sources = dict.fromkeys(home[id(one)] for one in _read(node) if id(one) in home)
        joins = node.name in layers or bool(bodies_of(node)) or len(sources) != 1
        joins = joins or next(iter(sources)).startswith("input ")
        name = node.name if joins and node.op not in ("QuantizeLinear", "DequantizeLinear") else ""
        if not name and len(sources) == 1:
            name = next(iter(sources))
        name = name or node.name
        if name not in boxes:
            boxes[name] = _Box(name, node.op, node.name in layers, [], sources)
        boxes[name].members.append(node)
        for tensor in node.outputs:
            home[id(tensor)] = name
    for tensor in side.graph.outputs:
        if id(tensor) in home:
            name = f"output {tensor.name}"
            boxes[name] = _Box(name, "output", False, [], {home[id(tensor)]: None})
    return boxes


def _read(node: Node) -> list[Tensor]:
    """What moves through the node: its inputs, and what bodies of it capture, those in its bodies too."""
    found = [one for one in node.inputs if not one.is_empty()]
    for _, body in bodies_of(node):
        found += [tensor for inner in body.nodes for tensor in _read(inner)]
        found += body.outputs  # one that a body hands through
    return [one for one in found if not isinstance(one, Constant)]


def _listed(members: Sequence[Node], layers: Collection[str]) -> list[Node]:
    """A box's nodes, each with the layers in its bodies behind it."""
    return [one for node in members for one in (node, *_inside([node], layers))]


def _inside(members: Sequence[Node], layers: Collection[str]) -> list[Node]:
    """The layers in the bodies of these nodes, in bodies of bodies too."""
    inner = [one for node in members for _, body in bodies_of(node) for one in body.nodes]
    return [
        one for node in inner for one in (*([node] if node.name in layers else []), *_inside([node], layers))
    ]
