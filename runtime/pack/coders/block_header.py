"""What the header of a big tensor says (docs/pack-format.md, section 6), and how its values become symbols and
planes by it, and back.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import zstandard

from onnx_lathe.errors import ModelError
from onnx_lathe.runtime.pack.coders import static, varint
from onnx_lathe.runtime.pack.coders.arithmetic import ONE
from onnx_lathe.runtime.pack.coders.elements import Form
from onnx_lathe.runtime.pack.coders.general import unzstd
from onnx_lathe.runtime.pack.coders.static import Blocks, Histogram

PALETTE, SPARSE, CLASSED, PATTERNS = 1, 2, 4, 8
GROUP = 4
"""Elements of a row whose zeros are coded together with PATTERNS: what N:M sparsity repeats."""
MOST_SYMBOLS = 256


@dataclass
class Layout:
    """What a header says. `palette`: the values that symbols stand for, ascending; empty if elements are
    symbols themselves, or numbers.
    """

    form: Form
    flags: int
    common: int
    palette: np.ndarray
    blocks: Blocks
    lowest: int = 0
    spare: int = 0
    ones: np.ndarray = field(default_factory=lambda: np.zeros((1, 1), np.int64))
    patterns: Histogram | None = None
    symbols: list[Histogram] = field(default_factory=list)
    planes: list[Histogram | None] = field(default_factory=list)

    @property
    def sparse(self) -> bool:
        return bool(self.flags & SPARSE)

    @property
    def numbers(self) -> bool:
        return self.form.width > 8 and not self.flags & PALETTE

    @property
    def mantissa_bits(self) -> int:
        return self.form.width - 1 - self.form.exponent_bits

    @property
    def plane_count(self) -> int:
        """Bytes that hold the sign and what is used of the mantissa."""
        return (self.mantissa_bits - self.spare + 1 + 7) // 8 if self.numbers else 0

    @property
    def most_symbols(self) -> int:
        return 1 << self.form.exponent_bits if self.numbers else len(self.palette) or 1 << self.form.width

    def to_symbols(self, values: np.ndarray) -> np.ndarray:
        """int32: place in the palette, element, or exponent above the lowest."""
        if self.palette.size:
            return np.searchsorted(self.palette, values).astype(np.int32)
        if not self.numbers:
            return values.astype(np.int32)
        upper = self._upper(values) >> np.uint16(15 - self.form.exponent_bits)
        exponent = (upper & np.uint16((1 << self.form.exponent_bits) - 1)).astype(np.int32)
        return exponent - np.int32(self.lowest) if self.lowest else exponent

    def to_planes(self, values: np.ndarray) -> Iterator[np.ndarray]:
        """uint8 arrays: mantissa without its last `spare` bits, the sign above it, lowest byte first; none if the
        values are not numbers.
        """
        if self.spare:
            kind = values.dtype.type
            sign = values >> kind(self.form.width - 1) << kind(self.mantissa_bits - self.spare)
            rest = (values & kind((1 << self.mantissa_bits) - 1)) >> kind(self.spare) | sign
            return ((rest >> kind(8 * plane)).astype(np.uint8) for plane in range(self.plane_count))
        return self._whole_planes(values) if self.numbers else iter(())

    def _whole_planes(self, values: np.ndarray) -> Iterator[np.ndarray]:
        """`to_planes` of mantissas that are used to the end: all but the upper 16 bits are planes as they are."""
        lower = self.form.width // 8 - 2
        of_bytes = values.view(np.uint8).reshape(-1, lower + 2)
        yield from (of_bytes[:, plane] for plane in range(lower))
        upper, high = self._upper(values), 15 - self.form.exponent_bits
        top = upper & np.uint16((1 << high) - 1) | upper >> np.uint16(15) << np.uint16(high)
        yield from (
            (top >> np.uint16(8 * plane)).astype(np.uint8) for plane in range(self.plane_count - lower)
        )

    def _upper(self, values: np.ndarray) -> np.ndarray:
        """Upper 16 bits of each number, a view: sign, exponent, and the first of the mantissa."""
        return values.view("<u2")[..., self.form.width // 16 - 1 :: self.form.width // 16]

    def to_values(self, symbols: np.ndarray, planes: list[np.ndarray]) -> np.ndarray:
        if self.palette.size:
            return self.palette[symbols]
        kind = np.dtype(f"<u{max(1, self.form.width // 8)}").type
        if not self.numbers:
            return symbols.astype(kind)
        rest = np.zeros(symbols.size, kind)
        for plane, content in enumerate(planes):
            rest |= content.astype(kind) << kind(8 * plane)
        high = self.mantissa_bits - self.spare
        values = (symbols + self.lowest).astype(kind) << kind(self.mantissa_bits)
        values |= (rest & kind((1 << high) - 1)) << kind(self.spare)
        values |= rest >> kind(high) << kind(self.form.width - 1)
        return values


def write_header(layout: Layout) -> bytes:
    form, blocks = layout.form, layout.blocks
    out = bytes([layout.flags]) + varint.write(layout.common if layout.sparse else 0)
    if layout.flags & PALETTE:
        out += varint.write(layout.palette.size) + layout.palette.astype(f"<u{form.width // 8}").tobytes()
    if layout.numbers:
        out += varint.write(layout.lowest) + varint.write(layout.spare)
    if layout.flags & CLASSED:
        out += blocks.row_class.tobytes() + (blocks.column_class.tobytes() if layout.sparse else b"")
    if layout.patterns is not None:
        out += layout.patterns.write()
    elif layout.sparse:
        out += b"".join(varint.write(int(value)) for value in layout.ones.reshape(-1))
    out += b"".join(found.write() for found in layout.symbols)
    out += b"".join(b"\0" if found is None else found.write() for found in layout.planes)
    packed = zstandard.ZstdCompressor(level=19).compress(out)
    return varint.write(len(out)) + varint.write(len(packed)) + packed


def read_header(form: Form, reader: varint.Reader) -> Layout:
    rows, columns = static.matrix(form.count, form.shape)
    size, packed = reader.varint(), reader.varint()
    if size > rows + columns + (1 << 16) * (static.CLASSES + 9):
        raise ModelError("is damaged: the header of a tensor is too long; copy it again")
    inside = varint.Reader(unzstd(bytes(reader.take(packed)), size))
    flags, common = inside.byte(), inside.varint()
    if (
        flags > 15
        or (flags & PATTERNS and (columns % GROUP or not flags & SPARSE))
        or common >> form.width
        or (form.width > 8 and not flags & PALETTE and not form.exponent_bits)
    ):
        raise ModelError("is damaged: the header of a tensor makes no sense; copy it again")
    palette = np.zeros(0, np.uint8)
    if flags & PALETTE:
        count = inside.varint()
        if not 0 < count <= MOST_SYMBOLS or form.width < 8:
            raise ModelError("is damaged: a palette has no such size; copy it again")
        palette = np.frombuffer(inside.take(count * form.width // 8), f"<u{form.width // 8}")
    layout = Layout(form, flags, common, palette, Blocks(rows, columns))
    if layout.numbers:
        layout.lowest, layout.spare = inside.varint(), inside.varint()
        if layout.spare > layout.mantissa_bits or layout.lowest >> form.exponent_bits:
            raise ModelError("is damaged: the header of a tensor makes no sense; copy it again")
    if flags & CLASSED:
        row_class = np.frombuffer(inside.take(rows), np.uint8)
        column_class = np.frombuffer(inside.take(columns), np.uint8) if layout.sparse else None
        layout.blocks = Blocks(rows, columns, row_class, column_class)
    kinds = layout.blocks.row_classes, layout.blocks.column_classes
    if max(kinds) > static.CLASSES:
        raise ModelError("is damaged: a tensor has too many classes; copy it again")
    if flags & PATTERNS:
        layout.patterns = Histogram.read(inside, 1 << GROUP)
    elif layout.sparse:
        ones = [inside.varint() for _ in range(kinds[0] * kinds[1])]
        if not all(0 < value < ONE for value in ones):
            raise ModelError("is damaged: a probability is out of range; copy it again")
        layout.ones = np.array(ones, np.int64).reshape(kinds)
    layout.symbols = [Histogram.read(inside, layout.most_symbols) for _ in range(kinds[0])]
    layout.planes = [Histogram.read_or_none(inside, 256) for _ in range(layout.plane_count)]
    return layout
