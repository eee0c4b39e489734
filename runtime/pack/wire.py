"""An ONNX file as protobuf bytes: the skeleton without tensor data, and the data; and both put together
again.

The skeleton is itself a protobuf message, the same one with empty data: `raw_data`, `float_data` or
`double_data` of length 0 in a TensorProto stand for data that was cut out. Fields that this version does
not know are copied as they are.
Source: protobuf.dev, "Encoding"; the numbers of the fields are those of onnx.proto.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from onnx_lathe.errors import ModelError
from onnx_lathe.runtime.pack.coders import varint

CUT_BYTES = 16
"""Shorter data stays in the skeleton."""
MOST_DEPTH = 100

_INSIDE: dict[str, dict[int, str]] = {
    "model": {7: "graph", 25: "function", 20: "training"},
    "training": {1: "graph", 2: "graph"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "function": {7: "node", 11: "attribute"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 6: "graph", 10: "tensor", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
}
"""Message -> number of the field -> message in it, on the ways to a tensor."""
DIMS, DATA_TYPE, FLOAT_DATA, RAW_DATA, DOUBLE_DATA = 1, 2, 4, 9, 10
EXTERNAL_DATA, DATA_LOCATION, EXTERNAL = 13, 14, 1
_DATA = (FLOAT_DATA, RAW_DATA, DOUBLE_DATA)


@dataclass(frozen=True)
class Site:
    """A place that data was cut from: the field of the TensorProto, its type, its shape."""

    field: int
    data_type: int
    dims: tuple[int, ...]


def split(
    content: bytes | memoryview, big: Callable[[memoryview], bool]
) -> tuple[bytes, list[tuple[Site, memoryview]]]:
    """Skeleton, and in the order of the file what was cut from it: data for which `big` holds, and data
    that is empty already.

    Raises ModelError for what is not protobuf.
    """
    found: list[tuple[Site, memoryview]] = []

    def visit(site: Site, data: memoryview) -> list[bytes | memoryview]:
        if data.nbytes and not big(data):
            return [data]
        found.append((site, data))
        return []

    pieces = _message(memoryview(content), "model", visit, 0)
    return b"".join(pieces), found


def sites(skeleton: bytes) -> list[Site]:
    """The places in a skeleton where data belongs, in order. Raises ModelError for what is not protobuf."""
    found: list[Site] = []

    def visit(site: Site, data: memoryview) -> list[bytes | memoryview]:
        if not data.nbytes:
            found.append(site)
        return [data]

    _message(memoryview(skeleton), "model", visit, 0)
    return found


@dataclass(frozen=True)
class Gap:
    """Stands for data of this size in a list of pieces, where a memoryview cannot: it is decoded later."""

    nbytes: int


def layout(
    skeleton: bytes,
    sizes: Sequence[int],
    instead: Callable[[int, Site, int], bytes | None] = lambda number, site, size: None,
) -> list[bytes | memoryview | Gap]:
    """The pieces of the whole message in order. A Gap stands for each site, or the fields that `instead`
    (number, site, size) gives.
    """
    following = iter(enumerate(sizes))

    def visit(site: Site, data: memoryview) -> list[bytes | memoryview | Gap] | bytes:
        if data.nbytes:
            return [data]
        number, size = next(following)
        other = instead(number, site, size)
        return [Gap(size)] if other is None else other

    return _message(memoryview(skeleton), "model", visit, 0)


def _message(content: memoryview, kind: str, visit: Callable[[Site, memoryview], Any], depth: int) -> list:
    """The pieces of a message after `visit` had its way with the data of each tensor; what nothing was done
    to is one piece.
    """
    if depth > MOST_DEPTH:
        raise ModelError("is damaged: graphs lie in graphs without end; copy it again")
    fields = list(_fields(content))
    site = _site_of(content, fields) if kind == "tensor" else None
    inside = _INSIDE.get(kind, {})
    pieces: list = []
    moved = False
    for start, number, wire_type, value, end in fields:
        # What has a number in more bytes than it takes is not looked into: it would come back in fewer.
        plain = wire_type == 2 and value - start == len(varint.write(number << 3 | 2)) + len(
            varint.write(end - value)
        )
        if plain and site is not None and number in _DATA:
            replaced = visit(Site(number, *site), content[value:end])
            if isinstance(replaced, bytes):
                _append(pieces, replaced)
                moved = True
                continue
        elif plain and number in inside:
            replaced = _message(content[value:end], inside[number], visit, depth + 1)
        else:
            if not (moved and number == DATA_LOCATION):  # the one in `replaced` holds
                _append(pieces, content[start:end])
            continue
        _append(pieces, varint.write(number << 3 | 2) + varint.write(size_of(replaced)))
        for piece in replaced:
            _append(pieces, piece)
    return pieces


def external_data(location: str, offset: int, size: int) -> bytes:
    """Fields of a TensorProto whose data is in the file `location`."""
    out = b""
    for key, value in (("location", location), ("offset", str(offset)), ("length", str(size))):
        entry = b"".join(
            bytes([tag]) + varint.write(len(text)) + text
            for tag, text in ((0x0A, key.encode()), (0x12, value.encode()))
        )
        out += bytes([EXTERNAL_DATA << 3 | 2]) + varint.write(len(entry)) + entry
    return out + bytes([DATA_LOCATION << 3, EXTERNAL])


def size_of(pieces: Sequence[bytes | memoryview | Gap]) -> int:
    return sum(piece.nbytes if isinstance(piece, Gap) else len(piece) for piece in pieces)


def _append(pieces: list, piece: bytes | memoryview | Gap) -> None:
    """Small neighbours become one piece."""
    if (
        pieces
        and not isinstance(piece, Gap)
        and isinstance(pieces[-1], bytes)
        and len(pieces[-1]) + len(piece) < 1 << 16
    ):
        pieces[-1] += bytes(piece)
    else:
        pieces.append(bytes(piece) if not isinstance(piece, Gap) and len(piece) < 1 << 16 else piece)


def _site_of(
    content: memoryview, fields: list[tuple[int, int, int, int, int]]
) -> tuple[int, tuple[int, ...]]:
    data_type, dims = 0, []
    for _, number, wire_type, value, end in fields:
        if number == DATA_TYPE and wire_type == 0:
            data_type = varint.Reader(content, value, end).varint()
        elif number == DIMS and wire_type == 0:
            dims.append(varint.Reader(content, value, end).varint())
        elif number == DIMS and wire_type == 2:
            reader = varint.Reader(content, value, end)
            while reader.at < end:
                dims.append(reader.varint())
    return data_type, tuple(dims)


def _fields(content: memoryview) -> Iterator[tuple[int, int, int, int, int]]:
    """(start, number, wire type, start of the value, end) of each field. A group, obsolete and unused in
    ONNX, is refused.
    """
    reader = varint.Reader(content)
    while reader.at < reader.end:
        start = reader.at
        tag = reader.varint()
        number, wire_type = tag >> 3, tag & 7
        value = reader.at
        if wire_type == 0:
            reader.varint()
        elif wire_type == 1:
            reader.take(8)
        elif wire_type == 5:
            reader.take(4)
        elif wire_type == 2:
            size = reader.varint()
            value = reader.at
            reader.take(size)
        else:
            raise ModelError("has a field of a kind that ONNX does not use; save it again with onnx.save")
        yield start, number, wire_type, value, reader.at
