"""Big tensors: a header with the fixed models, then chunks (runtime/pack/coders/static.py) that are coded
and decoded in parallel.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, islice

import numpy as np

from onnx_lathe.errors import ModelError
from onnx_lathe.runtime.pack.coders import elements, static, varint
from onnx_lathe.runtime.pack.coders.arithmetic import ONE, to_bytes
from onnx_lathe.runtime.pack.coders.block_header import (
    CLASSED,
    GROUP,
    MOST_SYMBOLS,
    PALETTE,
    PATTERNS,
    SPARSE,
    Layout,
    read_header,
    write_header,
)
from onnx_lathe.runtime.pack.coders.elements import Form
from onnx_lathe.runtime.pack.coders.static import Blocks, Histogram

SAMPLE, QUICK_SAMPLE = 1 << 16, 1 << 13
"""Elements that show what kind of tensor it is; the second where there is no time."""
QUICK_COLUMNS = 256
"""Of each row, at least, that show how large its numbers are, where there is no time."""
QUICK_ELEMENTS, QUICK_EVERY = 1 << 19, 8
"""Of more dense numbers, where there is no time, only every eighth piece is counted, and rows have no classes."""
PATTERNS_GAIN = 0.97
"""Gaps decode faster, so patterns must be worth it."""
SPARSE_SHARE, SPARSE_SHARE_NUMBERS = 0.25, 0.02
"""Share of the commonest value from which on it is coded apart."""
STORED_BITS, QUICK_STORED_BITS = 7.95, 7.8
"""A byte of a mantissa that takes more bits than that, its histogram included, is stored; the second where there is no
time.
"""


def encode(form: Form, content: np.ndarray, thorough: bool = True) -> list[bytes | memoryview] | None:
    """The blob of a tensor of at least one element, in parts; None if it is neither symbols, nor few distinct
    values, nor floats. Not thorough: in half the time, and up to a hundredth larger.
    """
    values = elements.read(form, content)
    layout = _survey(form, values, thorough)
    if layout is None:
        return None
    chunks = list(static.in_parallel(partial(_encode_chunk, layout, values), list(layout.blocks.chunks())))
    sizes = [varint.write(sum(map(len, parts))) for parts in chunks]
    return [write_header(layout), *sizes, *chain.from_iterable(chunks)]


def decode(form: Form, blob: memoryview, out: np.ndarray) -> None:
    """Fills `out` (uint8 [form.size_bytes]). Raises ModelError for a blob that no encoder wrote."""
    reader = varint.Reader(blob)
    layout = read_header(form, reader)
    chunks = list(layout.blocks.chunks())
    sizes = [reader.varint() for _ in chunks]
    work = [(rows, reader.take(size)) for rows, size in zip(chunks, sizes, strict=True)]
    for _ in static.in_parallel(partial(_decode_chunk, layout, out), work):
        pass


def _survey(form: Form, values: np.ndarray, thorough: bool) -> Layout | None:
    sample = values[:: max(1, values.size // (SAMPLE if thorough else QUICK_SAMPLE))]
    found, times = np.unique(sample, return_counts=True)
    common, share = int(found[times.argmax()]), float(times.max()) / sample.size
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
        plain.spare = _spare(plain, values, sample)
    stored_bits = STORED_BITS if thorough else QUICK_STORED_BITS
    coded = _coded_planes(plain, sample[sample != common] if sparse else sample, stored_bits)
    if numbers and not sparse and not thorough and form.count > QUICK_ELEMENTS:
        return _with_models(plain, _Counts.of(plain, values, coded, QUICK_EVERY), stored_bits)[0]
    classed = replace(plain, flags=flags | CLASSED, blocks=_classes(plain, values, thorough))
    counts = _Counts.of(classed, values, coded)
    if numbers:
        plain.lowest = classed.lowest = counts.take_lowest()
    fitted = [_with_models(plain, counts.together(), stored_bits), _with_models(classed, counts, stored_bits)]
    return min(fitted, key=lambda found: found[1])[0]


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


def _rest(layout: Layout, values: np.ndarray, rows: slice) -> tuple[np.ndarray, np.ndarray | None]:
    """Of a chunk: the values to be coded, flat; where they are [rows, columns], None: everywhere."""
    columns = layout.blocks.columns
    part = values[rows.start * columns : rows.stop * columns]
    if not layout.sparse:
        return part, None
    if missing := (rows.stop - rows.start) * columns - part.size:
        part = np.concatenate([part, np.full(missing, layout.common, part.dtype)])
    mask = (part != layout.common).reshape(-1, columns)
    return part[mask.reshape(-1)], mask


def _by_class(
    blocks: Blocks, symbols: np.ndarray, mask: np.ndarray | None, rows: slice
) -> Iterator[np.ndarray]:
    """The symbols of a chunk, as `_rest` has its values, that are in rows of each class."""
    classes = blocks.row_class[rows]
    if blocks.row_classes == 1:
        yield symbols
    elif mask is not None:
        kind = np.repeat(classes, mask.sum(axis=1))
        yield from (symbols[kind == number] for number in range(blocks.row_classes))
    else:
        missing = classes.size * blocks.columns - symbols.size  # at the end of the last row
        full = np.concatenate([symbols, np.zeros(missing, symbols.dtype)]) if missing else symbols
        by_row = full.reshape(-1, blocks.columns)
        for number in range(blocks.row_classes):
            found = by_row[classes == number].reshape(-1)
            yield found[: found.size - missing] if missing and classes[-1] == number else found


def _spare(layout: Layout, values: np.ndarray, sample: np.ndarray) -> int:
    """How many bits at the end of every mantissa are zero."""
    used, low = 0, (1 << layout.mantissa_bits) - 1
    if not layout.sparse:
        used = int(np.bitwise_or.reduce(sample)) & low
    for rows in layout.blocks.chunks(static.PIECE):
        if used & 1:
            return 0
        used |= int(np.bitwise_or.reduce(_rest(layout, values, rows)[0], initial=0)) & low
    return layout.mantissa_bits if used == 0 else (used & -used).bit_length() - 1


def _classes(layout: Layout, values: np.ndarray, thorough: bool) -> Blocks:
    blocks = layout.blocks
    row_size, column_size = np.zeros(blocks.rows), np.zeros(blocks.columns, np.int64)
    flip = 0 if layout.palette.size else layout.form.flip
    centre = (
        int(np.searchsorted(layout.palette, layout.common)) if layout.palette.size else layout.common ^ flip
    )
    lowest = layout.most_symbols
    step = 1 if thorough else max(1, blocks.columns // QUICK_COLUMNS)
    for rows in blocks.chunks(static.PIECE):
        rest, mask = _rest(layout, values, rows)
        if mask is not None:
            row_size[rows] = mask.sum(axis=1)
            column_size += mask.sum(axis=0)
            continue
        full = np.zeros(blocks.columns * (rows.stop - rows.start), rest.dtype)
        full[: rest.size] = rest
        symbols = layout.to_symbols(np.ascontiguousarray(full.reshape(-1, blocks.columns)[:, ::step]))
        lowest = min(lowest, int(symbols.min()))
        size = symbols if layout.numbers else np.abs((symbols ^ flip) - centre) * 64
        row_size[rows] = size.mean(axis=1)
    if layout.numbers and not layout.sparse:
        row_size = np.exp2((row_size - lowest) / 2)
    row_class = static.classes_of(np.minimum(row_size, 1 << 30).astype(np.int64))
    return Blocks(
        blocks.rows, blocks.columns, row_class, static.classes_of(column_size) if layout.sparse else None
    )


def _coded_planes(layout: Layout, sample: np.ndarray, stored_bits: float) -> list[bool]:
    """Which planes may be worth a histogram, by a sample of the values."""
    if not sample.size:
        return [False] * layout.plane_count
    counts = [np.bincount(plane, minlength=256) for plane in layout.to_planes(np.ascontiguousarray(sample))]
    return [Histogram.of(found).bits(found) < stored_bits * sample.size for found in counts]


@dataclass
class _Counts:
    """How often what comes in a tensor: symbols [row classes, symbols], values that are not common
    [row classes, column classes] and elements of these blocks, bytes of each plane that may be coded, patterns.
    """

    symbols: np.ndarray
    ones: np.ndarray
    sizes: np.ndarray
    planes: list[np.ndarray | None]
    patterns: np.ndarray

    @classmethod
    def of(cls, layout: Layout, values: np.ndarray, coded: list[bool], every: int = 1) -> "_Counts":
        """`every`: of so many pieces one is counted, and everything once more, since any may occur in the others."""
        blocks = layout.blocks
        symbols = np.full((blocks.row_classes, layout.most_symbols), int(every > 1), np.int64)
        ones = np.zeros((blocks.row_classes, blocks.column_classes), np.int64)
        planes = [np.full(256, int(every > 1), np.int64) if plane else None for plane in coded]
        patterns = np.zeros(1 << GROUP, np.int64)
        for rows in islice(blocks.chunks(static.PIECE), 0, None, every):
            rest, mask = _rest(layout, values, rows)
            for number, of_class in enumerate(_by_class(blocks, layout.to_symbols(rest), mask, rows)):
                symbols[number] += np.bincount(of_class, minlength=layout.most_symbols)
            for counts, plane in zip(planes, layout.to_planes(rest), strict=True) if any(coded) else ():
                if counts is not None:
                    counts += np.bincount(plane, minlength=256)
            if mask is not None:
                ones += blocks.sums(mask, rows)
                if blocks.columns % GROUP == 0:
                    patterns += np.bincount(static.to_patterns(mask, GROUP), minlength=1 << GROUP)
        return cls(symbols, ones, blocks.sizes(), planes, patterns)

    def take_lowest(self) -> int:
        """The lowest symbol that occurs, from which on they are counted after that."""
        lowest = int(np.flatnonzero(self.symbols.any(axis=0)).min(initial=self.symbols.shape[1] - 1))
        self.symbols = self.symbols[:, lowest:]
        return lowest

    def together(self) -> "_Counts":
        """Without regard to classes."""
        symbols, ones, sizes = (
            found.sum(keepdims=True, axis=axis)
            for found, axis in ((self.symbols, 0), (self.ones, None), (self.sizes, None))
        )
        return _Counts(symbols, ones, sizes, self.planes, self.patterns)


def _with_models(layout: Layout, counts: _Counts, stored_bits: float) -> tuple[Layout, float]:
    """The layout with the frequencies of each class, and the bits that symbols, mask and header take by it."""
    share = counts.ones / np.maximum(counts.sizes, 1)
    layout.ones = np.clip(np.rint(share * ONE), 1, ONE - 1).astype(np.int64)
    used = int(np.flatnonzero(counts.symbols.sum(axis=0)).max(initial=0)) + 1
    layout.symbols = [Histogram.of(row[:used]) for row in counts.symbols]
    layout.planes = [None if plane is None else _worth_it(plane, stored_bits) for plane in counts.planes]
    bits = sum(found.bits(row[:used]) for found, row in zip(layout.symbols, counts.symbols, strict=True))
    if layout.sparse:
        said = layout.ones / ONE
        gaps = -float((counts.ones * np.log2(said) + (counts.sizes - counts.ones) * np.log2(1 - said)).sum())
        patterns = counts.patterns
        if patterns.any() and (together := Histogram.of(patterns)).bits(patterns) < PATTERNS_GAIN * gaps:
            layout.flags, layout.patterns, gaps = layout.flags | PATTERNS, together, together.bits(patterns)
        bits += gaps
    return layout, bits + 8 * len(write_header(layout))


def _worth_it(counts: np.ndarray, stored_bits: float) -> Histogram | None:
    """The histogram of a plane; None if the plane had better be stored."""
    found = Histogram.of(counts)
    bits = found.bits(counts) + 8 * len(found.write())
    return found if bits < stored_bits * int(counts.sum()) else None


def _encode_chunk(layout: Layout, values: np.ndarray, rows: slice) -> list[bytes]:
    """The parts of a chunk."""
    encoder = static.new_encoder()
    rest, mask = _rest(layout, values, rows)
    sizes = b""
    if layout.patterns is not None and mask is not None:
        layout.patterns.encode(encoder, static.to_patterns(mask, GROUP))
    elif mask is not None:
        sizes = static.encode_mask(encoder, mask, layout.blocks, rows, layout.ones)
    if layout.blocks.row_classes == 1:
        for piece in _pieces(rest):
            layout.symbols[0].encode(encoder, layout.to_symbols(piece))
    else:
        of_classes = _by_class(layout.blocks, layout.to_symbols(rest), mask, rows)
        for histogram, symbols in zip(layout.symbols, of_classes, strict=True):
            histogram.encode(encoder, symbols)
    stored: list[bytes] = []
    for number, histogram_or_none in enumerate(layout.planes):
        for piece in _pieces(rest):
            plane = next(islice(layout.to_planes(piece), number, None))
            if histogram_or_none is None:
                stored.append(plane.tobytes())
            else:
                histogram_or_none.encode(encoder, plane.astype(np.int32))
    count = varint.write(rest.size) if layout.sparse else b""
    return [sizes + count, *stored, to_bytes(encoder)]


def _pieces(values: np.ndarray) -> Iterator[np.ndarray]:
    return (values[start : start + static.PIECE] for start in range(0, values.size, static.PIECE))


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
