"""A model as the bytes of its file, one large initializer at a time: protobuf itself makes two copies of it all."""

from collections.abc import Iterator

from google.protobuf.message import Message
from onnx import ModelProto, TensorProto

from onnx_lathe import held
from onnx_lathe.errors import ModelError
from onnx_lathe.runtime.files.tensors import copy_fields, data_size, field_head, tensor_size

PIECED_BYTES = 64 << 20
"""Smaller models are written by protobuf."""
_LARGE_BYTES = 1 << 20


def pieces(model: ModelProto) -> Iterator[bytes | memoryview]:
    """Together what `SerializeToString` gives, without fields that this version of ONNX does not know.

    Data that is held in files (held.py) is taken from there. Raises ModelError for an initializer whose data is not of the size that its shape asks for.
    """
    graph = model.graph
    head, tail = _around(model, "graph")
    first, last = _around(graph, "initializer")
    sizes = [tensor_size(tensor) for tensor in graph.initializer]
    heads = [field_head(_number(graph, "initializer"), size) for size in sizes]
    whole = len(first) + len(last) + sum(sizes) + sum(map(len, heads))
    yield head + field_head(_number(model, "graph"), whole) + first
    for tensor, before in zip(graph.initializer, heads, strict=True):
        yield before
        yield from _tensor(tensor)
    yield last + tail


def _tensor(tensor: TensorProto) -> Iterator[bytes | memoryview]:
    if held.is_held(tensor):
        header = TensorProto()
        copy_fields(tensor, header, leave_out=("external_data", "data_location"))
        first, last = _around(header, "raw_data")
        mapped = held.data_of(tensor).data
        yield first + field_head(_number(tensor, "raw_data"), len(mapped))
        yield mapped
        yield last
        return
    if not tensor.HasField("raw_data") or data_size(tensor) < _LARGE_BYTES:
        yield tensor.SerializeToString()
        return
    first, last = _around(tensor, "raw_data")
    data = tensor.raw_data
    if len(data) != data_size(tensor):
        raise ModelError(f"the data of tensor '{tensor.name}' does not have the size that its shape asks for")
    yield first + field_head(_number(tensor, "raw_data"), len(data))
    yield data
    yield last


def _around(message: Message, name: str) -> tuple[bytes, bytes]:
    """The message's fields before the one of that name, and those behind it, as they stand in a file."""
    number, fields = _number(message, name), message.DESCRIPTOR.fields
    before, behind = type(message)(), type(message)()
    copy_fields(message, before, leave_out=[field.name for field in fields if field.number >= number])
    copy_fields(message, behind, leave_out=[field.name for field in fields if field.number <= number])
    return before.SerializeToString(), behind.SerializeToString()


def _number(message: Message, name: str) -> int:
    return int(message.DESCRIPTOR.fields_by_name[name].number)
