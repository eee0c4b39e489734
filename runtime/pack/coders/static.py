"""Coder of big tensors: a few fixed models, so that tens of millions of symbols decode in a second.

A tensor is a matrix; rows are classed by how dense or large they are, columns by how dense. What is
commonest is left out of the symbols: of each (row class, column class) block the gaps between all others
are coded, by a geometric distribution, and then their values, by a histogram per row class. Chunks of whole
rows are coded apart, and decode in parallel. docs/pack-format.md, section 6, has the layout.
"""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import Any

import constriction
import numpy as np

from onnx_lathe.errors import ModelError
from onnx_lathe.runtime.pack.coders import varint
from onnx_lathe.runtime.pack.coders.adaptive import count_class
from onnx_lathe.runtime.pack.coders.arithmetic import ONE, guarded, to_words

CHUNK = 1 << 22
"""Elements, of whole rows."""
PIECE = 1 << 16
"""Elements, of whole rows, that are surveyed at once: arrays of that size stay in a processor's cache."""
FLAT = 1 << 16
"""Columns of a tensor whose own rows are longer than a chunk."""
GAP = 255
"""Symbol for 255 values that are all the commonest one."""
CLASSES = 8
WORKERS = 2
PRECISION = 1 << 24

_STREAM = constriction.stream.queue
_MODEL = constriction.stream.model


