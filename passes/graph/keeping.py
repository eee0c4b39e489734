"""What a model says besides its graph of tensors, kept beside an onnx-graphsurgeon graph and written again.

onnx-graphsurgeon 0.6 knows names, types, attributes and doc strings of graphs. It drops a model's own doc
string, version and domain, training information, denotations of types and dimensions, metadata of graphs,
nodes, values and initializers, doc strings of nodes and values, overloads and metadata of functions, attributes
of kinds that it cannot read, types that are neither tensors nor sequences, and the default of an optional input.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

import onnx
from google.protobuf.message import Message
from onnx_graphsurgeon.importers.onnx_importer import OnnxImporter

from onnx_lathe.passes.graph import Constant, Graph, Node, Tensor, Variable

_WRITTEN = ("graph", "functions", "metadata_props", "opset_import", "ir_version")
"""Fields of a model that its graph of tensors says."""


@dataclass
class KeptModel:
    """The fields of a model that passes do not read: its header, functions, and the defaults of optional
    inputs.
    """

    header: onnx.ModelProto
    functions: list[onnx.FunctionProto]
    defaults: dict[str, onnx.TensorProto | onnx.SparseTensorProto]


@dataclass
class _KeptGraph:
    """Of a graph or a body: its metadata, and by name what is known of its values beyond type and shape."""

    metadata: list[onnx.StringStringEntryProto]
    annotations: list[onnx.TensorAnnotation]
    values: dict[str, onnx.ValueInfoProto]
    initializers: dict[str, onnx.TensorProto]


@dataclass
class _KeptNode:
    """Of a node: what no pass edits."""

    overload: str = ""
    attributes: list[onnx.AttributeProto] = field(default_factory=list)
    devices: list[Message] = field(default_factory=list)


def keep(graph: Graph, model: onnx.ModelProto) -> None:
    """Remembers on the graph, its bodies and their nodes what `restore` writes again.

    An optional input (an initializer that is an input too, from IR version 4 on) becomes a plain input, since
    a caller may feed another value: no pass takes it for a constant.
    """
    header = onnx.ModelProto()
    for descriptor, value in model.ListFields():
        if descriptor.name not in _WRITTEN:
            _set(header, descriptor.name, value)
    graph.kept_model = KeptModel(header, list(model.functions), {})
    _keep_part(graph, model.graph)
    if model.ir_version >= 4:
        _keep_defaults(graph, model.graph)


def restore(graph: Graph, model: onnx.ModelProto) -> None:
    """Writes into the exported model what `keep` found; nothing for a graph that was never a model."""
    kept: KeptModel | None = getattr(graph, "kept_model", None)
    _restore_part(graph, model.graph)
    if kept is None:
        return
    model.MergeFrom(kept.header)
    del model.functions[:]
    model.functions.extend(kept.functions)
    inputs = {value.name for value in model.graph.input}
    for name, default in kept.defaults.items():
        if name in inputs and isinstance(default, onnx.SparseTensorProto):
            model.graph.sparse_initializer.append(default)
        elif name in inputs:
            model.graph.initializer.append(default)


def has_functions(graph: Graph) -> bool:
    kept: KeptModel | None = getattr(graph, "kept_model", None)
    return kept is not None and bool(kept.functions)


def is_optional_input(tensor: Tensor) -> bool:
    """Whether a caller may feed the tensor, or leave it at its default."""
    return bool(getattr(tensor, "optional", False))


def _keep_part(graph: Graph, proto: onnx.GraphProto) -> None:
    values = [*proto.input, *proto.output, *proto.value_info]
    graph.kept = _KeptGraph(
        list(proto.metadata_props),
        list(proto.quantization_annotation),
        {value.name: value for value in values if _says_more(value)},
        {tensor.name: tensor for tensor in proto.initializer if tensor.doc_string or tensor.metadata_props},
    )
    tensors = graph.tensors()
    for name, value in graph.kept.values.items():
        tensor = tensors.get(name)
        if _is_other(value.type) and isinstance(tensor, Variable):
            tensor.dtype = tensor.shape = None  # it would be written as a tensor, or fail
    for node, node_proto in zip(graph.nodes, proto.node, strict=True):
        node.metadata = {entry.key: entry.value for entry in node_proto.metadata_props}
        node.doc_string = node_proto.doc_string
        lost = [attribute for attribute in node_proto.attribute if attribute.name not in node.attrs]
        node.kept = _KeptNode(node_proto.overload, lost, list(node_proto.device_configurations))
        for body, body_proto in _bodies(node, node_proto):
            _keep_part(body, body_proto)


def _restore_part(graph: Graph, proto: onnx.GraphProto) -> None:
    kept: _KeptGraph | None = getattr(graph, "kept", None)
    if kept is not None:
        _restore_values(kept, proto)
    for node, node_proto in zip(graph.nodes, proto.node, strict=True):
        if document := getattr(node, "doc_string", ""):
            node_proto.doc_string = document
        for key, value in getattr(node, "metadata", {}).items():
            node_proto.metadata_props.add(key=key, value=value)
        own: _KeptNode = getattr(node, "kept", None) or _KeptNode()
        if own.overload:
            node_proto.overload = own.overload
        node_proto.attribute.extend(own.attributes)
        for device in own.devices:
            node_proto.device_configurations.add().CopyFrom(device)
        for body, body_proto in _bodies(node, node_proto):
            _restore_part(body, body_proto)


def _restore_values(kept: _KeptGraph, proto: onnx.GraphProto) -> None:
    proto.metadata_props.extend(kept.metadata)
    stored = {tensor.name for tensor in proto.initializer}
    computed = {name for node in proto.node for name in node.output}
    known = {value.name for value in (*proto.input, *proto.output, *proto.value_info)}
    proto.quantization_annotation.extend(
        entry for entry in kept.annotations if entry.tensor_name in stored | computed | known
    )
    for value in (*proto.input, *proto.output, *proto.value_info):
        if value.name in kept.values:
            _tell(kept.values[value.name], value)
    for name, value in kept.values.items():  # of a type that onnx-graphsurgeon does not write
        if name not in known and name in computed and _is_other(value.type):
            proto.value_info.append(value)
    for tensor in proto.initializer:
        known_tensor = kept.initializers.get(tensor.name)
        if known_tensor is not None and not (tensor.doc_string or tensor.metadata_props):
            if known_tensor.doc_string:
                tensor.doc_string = known_tensor.doc_string
            tensor.metadata_props.extend(known_tensor.metadata_props)


def _keep_defaults(graph: Graph, proto: onnx.GraphProto) -> None:
    stored: dict[str, onnx.TensorProto | onnx.SparseTensorProto] = {
        **{tensor.name: tensor for tensor in proto.initializer},
        **{sparse.values.name: sparse for sparse in proto.sparse_initializer},
    }
    optional = [value for value in proto.input if value.name in stored]
    if not optional:
        return
    tensors: dict[str, Tensor] = {}
    for part in (graph, *graph.subgraphs(recursive=True)):
        tensors.update(part.tensors())
    inputs = {tensor.name: tensor for tensor in graph.inputs}
    for value in optional:
        declared = OnnxImporter.import_tensor(value)
        tensor = tensors.get(value.name, declared)
        if isinstance(tensor, Constant):
            tensor.to_variable(declared.dtype, declared.shape)
            tensor.type = "tensor_type"
        tensor.optional = True
        inputs[value.name] = tensor
        graph.kept_model.defaults[value.name] = stored[value.name]
    graph.inputs = [inputs[value.name] for value in proto.input]


def _bodies(node: Node, proto: onnx.NodeProto) -> Iterator[tuple[Graph, onnx.GraphProto]]:
    """The bodies of a node, as graphs and as they are written."""
    written = {attribute.name: attribute.g for attribute in proto.attribute if attribute.HasField("g")}
    for name, value in node.attrs.items():
        if isinstance(value, Graph) and name in written:
            yield value, written[name]


def _is_other(kind: onnx.TypeProto) -> bool:
    """Whether a value is neither a tensor nor of unknown type."""
    return kind.WhichOneof("value") not in ("tensor_type", None)


def _says_more(value: onnx.ValueInfoProto) -> bool:
    """Whether a value says more of itself than the type and shape of a tensor."""
    dims = value.type.tensor_type.shape.dim
    return bool(
        value.doc_string
        or value.metadata_props
        or value.type.denotation
        or _is_other(value.type)
        or any(dim.denotation for dim in dims)
    )


def _tell(known: onnx.ValueInfoProto, value: onnx.ValueInfoProto) -> None:
    """Writes what is known of a value into what a pass made of it, whose type and shape may be others."""
    if _is_other(known.type):
        value.CopyFrom(known)
        return
    if known.doc_string:
        value.doc_string = known.doc_string
    value.metadata_props.extend(known.metadata_props)
    if known.type.denotation:
        value.type.denotation = known.type.denotation
    old, new = known.type.tensor_type.shape.dim, value.type.tensor_type.shape.dim
    if len(old) == len(new):
        for before, after in zip(old, new, strict=True):
            if before.denotation:
                after.denotation = before.denotation


def _set(message: Message, name: str, value: object) -> None:
    """Sets one field of any kind."""
    if isinstance(value, Message):
        getattr(message, name).CopyFrom(value)
    elif hasattr(value, "extend"):
        getattr(message, name).extend(value)
    else:
        setattr(message, name, value)
