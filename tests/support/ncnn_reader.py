"""A strict reader of ncnn's `.param` and `.bin`, written from ncnn's source (net.cpp, paramdict.cpp,
modelbin.cpp) alone: it shares no code with the target that writes such files.

It refuses what ncnn takes in silence and computes wrongly from, with a ValueError that names the layer.
"""

import math
import re
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from tests.support.ncnn_layers import LOADS, PARAMS, Blob, kinds

MAGIC = "7767517"
ARRAY = -23300
TAGS = {0: "float32", 0x01306B47: "float16", 0x000D4B38: "int8", 0x0002C056: "float32 scaled"}
DTYPES = {"float32": "<f4", "float16": "<f2", "int8": "i1", "float32 scaled": "<f4", "raw": "<f4"}

Value = int | float | str | tuple[int, ...] | tuple[float, ...]

_SPACE = " \t\v\f\r"
_HEAD = re.compile(rf"[^{_SPACE}]+")
_PARAM = re.compile(rf'[{_SPACE}]+(-?\d+)=("[^"]*"|[^{_SPACE}"]+)')
_NUMBER = re.compile(r"([+-]?)(\d*)(?:\.(\d*))?(?:[eE]([+-]?\d+))?")


@dataclass
class Layer:
    """One line, and what it loads. `storage`: of each weight, "raw" (without a tag), "float32", "float16",
    "int8", "float32 scaled" or "table"; `tables`: the 256 values, and the byte per weight, of the last kind.
    """

    type: str
    name: str
    bottoms: tuple[str, ...]
    tops: tuple[str, ...]
    params: dict[int, Value]
    weights: dict[str, np.ndarray] = field(default_factory=dict)
    storage: dict[str, str] = field(default_factory=dict)
    tables: dict[str, tuple[np.ndarray, np.ndarray]] = field(default_factory=dict)

    def error(self, what: object) -> ValueError:
        return ValueError(f"{self.type} {self.name}: {what}")

    def integer(self, key: int, default: int = 0) -> int:
        value = self.params.get(key, default)
        if not isinstance(value, int):
            raise ValueError(f"parameter {key} is {value!r}, not an integer")
        return value

    def loads(self) -> list[Blob]:
        """What the layer takes from `.bin`, in order."""
        try:
            blobs = list(LOADS[self.type](self.integer)) if self.type in LOADS else []
        except ValueError as error:
            raise self.error(error) from None
        for blob in blobs:
            if min(blob.shape) <= 0:
                raise self.error(f"{blob.name} has shape {blob.shape}, and ncnn loads nothing empty")
        return blobs


def read(param: Path, binary: Path) -> list[Layer]:
    """The network of both files."""
    layers = read_param(param.read_bytes().decode())
    read_bin(layers, binary.read_bytes())
    return layers


def read_param(text: str) -> list[Layer]:
    """The lines of a `.param`, without weights."""
    lines = [line.strip(_SPACE) for line in text.rstrip(_SPACE + "\n").split("\n")]
    if lines[0] != MAGIC:
        raise ValueError(f"line 1 is {lines[0]!r}, not {MAGIC}")
    counts = lines[1].split() if len(lines) > 1 else []
    if len(counts) != 2 or not all(count.isdecimal() for count in counts):
        raise ValueError("line 2 is not two numbers, of layers and of blobs")
    layers = [_layer(line) for line in lines[2:]]
    if len(layers) != int(counts[0]):
        raise ValueError(f"{counts[0]} layers are announced, {len(layers)} follow")
    _check_blobs(layers, int(counts[1]))
    return layers


def _layer(line: str) -> Layer:
    words = [(match[0], match.end()) for match in _HEAD.finditer(line)]
    names = [word for word, _ in words]
    if len(names) < 4 or not (names[2].isdecimal() and names[3].isdecimal()):
        raise ValueError(f"not a layer, its name and two counts: {line!r}")
    bottoms, tops = int(names[2]), int(names[3])
    end = 4 + bottoms + tops
    layer = Layer(names[0], names[1], tuple(names[4 : 4 + bottoms]), tuple(names[4 + bottoms : end]), {})
    if layer.type not in PARAMS:
        raise layer.error("no layer of ncnn has this type")
    if len(names) < end:
        raise layer.error(f"{bottoms} inputs and {tops} outputs are announced, fewer follow")
    if max(len(name.encode()) for name in names[:end]) > 255:
        raise layer.error("a name has more than 255 bytes")
    layer.params = _params(layer, line[words[end - 1][1] :])
    return layer


def _params(layer: Layer, text: str) -> dict[int, Value]:
    found: dict[int, Value] = {}
    at = 0
    for match in _PARAM.finditer(text):
        if match.start() != at:
            break
        at = match.end()
        try:
            key, value = _param(int(match[1]), match[2])
            _check_kind(layer.type, key, value)
        except ValueError as error:
            raise layer.error(f"{match[0].strip()}: {error}") from None
        if key in found:
            raise layer.error(f"parameter {key} stands twice")
        found[key] = value
    if text[at:].strip(_SPACE):
        raise layer.error(f"not id=value: {text[at:].strip(_SPACE)!r}")
    return found


