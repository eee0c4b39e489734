"""ncnn's two files: `.param`, a line per layer, and `.bin`, the layers' weights one behind the other.

    7767517                                       magic
    LAYERS BLOBS
    Type  name  INPUTS OUTPUTS  blob ... blob ...  id=value ...  -23300-id=count,value,...

A weight of the first kind in `.bin` has a tag of four bytes that says how it is stored; what follows a layer's
first weight (biases, scales) is float32 without one. The reader's limits: a value of at most 15 characters, of
which one with "." or "e" is a float; names without white space, of at most 255.
Source: ncnn, src/paramdict.cpp, src/modelbin.cpp and docs/developer-guide/param-and-model-file-structure.md.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import BinaryIO

import numpy as np

MAGIC = 7767517
ARRAY = -23300
FLOAT32, FLOAT16, INT8, TABLE = 0, 0x01306B47, 0x000D4B38, 1
"""Tags. Any other number whose bytes do not add up to zero announces a table of 256 floats and a byte per weight."""
TABLE_SIZE = 256
LONGEST_NAME, ROOM = 255, 30
"""Bytes."""
LONGEST_TEXT = 240

Value = int | float | str | Sequence[int] | Sequence[float]


@dataclass(frozen=True)
class Stored:
    """The values of a weight as they are to lie in the file: float32, INT8, or uint8 indices into a `table` of
    at most 256 values.
    """

    values: np.ndarray
    table: np.ndarray | None = None

    def moved(self, move: Callable[[np.ndarray], np.ndarray]) -> "Stored":
        """With `move` done to the array: one that changes places, not values."""
        return Stored(np.ascontiguousarray(move(self.values)), self.table)

    def floats(self) -> np.ndarray:
        return self.values if self.table is None else self.table[self.values]


@dataclass(frozen=True)
class Weight:
    """What a layer loads at once. `tagged`: it begins with a tag, so that it can be stored in several ways."""

    stored: Stored
    tagged: bool = False


@dataclass
class Layer:
    """One line of `.param`, and what it loads. `nodes`: names of the model's nodes that it computes."""

    type: str
    name: str
    bottoms: list[str]
    tops: list[str]
    params: dict[int, Value] = field(default_factory=dict)
    weights: list[Weight] = field(default_factory=list)
    nodes: tuple[str, ...] = ()


def param_text(layers: Sequence[Layer]) -> str:
    """`.param`. A blob is counted once, by the layer that writes it."""
    lines = [str(MAGIC), f"{len(layers)} {sum(len(layer.tops) for layer in layers)}"]
    return "\n".join([*lines, *map(_line, layers)]) + "\n"


def _line(layer: Layer) -> str:
    names = [*layer.bottoms, *layer.tops]
    head = f"{layer.type:<24} {layer.name:<24} {len(layer.bottoms)} {len(layer.tops)}"
    return " ".join([head, *names, *(_entry(key, value) for key, value in sorted(layer.params.items()))])


def _entry(key: int, value: Value) -> str:
    if isinstance(value, str):
        return f'{key}="{value}"'
    if isinstance(value, int | float):
        return f"{key}={_number(value)}"
    return f"{ARRAY - key}={','.join([str(len(value)), *map(_number, value)])}"


def _number(value: int | float) -> str:
    """Of a float, nine digits: they tell every float32 from its neighbours, in 15 characters. ncnn reads no
    infinity: the largest float stands for it.
    """
    if isinstance(value, int | np.integer):
        return str(int(value))
    limit = float(np.finfo(np.float32).max)
    return f"{np.float32(min(max(value, -limit), limit)):.8e}"


def write_weights(layers: Sequence[Layer], file: BinaryIO, half: bool) -> None:
    """`.bin`. half: float32 weights that have a tag are stored in float16; those that it holds exactly always are."""
    for layer in layers:
        for weight in layer.weights:
            for piece in _pieces(weight, half):
                file.write(piece)


def _pieces(weight: Weight, half: bool) -> Iterator[bytes]:
    values = weight.stored.values
    if not weight.tagged:
        yield np.ascontiguousarray(weight.stored.floats(), "<f4").tobytes()
    elif weight.stored.table is not None and _table_pays(values.size, half):
        table = np.zeros(TABLE_SIZE, "<f4")
        table[: weight.stored.table.size] = weight.stored.table
        yield from (_tag(TABLE), table.tobytes(), _aligned(values.astype(np.uint8)))
    elif values.dtype == np.int8:
        yield from (_tag(INT8), _aligned(values))
    elif half or _is_half(weight.stored.floats()):
        yield from (_tag(FLOAT16), _aligned(weight.stored.floats().astype("<f2")))
    else:
        yield from (_tag(FLOAT32), np.ascontiguousarray(weight.stored.floats(), "<f4").tobytes())


def _table_pays(count: int, half: bool) -> bool:
    """Whether a table and a byte for each of `count` values take less than the values themselves."""
    return 4 * TABLE_SIZE + count < (2 if half else 4) * count


def _is_half(values: np.ndarray) -> bool:
    """Whether float16 holds the same values, as those of a model in half precision."""
    with np.errstate(over="ignore"):
        return bool(np.array_equal(values.astype(np.float16).astype(np.float32), values))


def _tag(value: int) -> bytes:
    return value.to_bytes(4, "little")


def _aligned(values: np.ndarray) -> bytes:
    """ncnn reads whole words of four bytes."""
    content = np.ascontiguousarray(values).tobytes()
    return content + bytes(-len(content) % 4)


def plain_name(name: str) -> str:
    """A name as the files take it: without white space, and not too long, with room for a number behind it."""
    kept = "_".join(name.split()).encode()[-(LONGEST_NAME - ROOM) :]
    return kept.decode(errors="ignore") or "unnamed"


def used(layers: Sequence[Layer]) -> Mapping[str, int]:
    """Blob -> how many layers read it."""
    found: dict[str, int] = {}
    for layer in layers:
        for name in layer.bottoms:
            found[name] = found.get(name, 0) + 1
    return found
