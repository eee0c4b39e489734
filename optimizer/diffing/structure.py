"""What two graphs have that the other has not: nodes by operator, and stored tensors."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import onnx

_IDENTITY = ("name", "doc_string", "metadata_props")
"""Fields of a node that do not change what it computes."""


@dataclass(frozen=True)
class OperatorChange:
    """Nodes of one operator: `added` are in the candidate alone, `removed` in the base alone, `changed` in both by
    the name of their output, with other inputs or attributes.
    """

    operator: str
    base: int
    candidate: int
    added: int
    removed: int
    changed: int


@dataclass(frozen=True)
class StoredChange:
    """A stored tensor. `base` and `candidate`: dtype and shape as text, empty where it is not there. `differing`: of
    `values` in all, None where they cannot be compared one by one. `place`: the body that stores it, empty for the
    main graph.
    """

    name: str
    base: str
    candidate: str
    values: int
    differing: int | None
    place: str = ""


@dataclass(frozen=True)
class Structure:
    """`unchanged`: initializers that are equal to the last bit; `bodies`: nodes whose bodies count here, but whose
    tensors cannot be observed.
    """

    operators: list[OperatorChange]
    initializers: list[StoredChange]
    unchanged: int
    bodies: list[str] = field(default_factory=list)


def structure(base: onnx.ModelProto, candidate: onnx.ModelProto) -> Structure:
    """Bodies of If, Loop and Scan count too."""
    stored, others = _stored(base), _stored(candidate)
    changes = [_change(*key, stored.get(key), others.get(key)) for key in stored | others]
    found = [change for change in changes if change is not None]
    return Structure(
        _operators(base, candidate),
        found,
        len(changes) - len(found),
        list(dict.fromkeys(name for model in (base, candidate) for name in with_bodies(model))),
    )


def with_bodies(model: onnx.ModelProto) -> Iterator[str]:
    """Nodes of the main graph that carry bodies, as "If 'name'"."""
    for node in model.graph.node:
        if any(attribute.HasField("g") or attribute.graphs for attribute in node.attribute):
            yield f"{node.op_type} '{node.name or node.output[0]}'"


def _operators(base: onnx.ModelProto, candidate: onnx.ModelProto) -> list[OperatorChange]:
    nodes, others = _nodes(base), _nodes(candidate)
    counts = [Counter(node.op_type for node in found.values()) for found in (nodes, others)]
    added, removed, changed = Counter[str](), Counter[str](), Counter[str]()
    for name in nodes | others:
        one, other = nodes.get(name), others.get(name)
        if one is not None and other is not None and one.op_type == other.op_type:
            changed[other.op_type] += _content(one) != _content(other)
            continue
        if one is not None:
            removed[one.op_type] += 1
        if other is not None:
            added[other.op_type] += 1
    return [
        OperatorChange(op, counts[0][op], counts[1][op], added[op], removed[op], changed[op])
        for op in sorted(counts[0] | counts[1])
    ]


def _nodes(model: onnx.ModelProto) -> dict[tuple[str, str], onnx.NodeProto]:
    """By the place of its graph, and the first output, which one node of a graph alone has."""
    return {(place, _key(node)): node for place, graph in _graphs(model.graph) for node in graph.node}


def _key(node: onnx.NodeProto) -> str:
    return next(filter(None, node.output), node.name)


def _graphs(graph: onnx.GraphProto, place: str = "") -> Iterator[tuple[str, onnx.GraphProto]]:
    """The graph and its bodies at any depth, each with where it is: "then_branch of If 'y'"; empty for the main graph."""
    yield place, graph
    for node in graph.node:
        for attribute in node.attribute:
            for number, body in enumerate([attribute.g] if attribute.HasField("g") else attribute.graphs):
                name = f"{attribute.name}[{number}]" if attribute.graphs else attribute.name
                inner = f"{name} of {node.op_type} '{_key(node)}'"
                yield from _graphs(body, f"{inner} in {place}" if place else inner)


def _content(node: onnx.NodeProto) -> bytes:
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    for name in _IDENTITY:
        copy.ClearField(name)
    attributes = sorted(copy.attribute, key=lambda attribute: attribute.name)
    kept = [onnx.AttributeProto.FromString(one.SerializeToString()) for one in attributes]
    del copy.attribute[:]
    copy.attribute.extend(kept)
    return copy.SerializeToString(deterministic=True)


def _stored(model: onnx.ModelProto) -> dict[tuple[str, str], onnx.TensorProto]:
    """By the place of the graph that stores it, and its name, which a tensor of another graph may have too."""
    placed = _graphs(model.graph)
    return {(place, tensor.name): tensor for place, graph in placed for tensor in graph.initializer}


def _change(
    place: str, name: str, one: onnx.TensorProto | None, other: onnx.TensorProto | None
) -> StoredChange | None:
    """None for tensors that are equal."""
    values = max(_size(tensor) for tensor in (one, other) if tensor is not None)
    differing = None
    if one is not None and other is not None and list(one.dims) == list(other.dims):
        if one.data_type == other.data_type and one.raw_data and one.raw_data == other.raw_data:
            return None
        differing = _differing(one, other)
        if differing == 0 and one.data_type == other.data_type:
            return None
    return StoredChange(name, _shown(one), _shown(other), values, differing, place)


def _differing(one: onnx.TensorProto, other: onnx.TensorProto) -> int:
    first, second = onnx.numpy_helper.to_array(one), onnx.numpy_helper.to_array(other)
    same = first == second
    if first.dtype.kind == second.dtype.kind == "f":
        same |= np.isnan(first) & np.isnan(second)
    return int(first.size - np.sum(same))


def _size(tensor: onnx.TensorProto) -> int:
    return int(np.prod(tensor.dims, dtype=np.int64))


def _shown(tensor: onnx.TensorProto | None) -> str:
    if tensor is None:
        return ""
    kind = onnx.TensorProto.DataType.Name(tensor.data_type).lower()
    return f"{kind} [{', '.join(map(str, tensor.dims))}]"