def _param(key: int, text: str) -> tuple[int, Value]:
    if key > ARRAY and text[0].isascii() and (text[0].isalpha() or text[0] == '"'):
        content = text.strip('"')
        if len(content.encode()) > 240:
            raise ValueError("ncnn reads at most 255 characters of a text, and warns past 240")
        return key, content
    if key > ARRAY and "," not in text:
        return key, _number(text)
    words = text.rstrip(",").split(",")
    if key <= ARRAY:
        key, count, words = ARRAY - key, words[0], words[1:]
        if not count.isdecimal() or int(count) != len(words):
            raise ValueError(f"{count} values are announced, {len(words)} follow")
    values = tuple(_number(word) for word in words)
    if len({type(value) for value in values}) > 1:
        raise ValueError("integers and floats in one array: ncnn keeps the bits of each")
    return key, values


def _number(text: str) -> int | float:
    """As ParamDict: 15 characters, float where a point or an exponent stands, digits counted in 32 bits."""
    match = _NUMBER.fullmatch(text)
    if len(text) > 15 or not match or not (match[2] or match[3]):
        raise ValueError(f"{text!r} is no number of at most 15 characters")
    sign = -1 if match[1] == "-" else 1
    if match[3] is None and match[4] is None:
        if not -(2**31) <= sign * int(match[2]) < 2**31:
            raise ValueError(f"{text} is no integer of 32 bits")
        return sign * int(match[2])
    whole, decimals = match[2] or "0", match[3] or ""
    if int(whole) >= 2**32 or len(decimals) > 9:
        raise ValueError(f"{text} has more digits than ncnn counts in 32 bits")
    value = int(whole) + int(decimals or 0) / 10 ** len(decimals)
    exponent = int(match[4] or 0)
    value = value * 10.0**exponent if exponent >= 0 else value / 10.0**-exponent
    return float(np.float32(sign * value))


def _check_kind(layer_type: str, key: int, value: Value) -> None:
    known = kinds(layer_type)
    if key not in known:
        raise ValueError("the layer reads no such parameter")
    takes = {"": int, "f": float, "a": tuple, "s": str}[known[key]]
    if isinstance(value, takes) or (takes is float and value == 0):  # zero has the same bits in both kinds
        return
    raise ValueError(f"the layer reads {takes.__name__}, this is {type(value).__name__}")


def _check_blobs(layers: list[Layer], count: int) -> None:
    """Each blob is written once, before it is read, and read once at most: ncnn keeps one reader of each."""
    written: set[str] = set()
    read: set[str] = set()
    for layer in layers:
        for name in layer.bottoms:
            if name not in written:
                raise layer.error(f"input {name} is written by no layer before")
            if name in read:
                raise layer.error(f"input {name} has another reader already, without a Split")
            read.add(name)
        for name in layer.tops:
            if name in written:
                raise layer.error(f"output {name} is written twice")
            written.add(name)
    if len(written) != count:
        raise ValueError(f"{count} blobs are announced, {len(written)} follow")


def read_bin(layers: list[Layer], data: bytes) -> None:
    """Puts into the layers what they load; every byte is of one of them."""
    at = 0
    for layer in layers:
        try:
            for blob in layer.loads():
                at += _load(layer, blob, memoryview(data)[at:])
        except _TooShortError:
            raise layer.error(f"the weights end at byte {len(data)}, inside {blob.name}") from None
        scaled = any("int8_scale" in name for name in layer.weights)
        if "int8" in layer.storage.values() and not scaled:
            raise layer.error("INT8 weights without their scales")
    if at != len(data):
        raise ValueError(f"{len(data) - at} bytes are left behind the last layer's weights")


class _TooShortError(Exception):
    pass


def _load(layer: Layer, blob: Blob, data: memoryview) -> int:
    """Number of bytes read."""
    size, tag_size = math.prod(blob.shape), 4 * blob.tagged
    storage = "raw"
    if blob.tagged:
        storage = TAGS.get(int.from_bytes(_taken(data, 0, 4), "little"), "table")
    layer.storage[blob.name] = storage
    if storage == "table":
        table = np.frombuffer(_taken(data, 4, 1024), "<f4")
        codes = np.frombuffer(_taken(data, 1028, size), np.uint8).reshape(blob.shape)
        layer.tables[blob.name] = table, codes
        layer.weights[blob.name] = table[codes]
        return _padded(layer, blob, data, 1028 + size)
    dtype = np.dtype(DTYPES[storage])
    content = _taken(data, tag_size, size * dtype.itemsize)
    layer.weights[blob.name] = np.frombuffer(content, dtype).reshape(blob.shape)
    return _padded(layer, blob, data, tag_size + size * dtype.itemsize)


def _taken(data: memoryview, start: int, size: int) -> memoryview:
    if len(data) < start + size:
        raise _TooShortError
    return data[start : start + size]


def _padded(layer: Layer, blob: Blob, data: memoryview, end: int) -> int:
    """The end moved up to a whole word: what lies between is zero in files that ncnn's tools write."""
    size = -end % 4
    if any(_taken(data, end, size)):
        raise layer.error(f"{blob.name} is followed by bytes that are not zero")
    return end + size
