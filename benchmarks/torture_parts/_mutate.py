"""Changes of a file: of its bytes, or of the fields of the messages in it. All are drawn from a generator that is given."""

from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx
from google.protobuf.descriptor import FieldDescriptor as Field
from google.protobuf.message import Message
from onnx import ModelProto

WHOLE = (
    0,
    1,
    -1,
    2,
    3,
    7,
    8,
    11,
    16,
    21,
    24,
    127,
    128,
    255,
    1 << 16,
    (1 << 31) - 1,
    -(1 << 31),
    1 << 31,
    1 << 33,
    1 << 40,
    1 << 62,
)
WHOLE = (*WHOLE, (1 << 63) - 1, -(1 << 63), 99, -7, 6, 5, 4, 10, 12)
REAL = (0.0, -0.0, 1.0, -1.0, float("nan"), float("inf"), -float("inf"), 3.4e38, 1e-45, 1e-30, 1e30, 0.5)
TEXTS = (
    "",
    "/etc/passwd",
    "../weights.bin",
    "model.onnx",
    ".",
    "weights.bin",
    "x" * 20_000,
    "\0",
    "a\nb",
    "\x1b[2J",
    "ai.onnx",
    "own",
    "Ünï",
)
TEXTS = (
    *TEXTS,
    "-1",
    "18446744073709551616",
    "1e9",
    "location",
    "offset",
    "length",
    "{}",
    "%s%n",
    "ai.onnx.ml",
    "com.microsoft",
    "lathe.sparse",
)
WIDTHS = {Field.TYPE_INT32: 32, Field.TYPE_ENUM: 31, Field.TYPE_UINT64: -64, Field.TYPE_UINT32: -32}
MOST_COPIES = 300
Random = np.random.Generator
Site = tuple[Message, Any]


def bytes_changed(content: bytes, other: bytes, random: Random) -> bytes:
    """The content with one to eight changes of its bytes; pieces of `other` may be put in."""
    changed = bytearray(content)
    for _ in range(int(random.integers(1, 9))):
        at = int(random.integers(0, max(1, len(changed))))
        size = int(min(2 ** random.integers(0, 9), len(changed) - at))
        piece = bytes(changed[at : at + size])
        kind = int(random.integers(0, 8))
        if kind == 0 and changed:
            changed[at] ^= 1 << int(random.integers(0, 8))
        elif kind == 1 and changed:
            changed[at] = int(random.choice([0, 1, 0x7F, 0x80, 0xFF, int(random.integers(0, 256))]))
        elif kind == 2:
            del changed[at : at + size]
        elif kind == 3:
            changed[at:at] = random.bytes(size)
        elif kind == 4:
            changed[at:at] = piece * int(random.integers(1, 4))
        elif kind == 5:
            start = int(random.integers(0, len(other)))
            changed[at : at + size] = other[start : start + size]
        elif kind == 6:
            changed[at : at + size] = b"\xff" * size
        elif kind == 7 and random.random() < 0.2:
            del changed[at:]
    return bytes(changed)


def fields_changed(content: bytes, random: Random) -> bytes:
    """The model with one to four changes of fields. What protobuf cannot write any more comes back as it was."""
    model = ModelProto.FromString(content)
    operators = sorted({schema.name for schema in onnx.defs.get_all_schemas()})
    for _ in range(int(random.choice([1, 1, 1, 2, 3, 4]))):
        sites = list(_sites(model))
        by_field: dict[str, list[Site]] = {}
        for message, field in sites:
            by_field.setdefault(field.full_name, []).append((message, field))
        names = sorted(by_field)  # every kind of field as often, however many there are of it
        chosen = by_field[names[int(random.integers(0, len(names)))]]
        message, field = chosen[int(random.integers(0, len(chosen)))]
        try:
            _change(model, sites, message, field, operators, random)
        except (TypeError, ValueError, OverflowError):
            continue
    return model.SerializeToString()


def _sites(message: Message) -> Iterator[Site]:
    """Every field that is set, of every message."""
    for field, value in message.ListFields():
        yield message, field
        if field.type == Field.TYPE_MESSAGE:
            for one in value if hasattr(value, "add") else (value,):
                yield from _sites(one)


