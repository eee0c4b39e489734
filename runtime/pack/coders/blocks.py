"""Big tensors: a header with the fixed models, then chunks (runtime/pack/coders/static.py) that are coded
and decoded in parallel.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np
import zstandard

from onnx_lathe.errors import ModelError
from onnx_lathe.runtime.pack.coders import elements, static, varint
from onnx_lathe.runtime.pack.coders.arithmetic import ONE, to_bytes
from onnx_lathe.runtime.pack.coders.elements import Form
from onnx_lathe.runtime.pack.coders.general import unzstd
from onnx_lathe.runtime.pack.coders.static import Blocks, Histogram

SAMPLE = 1 << 16
PALETTE, SPARSE, CLASSED, PATTERNS = 1, 2, 4, 8
GROUP = 4
"""Elements of a row whose zeros are coded together with PATTERNS: what N:M sparsity repeats."""
PATTERNS_GAIN = 0.97
"""Gaps decode faster, so patterns must be worth it."""
MOST_SYMBOLS = 256
SPARSE_SHARE, SPARSE_SHARE_NUMBERS = 0.25, 0.02
"""Share of the commonest value from which on it is coded apart."""
STORED_BITS = 7.95
"""A byte of a mantissa with more entropy than that is stored."""


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
        kind = values.dtype.type
        exponent = values >> kind(self.mantissa_bits) & kind((1 << self.form.exponent_bits) - 1)
        return exponent.astype(np.int32) - np.int32(self.lowest)

    def to_planes(self, values: np.ndarray) -> Iterator[np.ndarray]:
        """uint8 arrays: mantissa without its last `spare` bits, the sign above it, lowest byte first."""
        kind = values.dtype.type
        sign = values >> kind(self.form.width - 1) << kind(self.mantissa_bits - self.spare)
        rest = (values & kind((1 << self.mantissa_bits) - 1)) >> kind(self.spare) | sign
        return ((rest >> kind(8 * plane)).astype(np.uint8) for plane in range(self.plane_count))

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


def encode(form: Form, content: np.ndarray) -> bytes | None:
    """The blob of a tensor of at least one element; None if it is neither symbols, nor few distinct values,
    nor floats.
    """
    values = elements.read(form, content)
    layout = _survey(form, values)
    if layout is None:
        return None
    parts = list(static.in_parallel(partial(_encode_chunk, layout, values), list(layout.blocks.chunks())))
    return _write_header(layout) + b"".join(varint.write(len(part)) for part in parts) + b"".join(parts)


def decode(form: Form, blob: memoryview, out: np.ndarray) -> None:
    """Fills `out` (uint8 [form.size_bytes]). Raises ModelError for a blob that no encoder wrote."""
    reader = varint.Reader(blob)
    layout = _read_header(form, reader)
    chunks = list(layout.blocks.chunks())
    sizes = [reader.varint() for _ in chunks]
    work = [(rows, reader.take(size)) for rows, size in zip(chunks, sizes, strict=True)]
    for _ in static.in_parallel(partial(_decode_chunk, layout, out), work):
        pass


def _survey(form: Form, values: np.ndarray) -> Layout | None:
    sample = values[:: max(1, values.size // SAMPLE)]
    found, counts = np.unique(sample, return_counts=True)
    common, share = int(found[counts.argmax()]), float(counts.max()) / sample.size
    palette = _palette(values, common) if form.width > 8 and found.size <= MOST_SYMBOLS else None
    numbers = form.width > 8 and palette is None
    if numbers and not form.exponent_bits:
        return None
    sparse = share > (SPARSE_SHARE_NUMBERS if numbers else SPARSE_SHARE)
    if palette is None:
        palette = np.zeros(0, values.dtype)
    elif sparse:
        palette = palette[palette != common]
    flags = PALETTE * (palette.size > 0) | SPARSE * sparse
    if form.width > 8 and not numbers and not flags & PALETTE:  # one value in all: any palette will do
        flags, palette = flags | PALETTE, np.array([common], values.dtype)
    rows, columns = static.matrix(form.count, form.shape)
    plain = Layout(form, flags, common, palette, Blocks(rows, columns))
    if numbers:
        plain.lowest, plain.spare = _range(plain, values)
    classed = replace(plain, flags=flags | CLASSED, blocks=_classes(plain, values))
    return min((_with_models(layout, values) for layout in (plain, classed)), key=lambda found: found[1])[0]


def _palette(values: np.ndarray, common: int) -> np.ndarray | None:
    """Distinct values, ascending, if there are at most 256 of them."""
    known = np.array([common], values.dtype)
    for start in range(0, values.size, static.CHUNK):
        part = values[start : start + static.CHUNK]
        part = part[part != common]
        while part.size:
            known = np.union1d(known, part[: 1 << 14])
            if known.size > MOST_SYMBOLS:
                return None
            part = part[known[np.minimum(np.searchsorted(known, part), known.size - 1)] != part]
    return known


def _rest(
    layout: Layout, values: np.ndarray, rows: slice
) -> tuple[np.ndarray, np.ndarray | None, np.ndarray | None]:
    """Of a chunk: the values to be coded, flat; where they are [rows, columns], None: everywhere; the class
    of each, None: there is one.
    """
    columns = layout.blocks.columns
    part = values[rows.start * columns : rows.stop * columns]
    classes = layout.blocks.row_class[rows]
    if not layout.sparse:
        return (
            part,
            None,
            None if layout.blocks.row_classes == 1 else np.repeat(classes, columns)[: part.size],
        )
    if missing := (rows.stop - rows.start) * columns - part.size:
        part = np.concatenate([part, np.full(missing, layout.common, part.dtype)])
    mask = (part != layout.common).reshape(-1, columns)
    return (
        part[mask.reshape(-1)],
        mask,
        None if layout.blocks.row_classes == 1 else np.repeat(classes, mask.sum(axis=1)),
    )


def _range(layout: Layout, values: np.ndarray) -> tuple[int, int]:
    """Lowest exponent, and how many bits at the end of every mantissa are zero."""
    used, lowest = 0, 1 << layout.form.exponent_bits
    for rows in layout.blocks.chunks():
        rest, _, _ = _rest(layout, values, rows)
        if rest.size:
            used |= int(np.bitwise_or.reduce(rest)) & ((1 << layout.mantissa_bits) - 1)
            lowest = min(lowest, int(layout.to_symbols(rest).min()))
    spare = layout.mantissa_bits if used == 0 else (used & -used).bit_length() - 1
    return min(lowest, (1 << layout.form.exponent_bits) - 1), spare


def _classes(layout: Layout, values: np.ndarray) -> Blocks:
    blocks = layout.blocks
    row_size, column_size = np.zeros(blocks.rows), np.zeros(blocks.columns, np.int64)
    flip = 0 if layout.palette.size else layout.form.flip
    centre = (
        int(np.searchsorted(layout.palette, layout.common)) if layout.palette.size else layout.common ^ flip
    )
    for rows in blocks.chunks():
        rest, mask, _ = _rest(layout, values, rows)
        if mask is not None:
            row_size[rows] = mask.sum(axis=1)
            column_size += mask.sum(axis=0)
            continue
        symbols = layout.to_symbols(rest)
        size = symbols if layout.numbers else np.abs((symbols ^ flip) - centre) * 64
        full = np.zeros(blocks.columns * (rows.stop - rows.start), np.int32)
        full[: size.size] = size
        average = full.reshape(-1, blocks.columns).mean(axis=1)
        row_size[rows] = np.exp2(average / 2) if layout.numbers else average
    row_class = static.classes_of(np.minimum(row_size, 1 << 30).astype(np.int64))
    return Blocks(
        blocks.rows, blocks.columns, row_class, static.classes_of(column_size) if layout.sparse else None
    )


def _with_models(layout: Layout, values: np.ndarray) -> tuple[Layout, float]:
    """The layout with frequencies counted in each class, and the bits that the tensor takes by it."""
    blocks = layout.blocks
    kinds = blocks.row_classes
    counts = np.zeros((kinds, layout.most_symbols), np.int64)
    ones = np.zeros((kinds, blocks.column_classes), np.int64)
    planes = np.zeros((layout.plane_count, 256), np.int64)
    patterns = np.zeros(1 << GROUP, np.int64)
    for rows in blocks.chunks():
        rest, mask, kind = _rest(layout, values, rows)
        symbols = layout.to_symbols(rest)
        joint = symbols if kind is None else symbols + kind.astype(np.int32) * np.int32(layout.most_symbols)
        counts += np.bincount(joint, minlength=counts.size).reshape(counts.shape)
        for plane, content in enumerate(layout.to_planes(rest) if layout.numbers else ()):
            planes[plane] += np.bincount(content, minlength=256)
        if mask is not None:
            ones += blocks.sums(mask, rows)
            if blocks.columns % GROUP == 0:
                patterns += np.bincount(static.to_patterns(mask, GROUP), minlength=1 << GROUP)
    size = blocks.sizes()
    share = ones / np.maximum(size, 1)
    layout.ones = np.clip(np.rint(share * ONE), 1, ONE - 1).astype(np.int64)
    used = int(np.flatnonzero(counts.sum(axis=0)).max(initial=0)) + 1
    layout.symbols = [Histogram.of(row[:used]) for row in counts]
    fitted = [Histogram.of(row) for row in planes]
    entropies = [found.bits(row) / max(1, row.sum()) for found, row in zip(fitted, planes, strict=True)]
    layout.planes = [
        found if entropy < STORED_BITS else None for found, entropy in zip(fitted, entropies, strict=True)
    ]
    bits = sum(found.bits(row[:used]) for found, row in zip(layout.symbols, counts, strict=True))
    if layout.sparse:
        said = layout.ones / ONE
        gaps = -float((ones * np.log2(said) + (size - ones) * np.log2(1 - said)).sum())
        if patterns.any() and (together := Histogram.of(patterns)).bits(patterns) < PATTERNS_GAIN * gaps:
            layout.flags, layout.patterns, gaps = layout.flags | PATTERNS, together, together.bits(patterns)
        bits += gaps
    return layout, bits + 8 * len(_write_header(layout))


def _write_header(layout: Layout) -> bytes:
    form, blocks = layout.form, layout.blocks
    out = bytes([layout.flags]) + varint.write(layout.common)
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


def _read_header(form: Form, reader: varint.Reader) -> Layout:
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


def _encode_chunk(layout: Layout, values: np.ndarray, rows: slice) -> bytes:
    encoder = static.new_encoder()
    rest, mask, kind = _rest(layout, values, rows)
    sizes = b""
    if layout.patterns is not None and mask is not None:
        layout.patterns.encode(encoder, static.to_patterns(mask, GROUP))
    elif mask is not None:
        sizes = static.encode_mask(encoder, mask, layout.blocks, rows, layout.ones)
    symbols = layout.to_symbols(rest)
    for number, histogram in enumerate(layout.symbols):
        histogram.encode(encoder, symbols if kind is None else symbols[kind == number])
    stored = b""
    for histogram_or_none, plane in zip(
        layout.planes, layout.to_planes(rest) if layout.numbers else (), strict=True
    ):
        if histogram_or_none is None:
            stored += plane.tobytes()
        else:
            histogram_or_none.encode(encoder, plane.astype(np.int32))
    return sizes + (varint.write(rest.size) if layout.sparse else b"") + stored + to_bytes(encoder)


def _decode_chunk(layout: Layout, out: np.ndarray, part: tuple[slice, memoryview]) -> None:
    rows, content = part
    form, blocks = layout.form, layout.blocks
    reader = varint.Reader(content)
    first = rows.start * blocks.columns
    size = (rows.stop - rows.start) * blocks.columns
    if not layout.sparse:
        size = min(size, form.count - first)
    gaps = layout.sparse and layout.patterns is None
    sizes = [reader.varint() for _ in blocks.parts(rows)] if gaps else []
    count = reader.varint() if layout.sparse else size
    if count > size:
        raise ModelError("is damaged: its weights do not fit their shape; copy it again")
    stored = [
        np.frombuffer(reader.take(count), np.uint8) if found is None else None for found in layout.planes
    ]
    decoder = static.new_decoder(bytes(reader.take(reader.end - reader.at)))
    mask = static.decode_mask(decoder, sizes, blocks, rows, layout.ones) if gaps else None
    if layout.patterns is not None:
        mask = static.from_patterns(layout.patterns.decode(decoder, size // GROUP), GROUP).reshape(
            -1, blocks.columns
        )
    classes = blocks.row_class[rows]
    kind = (
        np.repeat(classes, blocks.columns if mask is None else mask.sum(axis=1))
        if blocks.row_classes > 1
        else None
    )
    if kind is not None and mask is None:
        kind = kind[:count]
    if mask is not None and int(np.count_nonzero(mask)) != count:
        raise ModelError("is damaged: its weights do not fit their shape; copy it again")
    symbols = np.empty(count, np.int32)
    for number, histogram in enumerate(layout.symbols):
        if kind is None:
            symbols = histogram.decode(decoder, count)
        else:
            chosen = np.flatnonzero(kind == number)
            symbols[chosen] = histogram.decode(decoder, chosen.size)
    planes = [
        plane if plane is not None else histogram.decode(decoder, count)  # type: ignore[union-attr]
        for plane, histogram in zip(stored, layout.planes, strict=True)
    ]
    values = layout.to_values(symbols, planes)
    if mask is not None:
        full = np.full(size, layout.common, values.dtype)
        full[mask.reshape(-1)] = values
        values = full
    elements.write(form, values[: form.count - first], out, first)
