"""The stored tensors of a model: where they are, their size, and a copy of the model without the big ones.

Big initializers are never copied for a check, so that a model of half a gigabyte needs little more than its
own size.
"""

import math
import re
from collections.abc import Callable, Collection, Iterator
from functools import cache

import onnx
from google.protobuf.message import Message
from onnx import ModelProto, TensorProto

from onnx_lathe import held
from onnx_lathe.errors import ModelError

BIG_BYTES = 1024
"""An initializer from this size on is kept out of copies, and goes into external data if there is any."""

MEASURED_BYTES = 1 << 30
"""Protobuf measures a message by writing it, and fails from 2 GiB on."""

VALUES = ("raw_data", "float_data", "int32_data", "int64_data", "double_data", "uint64_data")
"""Fields of a tensor that hold its numbers."""


def _main_graphs(model: ModelProto) -> list[onnx.GraphProto]:
    """The graph, and those that train it."""
    return [
        model.graph,
        *(
            graph
            for training in model.training_info
            for graph in (training.initialization, training.algorithm)
        ),
    ]


def all_nodes(model: ModelProto) -> Iterator[onnx.NodeProto]:
    """Every node, those of subgraphs and functions too."""
    pending = [node for part in (*_main_graphs(model), *model.functions) for node in part.node]
    for node in pending:
        yield node
        for attribute in node.attribute:
            for graph in (*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])):
                pending.extend(graph.node)


def all_graphs(model: ModelProto) -> Iterator[onnx.GraphProto]:
    """Every graph: the main one, those that train it, and the bodies of nodes."""
    yield from _main_graphs(model)
    for node in all_nodes(model):
        for attribute in node.attribute:
            yield from attribute.graphs
            if attribute.HasField("g"):
                yield attribute.g


def all_tensors(model: ModelProto) -> Iterator[TensorProto]:
    """Every stored tensor: initializers of the graph and of subgraphs, sparse ones, and attributes."""
    for node in all_nodes(model):
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
            for sparse in (
                *attribute.sparse_tensors,
                *([attribute.sparse_tensor] if attribute.HasField("sparse_tensor") else []),
            ):
                yield sparse.values
                yield sparse.indices
    for graph in all_graphs(model):
        yield from graph.initializer
        for sparse in graph.sparse_initializer:
            yield sparse.values
            yield sparse.indices


@cache
def bits_of(data_type: int) -> int | None:
    """Bits of an element; None for strings and unknown types."""
    try:
        narrow = re.fullmatch(r"(?:U?INT|FLOAT)([24])(?:E\dM\d)?", TensorProto.DataType.Name(data_type))
        return int(narrow[1]) if narrow else 8 * onnx.helper.tensor_dtype_to_np_dtype(data_type).itemsize
    except (KeyError, ValueError):
        return None


def data_size(tensor: TensorProto) -> int:
    """Bytes of raw data that the shape asks for. Raises ModelError for a negative dimension, or a type
    without a fixed size.
    """
    bits = bits_of(tensor.data_type)
    if bits is None or min(tensor.dims, default=0) < 0:
        raise ModelError(
            f"tensor '{tensor.name}' has an unknown type or a negative dimension; export the model again"
        )
    return (math.prod(tensor.dims) * bits + 7) // 8


def without_big(model: ModelProto, big: Callable[[onnx.GraphProto, TensorProto], None]) -> ModelProto:
    """A copy in which `big(graph of the copy, tensor)` stands for each initializer of 1 kB or more (strings
    excepted).
    """
    light = ModelProto()
    copy_fields(model, light, leave_out=("graph",))
    copy_fields(model.graph, light.graph, leave_out=("initializer",))
    for tensor in model.graph.initializer:
        if math.prod(tensor.dims) * (bits_of(tensor.data_type) or 0) < 8 * BIG_BYTES:
            light.graph.initializer.append(tensor)
        else:
            big(light.graph, tensor)
    return light


def copy_fields(source: Message, target: Message, leave_out: Collection[str]) -> None:
    """Gives `target` all fields of `source` but those in `leave_out`."""
    for field in source.DESCRIPTOR.fields:
        if field.name in leave_out:  # and not looked at: a look at the data of a tensor copies it
            continue
        value = getattr(source, field.name)
        if hasattr(value, "extend"):
            getattr(target, field.name).extend(value)
        elif source.HasField(field.name) and isinstance(value, Message):
            getattr(target, field.name).CopyFrom(value)
        elif source.HasField(field.name):
            setattr(target, field.name, value)


def inline_size(model: ModelProto) -> int:
    """Exact size of one file; the big initializers are added one by one, because protobuf measures by
    serializing.
    """
    added = 0

    def count(graph: onnx.GraphProto, tensor: TensorProto) -> None:
        nonlocal added
        added += _field_size(tensor_size(tensor))

    light = without_big(model, count)
    graph = light.graph.ByteSize()
    return light.ByteSize() - _field_size(graph) + _field_size(graph + added)


def tensor_size(tensor: TensorProto) -> int:
    """Bytes of the tensor in a file; of one that protobuf itself cannot write, which is over 2 GiB, as if it
    could. Data of the size that the shape asks for is not written to be measured.
    """
    data = data_size(tensor) if tensor.data_type != TensorProto.STRING else 0
    if not tensor.HasField("raw_data") and data <= MEASURED_BYTES and not held.is_held(tensor):
        return tensor.ByteSize()
    header = TensorProto()
    elsewhere = ("external_data", "data_location") if held.is_held(tensor) else ()
    copy_fields(tensor, header, leave_out=(*VALUES, *elsewhere))
    return header.ByteSize() + _field_size(data)


def _field_size(content: int) -> int:
    """Bytes of an embedded protobuf message: a tag of one byte, the length in groups of 7 bits, the
    content.
    """
    return 1 + max(1, (content.bit_length() + 6) // 7) + content


def field_head(number: int, content: int) -> bytes:
    """What stands before an embedded message, or bytes, of that size in a field of that number, of 1 to 15."""
    length = bytearray()
    while content > 0x7F:
        length.append(content & 0x7F | 0x80)
        content >>= 7
    return bytes([number << 3 | 2, *length, content])