def _change(
    model: ModelProto, sites: list[Site], message: Message, field: Any, operators: list[str], random: Random
) -> None:
    value = getattr(message, field.name)
    if hasattr(value, "extend"):
        _change_list(sites, value, field, operators, random)
    elif field.type == Field.TYPE_MESSAGE:
        others = [one for one, _ in sites if one.DESCRIPTOR is field.message_type]
        if random.random() < 0.4 or not others:
            message.ClearField(field.name)
        else:
            kept = type(others[0]).FromString(
                others[int(random.integers(0, len(others)))].SerializeToString()
            )
            getattr(message, field.name).CopyFrom(kept)
    elif random.random() < 0.1:
        message.ClearField(field.name)
    else:
        setattr(message, field.name, _scalar(sites, field, value, operators, random))


def _change_list(sites: list[Site], values: Any, field: Any, operators: list[str], random: Random) -> None:
    at = int(random.integers(0, len(values)))
    kind = int(random.integers(0, 6))
    if kind == 0:
        del values[at]
    elif kind == 1 and random.random() < 0.3:
        del values[:]
    elif kind == 2:
        count = 1 if random.random() < 0.9 else MOST_COPIES
        values.extend([values[at]] * count)
    elif kind == 3:
        kept = list(values)[::-1]
        del values[:]
        values.extend(kept)
    elif field.type == Field.TYPE_MESSAGE:
        others = [one for one, _ in sites if one.DESCRIPTOR is field.message_type]
        # by way of bytes: one that is inside the other would be gone before it is copied
        chosen = others[int(random.integers(0, len(others)))].SerializeToString()
        values[at].CopyFrom(type(values[at]).FromString(chosen))
    else:
        values[at] = _scalar(sites, field, values[at], operators, random)


def _scalar(sites: list[Site], field: Any, value: Any, operators: list[str], random: Random) -> Any:
    if field.type in (Field.TYPE_FLOAT, Field.TYPE_DOUBLE):
        return REAL[int(random.integers(0, len(REAL)))]
    if field.type == Field.TYPE_STRING:
        return _text(sites, field, operators, random)
    if field.type == Field.TYPE_BYTES:
        return _data(value, random)
    near = value + int(random.integers(-2, 3))
    wanted = near if random.random() < 0.4 else WHOLE[int(random.integers(0, len(WHOLE)))]
    bits = WIDTHS.get(field.type, 64)
    if bits < 0:
        return wanted % (1 << -bits)
    return max(-(1 << (bits - 1)), min((1 << (bits - 1)) - 1, wanted))


def _text(sites: list[Site], field: Any, operators: list[str], random: Random) -> str:
    """The name of something else in the model, of an operator, or one that nobody would choose."""
    kind = random.random()
    if field.name == "op_type" and kind < 0.7:
        return operators[int(random.integers(0, len(operators)))]
    if kind < 0.6:
        named = [getattr(one, "name", "") for one, other in sites if other.name == "name"]
        named += [
            text
            for one, other in sites
            if other.name in ("input", "output") and one.DESCRIPTOR.name == "NodeProto"
            for text in getattr(one, other.name)
        ]
        if named:
            return named[int(random.integers(0, len(named)))]
    return TEXTS[int(random.integers(0, len(TEXTS)))]


def _data(value: bytes, random: Random) -> bytes:
    kind = int(random.integers(0, 6))
    size = len(value)
    if kind == 0:
        return value[: int(random.integers(0, size + 1))]
    if kind == 1:
        return value + random.bytes(int(random.integers(1, 64)))
    if kind == 2:
        return b""
    if kind == 3:
        return (np.array([np.nan, np.inf, -np.inf, 3e38], np.float32).tobytes() * (size // 16 + 1))[:size]
    if kind == 4:
        return random.bytes(size)
    return (
        value[:-4] + np.float32(random.choice([np.nan, np.inf, 1e38])).tobytes()
        if size >= 4
        else b"\xff" * size
    )
