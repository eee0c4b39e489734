"""What a file's messages take once they are parsed, estimated from its bytes before: two bytes may be an empty node, of
which the parsed one and a checked copy take some hundred.
"""

from google.protobuf.descriptor import Descriptor, FieldDescriptor
from onnx import ModelProto

from onnx_lathe.errors import ModelError

SPARE_BYTES, MOST_RATIO = 500_000_000, 64
"""A file whose messages take more than SPARE_BYTES and MOST_RATIO bytes for each of its own is refused; graphs that were
exported take 20 to 40.
"""
_COSTS = {
    "NodeProto": 900,
    "AttributeProto": 700,
    "TensorProto": 700,
    "SparseTensorProto": 700,
    "ValueInfoProto": 800,
}
"""Bytes that loading takes for each, copies included: measured with onnx 1.23, protobuf 6, of a million of each."""
_COST, _TEXT_COST, _AXIS_COST = 250, 120, 65
"""Of another message, of a string in a list, and of a byte of a tensor's shape."""
MOST_SHAPE_BYTES = 1000
"""A tensor has no longer shape: of 100 axes at most."""
_SMALL = 2 * SPARE_BYTES // max(_COSTS.values())
"""Bytes of which no message can take more than SPARE_BYTES."""
_AXES = -1
_Fields = dict[int, "tuple[int, _Fields | None]"]
"""Number of a field -> what it costs, and the fields in it; None for a string."""


def check_proportion(content: bytes) -> None:
    """Raises ModelError for a model file that takes out of proportion much memory when it is parsed. What is no protobuf
    message is left to the parser.
    """
    if len(content) > _SMALL:
        allowed = SPARE_BYTES + MOST_RATIO * len(content)
        if _cost(content, allowed) > allowed:
            raise ModelError(
                f"has more nodes, tensors, values or axes than a file of {len(content) / 1e6:,.1f} MB should: they take more than "
                f"{allowed / 1e6:,.0f} MB; export the model again"
            )


def _cost(content: bytes, enough: int) -> int:
    """Bytes, estimated; counting ends where they are more than `enough`."""
    total = 0
    pending = [(0, len(content), _MODEL)]
    while pending and total <= enough:
        at, end, fields = pending.pop()
        try:
            while at < end:
                tag = content[at]
                at += 1
                if tag > 127:
                    tag, at = _varint(content, at - 1)
                kind = tag & 7
                if kind == 2:
                    size = content[at]
                    at += 1
                    if size > 127:
                        size, at = _varint(content, at - 1)
                    inside = fields.get(tag >> 3)
                    if inside is not None:
                        cost, deeper = inside
                        if cost != _AXES:
                            total += cost
                        else:
                            total += _AXIS_COST * size if size <= MOST_SHAPE_BYTES else enough + 1
                        if size and deeper:
                            pending.append((at, min(at + size, end), deeper))
                        if total > enough:
                            return total
                    at += size
                elif kind == 0:
                    while content[at] > 127:
                        at += 1
                    at += 1
                    if tag >> 3 in fields:
                        total += _AXIS_COST
                elif kind in (1, 5):
                    at += 8 if kind == 1 else 4
                else:
                    raise ModelError(
                        "has a field of a kind that ONNX does not use; save it again with onnx.save"
                    )
        except IndexError:
            return total
    return total


def _varint(content: bytes, at: int) -> tuple[int, int]:
    """The number, and where the next field begins."""
    value = shift = 0
    while content[at] > 127:
        value |= (content[at] & 127) << shift
        at, shift = at + 1, shift + 7
        if shift > 63:
            raise IndexError
    return value | content[at] << shift, at + 1


def _fields_of(message: Descriptor, known: dict[str, _Fields]) -> _Fields:
    if message.full_name in known:
        return known[message.full_name]
    fields = known[message.full_name] = {}
    for field in message.fields:
        if field.message_type is not None:
            cost = _COSTS.get(field.message_type.name, _COST)
            fields[field.number] = cost, _fields_of(field.message_type, known)
        elif field.name == "dims" and message.name in ("TensorProto", "SparseTensorProto"):
            fields[field.number] = _AXES, None
        elif field.type in (FieldDescriptor.TYPE_STRING, FieldDescriptor.TYPE_BYTES) and field.is_repeated:
            fields[field.number] = _TEXT_COST, None
    return fields


_MODEL = _fields_of(ModelProto.DESCRIPTOR, {})
