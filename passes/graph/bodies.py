"""Bodies of If, Loop and Scan: which there are, what they read of the graph around them, and where a constant
is stored.

onnx-graphsurgeon shares one tensor between a graph and the bodies that read it, but writes a constant into
every body that does, and forgets where it was. Here it is written once: where the model had it, or else in the
innermost graph around all that read it.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import onnx
from onnx_graphsurgeon.exporters.onnx_exporter import OnnxExporter

from onnx_lathe.passes.graph import Constant, Graph, Node, Tensor
from onnx_lathe.passes.graph.initializers import is_lazy, is_sparse, store_tensor, stored_tensor
from onnx_lathe.passes.graph.names import unused_name


@dataclass(frozen=True)
class Part:
    """A graph, and where it is: `outer` is the part around it, `node` the If, Loop or Scan and `attribute` the
    name by which that holds it; None for the main graph.
    """

    graph: Graph
    outer: "Part | None" = None
    node: Node | None = None
    attribute: str = ""

    @property
    def place(self) -> str:
        """Where a reader of a report finds it: "then_branch of If_3"; empty for the main graph."""
        return "" if self.node is None else f"{self.attribute} of {self.node.name}"

    def around(self) -> "list[Part]":
        """The part and those around it, from the main graph inwards."""
        return [*(self.outer.around() if self.outer is not None else []), self]


def parts(graph: Graph) -> list[Part]:
    """The main graph and all bodies, each behind the part around it, in the order of nodes and attributes."""
    found = [Part(graph)]
    for part in found:
        for node in part.graph.nodes:
            found += [Part(body, part, node, name) for name, body in bodies_of(node)]
    return found


def bodies_of(node: Node) -> list[tuple[str, Graph]]:
    return [(name, value) for name, value in node.attrs.items() if isinstance(value, Graph)]


def places(graph: Graph) -> dict[str, str]:
    """Name of each node inside a body -> where that is."""
    return {node.name: part.place for part in parts(graph)[1:] for node in part.graph.nodes}


def all_tensors(graph: Graph) -> dict[str, Tensor]:
    """Name -> tensor of the graph and its bodies; import_model gives every one a name of its own."""
    found: dict[str, Tensor] = {}
    for part in parts(graph):
        for name, tensor in part.graph.tensors().items():
            found.setdefault(name, tensor)
    return found


def graph_protos(graph: onnx.GraphProto) -> list[onnx.GraphProto]:
    """The graph and its bodies, in the order of `parts`."""
    found = [graph]
    for part in found:
        found += [
            attribute.g for node in part.node for attribute in node.attribute if attribute.HasField("g")
        ]
    return found


def take_up(graph: Graph, model: onnx.ModelProto) -> None:
    """Completes an imported graph: nodes of bodies get names of their own, tensors of bodies names
    that no other tensor has, and each part remembers what is stored in it (`stored_names`).
    """
    tensors, nodes = set[str](), {node.name for node in graph.nodes}
    for part, proto in zip(parts(graph), graph_protos(model.graph), strict=True):
        part.graph.stored_names = set(_stored(proto))
        local = dict.fromkeys(
            [
                *_stored(proto),
                *(value.name for value in proto.input),
                *(n for node in proto.node for n in node.output),
            ]
        )
        if part.node is not None:
            _complete_nodes(part, part.node, nodes)
            _rename(part, [name for name in local if name in tensors], tensors)
        tensors.update(local)


def _complete_nodes(part: Part, owner: Node, taken: set[str]) -> None:
    for index, node in enumerate(part.graph.nodes):
        detach_attributes(node)
        if not node.name or node.name in taken:
            node.name = unused_name(node.name or f"{owner.name}/{part.attribute}/{node.op}_{index}", taken)
        taken.add(node.name)


def _rename(part: Part, names: Sequence[str], taken: set[str]) -> None:
    """Gives the tensors of a body new names, since others have theirs already."""
    known = part.graph.tensors()
    for name in names:
        tensor = known.get(name)
        if tensor is None:
            continue
        if isinstance(tensor, Constant) and is_lazy(tensor):
            store_tensor(tensor, _copy(stored_tensor(tensor)))
        tensor.name = unused_name(name, taken)
        taken.add(tensor.name)
        if name in part.graph.stored_names:
            part.graph.stored_names.add(tensor.name)


def detach_attributes(node: Node) -> None:
    """Tensors among the attributes become copies: their export writes a name into what they were read from."""
    for value in node.attrs.values():
        if isinstance(value, Constant) and is_lazy(value):
            store_tensor(value, _copy(stored_tensor(value)))


def _stored(proto: onnx.GraphProto) -> list[str]:
    return [tensor.name for tensor in proto.initializer] + [
        tensor.values.name for tensor in proto.sparse_initializer
    ]


def _copy(tensor: onnx.TensorProto) -> onnx.TensorProto:
    copy = onnx.TensorProto()
    copy.CopyFrom(tensor)
    return copy


def constants(found: Sequence[Part]) -> Iterator[tuple[Constant, Part]]:
    """Every constant once, and the part that it is stored in."""
    readers: dict[int, tuple[Constant, list[Part]]] = {}
    for part in found:
        for tensor in part.graph.tensors().values():
            if isinstance(tensor, Constant):
                readers.setdefault(id(tensor), (tensor, []))[1].append(part)
    for tensor, reading in readers.values():
        yield tensor, _home(tensor, [part.around() for part in reading])


def _home(tensor: Constant, around: list[list[Part]]) -> Part:
    common = [first for first, *others in zip(*around, strict=False) if all(part is first for part in others)]
    for part in common:
        if tensor.name in getattr(part.graph, "stored_names", ()):
            return part
    return common[-1]


def store_once(graph: Graph, model: onnx.ModelProto, held: Collection[int]) -> None:
    """Takes initializers out of the graphs of an exported model that only read them, and puts them where they
    are stored. `held`: ids of constants that were exported without data.
    """
    found = parts(graph)
    homes: dict[int, dict[str, Constant]] = {id(part): {} for part in found}
    for tensor, part in constants(found):
        homes[id(part)][tensor.name] = tensor
    for part, proto in zip(found, graph_protos(model.graph), strict=True):
        own = homes[id(part)]
        _keep(proto.initializer, [tensor.name for tensor in proto.initializer], own)
        _keep(proto.sparse_initializer, [tensor.values.name for tensor in proto.sparse_initializer], own)
        _fill(proto, {name: tensor for name, tensor in own.items() if id(tensor) in held})
        kept = set(_stored(proto))
        for tensor in [tensor for name, tensor in own.items() if name not in kept]:
            if is_sparse(tensor):
                proto.sparse_initializer.append(OnnxExporter.export_sparse_tensor_proto(tensor))
            else:
                proto.initializer.append(OnnxExporter.export_tensor_proto(tensor))


def fill(model: onnx.ModelProto, tensors: Mapping[str, Constant]) -> None:
    """Gives the initializers of these names, which say their type and shape alone, the data of the tensors."""
    for proto in graph_protos(model.graph):
        _fill(proto, tensors)


def _fill(proto: onnx.GraphProto, tensors: Mapping[str, Constant]) -> None:
    for stored in proto.initializer:
        if stored.name in tensors:
            stored.CopyFrom(OnnxExporter.export_tensor_proto(tensors[stored.name]))


def _keep(stored: Any, names: Sequence[str], own: Collection[str]) -> None:
    """Leaves in a repeated field, whose elements have these names, what `own` names."""
    for index in reversed(range(len(names))):
        if names[index] not in own:
            del stored[index]
