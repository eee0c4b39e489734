"""Writes a model as one ONNX file, byte for byte as protobuf does, without a copy of the data that is held in files.

A message is its fields in the order of their numbers; one field of it, which is long, is written piece by piece here,
and what stands before and behind it as protobuf writes it.
"""

from collections.abc import Iterator, Sequence
from typing import Any

from google.protobuf.message import Message
from onnx import GraphProto, ModelProto, TensorProto

from onnx_lathe import held
from onnx_lathe.runtime.files.tensors import copy_fields

Piece = bytes | memoryview


def pieces(model: ModelProto) -> Iterator[Piece]:
    """The content of the file, of which all big tensors may be held."""
    graph = _around(model.graph, "initializer")
    tensors = [_tensor(tensor) for tensor in model.graph.initializer]
    inside = [piece for tensor in tensors for piece in _field(GraphProto, "initializer", tensor)]
    before, behind = _around(model, "graph")
    yield before
    yield from _field(ModelProto, "graph", [graph[0], *inside, graph[1]])
    yield behind


def _tensor(tensor: TensorProto) -> list[Piece]:
    if not held.is_held(tensor):
        return [tensor.SerializeToString()]
    header = TensorProto()
    copy_fields(tensor, header, leave_out=("raw_data", "external_data", "data_location"))
    before, behind = _around(header, "raw_data")
    return [before, *_field(TensorProto, "raw_data", [held.data_of(tensor).data]), behind]


def _around(message: Any, name: str) -> tuple[bytes, bytes]:
    """The fields before the one of this name, and those behind it."""
    fields = message.DESCRIPTOR.fields_by_name
    parts = []
    for behind in (False, True):
        part: Message = type(message)()
        out = [
            one
            for one, field in fields.items()
            if one == name or (field.number > fields[name].number) != behind
        ]
        copy_fields(message, part, leave_out=out)
        parts.append(part.SerializeToString())
    return parts[0], parts[1]


def _field(kind: type[Message], name: str, content: Sequence[Piece]) -> list[Piece]:
    """A field that has a length: its tag, the length, the content."""
    size = sum(len(piece) for piece in content)
    return [_varint(kind.DESCRIPTOR.fields_by_name[name].number << 3 | 2) + _varint(size), *content]


def _varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)