class Blocks:
    """How the elements of a tensor lie: `rows` x `columns`, and the classes of its rows and columns
    (uint8), all 0 if not given.
    """

    def __init__(
        self,
        rows: int,
        columns: int,
        row_class: np.ndarray | None = None,
        column_class: np.ndarray | None = None,
    ) -> None:
        self.rows, self.columns = rows, columns
        self.row_class = np.zeros(rows, np.uint8) if row_class is None else row_class
        self.column_class = np.zeros(columns, np.uint8) if column_class is None else column_class
        self.row_classes = int(self.row_class.max(initial=0)) + 1
        self.column_classes = int(self.column_class.max(initial=0)) + 1
        self._columns_of = [np.flatnonzero(self.column_class == kind) for kind in range(self.column_classes)]

    def chunks(self, elements: int = CHUNK) -> Iterator[slice]:
        """Of whole rows, each of about so many elements."""
        step = max(1, elements // self.columns)
        if self.columns % 4:  # a chunk begins at a whole byte, of elements of two bits too
            step = max(4, step - step % 4)
        return (slice(start, min(self.rows, start + step)) for start in range(0, self.rows, step))

    def parts(self, rows: slice) -> Iterator[tuple[int, int, Any]]:
        """Row class, column class and index of each block of a chunk that has elements; one block is the
        chunk itself.
        """
        for row_class in range(self.row_classes):
            inside = np.flatnonzero(self.row_class[rows] == row_class)
            for column_class, columns in enumerate(self._columns_of):
                if inside.size and columns.size:
                    whole = inside.size == rows.stop - rows.start and columns.size == self.columns
                    yield row_class, column_class, slice(None) if whole else np.ix_(inside, columns)

    def sums(self, mask: np.ndarray, rows: slice) -> np.ndarray:
        """How many are true in each block: int64 [row classes, column classes]."""
        found = np.zeros((self.row_classes, self.column_classes), np.int64)
        for row_class, column_class, index in self.parts(rows):
            found[row_class, column_class] += np.count_nonzero(mask[index])
        return found

    def sizes(self) -> np.ndarray:
        return np.outer(
            np.bincount(self.row_class, minlength=self.row_classes),
            np.bincount(self.column_class, minlength=self.column_classes),
        )


def matrix(count: int, shape: Sequence[int]) -> tuple[int, int]:
    """Rows and columns that `count` elements are coded as; the last row may be filled up with the
    commonest.
    """
    columns = count // shape[0] if len(shape) > 1 and shape[0] else FLAT
    if columns == 0 or columns > CHUNK or columns * 16 > count:
        columns = FLAT
    return -(-count // columns), columns


class Histogram:
    """Frequencies of 65536 in all, at least 1 for what occurs, as a model."""

    def __init__(self, frequencies: np.ndarray) -> None:
        if frequencies.size < 1 or int(frequencies.sum()) != ONE:
            raise ModelError("is damaged: a histogram in it does not add up; copy it again")
        self.frequencies = frequencies

    @classmethod
    def of(cls, counts: np.ndarray) -> "Histogram":
        total = max(1, int(counts.sum()))
        scaled = np.where(counts > 0, np.maximum(1, counts.astype(np.int64) * ONE // total), 0)
        while (excess := int(scaled.sum()) - ONE) > 0:  # many rare symbols were rounded up
            scaled -= np.minimum(scaled - (counts > 0), -(-excess // max(1, int((scaled > 1).sum()))))
        scaled[int(counts.argmax())] -= excess
        return cls(scaled)

    @property
    def choices(self) -> int:
        """How many symbols occur; what is the only one is not coded."""
        return int(np.count_nonzero(self.frequencies))

    def encode(self, encoder: Any, symbols: np.ndarray) -> None:
        if symbols.size and self.choices > 1:
            encoder.encode(symbols, self.model)

    def decode(self, decoder: Any, count: int) -> np.ndarray:
        if self.choices == 1 or not count:
            return np.full(count, self.frequencies.argmax(), np.int32)
        return decode(decoder, self.model, count)

    @cached_property
    def model(self) -> Any:
        return _MODEL.Categorical(self.frequencies / ONE, perfect=False)

    def bits(self, counts: np.ndarray) -> float:
        there = counts > 0
        return float(-(counts[there] * np.log2(self.frequencies[there] / ONE)).sum())

    def write(self) -> bytes:
        return varint.write(self.frequencies.size) + varint.write_all(self.frequencies)

    @classmethod
    def read_or_none(cls, reader: varint.Reader, most: int) -> "Histogram | None":
        """None where the size is 0."""
        if reader.at < reader.end and reader.content[reader.at] == 0:
            reader.byte()
            return None
        return cls.read(reader, most)

    @classmethod
    def read(cls, reader: varint.Reader, most: int) -> "Histogram":
        size = reader.varint()
        if not 0 < size <= most:
            raise ModelError("is damaged: a histogram in it has no such size; copy it again")
        return cls(np.array([min(reader.varint(), ONE + 1) for _ in range(size)], np.int64))


def geometric(ones: int) -> Any:
    """Model of gaps 0..254 and of GAP, when a value differs with probability `ones` / 65536; exact in steps
    of 2^-24.
    """
    left, frequencies = PRECISION, []
    for _ in range(GAP):
        frequencies.append(left * ones >> 16)
        left -= frequencies[-1]
    return _MODEL.Categorical(np.array([*frequencies, left]) / PRECISION, perfect=False)


def classes_of(size: np.ndarray) -> np.ndarray:
    """At most eight classes of rows (or columns) by `size`, two per octave around the median; from 0 on and
    without holes.
    """
    level = count_class(size)
    middle = int(np.median(level))
    found = np.clip(level, middle - CLASSES // 2, middle + CLASSES // 2 - 1)
    return np.unique(found, return_inverse=True)[1].astype(np.uint8)


def to_gaps(mask: np.ndarray) -> np.ndarray:
    """Gaps before each true, int32, GAP for 255 false without a true; what follows the last true is not
    said. `mask` is flat.
    """
    places = np.flatnonzero(mask)
    gaps = np.diff(places, prepend=-1) - 1
    skips = gaps // GAP
    if not skips.any():
        return gaps.astype(np.int32)
    out = np.full(gaps.size + int(skips.sum()), GAP, np.int32)
    out[np.cumsum(skips + 1) - 1] = gaps % GAP
    return out


def from_gaps(gaps: np.ndarray, mask: np.ndarray) -> None:
    """Sets in `mask`, flat and false, what `to_gaps` saw. Raises ModelError past its end."""
    places = np.cumsum(np.where(gaps == GAP, GAP, gaps + 1), dtype=np.int64)[gaps != GAP] - 1
    if places.size and places[-1] >= mask.size:
        raise ModelError("is damaged: its weights do not fit their shape; copy it again")
    mask[places] = True


def to_patterns(mask: np.ndarray, group: int) -> np.ndarray:
    """int32, a bit for each of `group` neighbours, the first the lowest; `mask` has a multiple of them in a
    row.
    """
    return mask.reshape(-1, group) @ (1 << np.arange(group, dtype=np.int32))


def from_patterns(patterns: np.ndarray, group: int) -> np.ndarray:
    """The inverse, flat."""
    return (patterns[:, None] >> np.arange(group, dtype=np.int32) & 1).astype(bool).reshape(-1)


def encode_mask(encoder: Any, mask: np.ndarray, blocks: Blocks, rows: slice, ones: np.ndarray) -> bytes:
    """Codes the chunk `mask` [rows, columns]; returns how many gaps each block has, which the decoder must
    know first.
    """
    sizes = b""
    for row_class, column_class, index in blocks.parts(rows):
        gaps = to_gaps(mask[index].reshape(-1))
        sizes += varint.write(gaps.size)
        if gaps.size:
            encoder.encode(gaps, geometric(int(ones[row_class, column_class])))
    return sizes


def decode_mask(
    decoder: Any, sizes: Sequence[int], blocks: Blocks, rows: slice, ones: np.ndarray
) -> np.ndarray:
    mask = np.zeros((rows.stop - rows.start, blocks.columns), bool)
    for (row_class, column_class, index), count in zip(blocks.parts(rows), sizes, strict=True):
        block = mask[index]  # a copy, unless the block is all
        if count > 2 * block.size:
            raise ModelError("is damaged: its weights do not fit their shape; copy it again")
        if count:
            flat = block.reshape(-1)
            from_gaps(decode(decoder, geometric(int(ones[row_class, column_class])), count), flat)
            mask[index] = flat.reshape(block.shape)
    return mask


def decode(decoder: Any, model: Any, count: int) -> np.ndarray:
    """`count` symbols, int32. Raises ModelError for words that no encoder wrote."""
    return guarded(lambda: decoder.decode(model, count))


def in_parallel(work: Callable[[Any], Any], chunks: Sequence[Any]) -> Iterator[Any]:
    """Results in order. Few are under way at a time, so that memory stays small."""
    if len(chunks) == 1:
        yield work(chunks[0])
        return
    with ThreadPoolExecutor(WORKERS) as pool:
        pending = []
        for chunk in chunks:
            pending.append(pool.submit(work, chunk))
            if len(pending) > WORKERS:
                yield pending.pop(0).result()
        for future in pending:
            yield future.result()


def new_encoder() -> Any:
    return _STREAM.RangeEncoder()


def new_decoder(content: bytes) -> Any:
    return _STREAM.RangeDecoder(to_words(content))
