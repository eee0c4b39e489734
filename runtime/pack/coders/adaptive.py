"""Coder of small tensors: every decision is coded with a probability mixed from what came before it, in
this tensor and earlier ones.

Decisions are made in batches: the probabilities of a batch depend on earlier batches alone, so that NumPy
computes a batch at once and the decoder, which sees a batch only after it, computes the same. The first
batches are short, because everything is still to be learned.

The same functions encode and decode (arithmetic.Coder). docs/pack-format.md, section 5, has the numbers.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field
from math import isqrt

import numpy as np

from onnx_lathe.errors import ModelError
from onnx_lathe.runtime.pack.coders.arithmetic import LN, ONE, Coder, Counters, Mixer

HALF = Counters.STEP // 2
_THRESHOLDS = np.array([isqrt((1 << octaves) - 1) + 1 for octaves in range(64)])
"""Least counts of the classes 1, 2, ...: rounded up powers of the square root of 2."""
NEW = [0, *[16384] * 6]
"""Weights of a symbol's contexts at the start: 0, and a quarter."""
SEGMENT = 16
LONGEST = 1024
WHOLE_ROWS = 32
"""Symbols after which a batch ends with its row, so that the next row knows of it."""
RATE_SYMBOL = 32
RATE_MASK = 96
WEIGHT_MASK = 22938
FINE_BITS = 2
"""Bits of the mantissa that are coded with the exponent; the others are as good as random."""
MOST_LEVELS = 12


@dataclass
class Memory:
    """What tensors leave to later ones of the same model."""

    symbols: dict[tuple[int, bool], tuple[list[Mixer], Counters]] = field(default_factory=dict)
    """By number of levels, and whether logarithmic: mixers, and how often each node of the tree went which
    way.
    """
    links: dict[int, np.ndarray] = field(default_factory=dict)
    """By number of output channels: class of each channel's count of nonzeros, of the last sparse tensor
    that has so many.
    """


@dataclass(frozen=True)
class Places:
    """Where symbols are, in the order of coding: int64 [n] each. `row` never falls; `first` and `second`
    are what magnitudes depend on, such as output and input channel; the neighbours of a symbol are in
    its column, 1 and `distance` rows before.
    """

    row: np.ndarray
    column: np.ndarray
    first: np.ndarray
    second: np.ndarray
    distance: int = 2

    @classmethod
    def line(cls, count: int) -> "Places":
        place = np.arange(count)
        return cls(0 * place, place, place, 0 * place)

    def batches(self) -> Iterator[slice]:
        count = self.row.size
        ends = np.append(np.flatnonzero(np.diff(self.row)) + 1, count)
        start, length = 0, SEGMENT
        while start < count:
            end = int(ends[min(int(np.searchsorted(ends, start + min(WHOLE_ROWS, length))), ends.size - 1)])
            stop = min(end, start + length)
            yield slice(start, stop)
            start, length = stop, min(2 * length, LONGEST)


@dataclass(frozen=True)
class Grid:
    """A tensor as `rows` x `columns`; decisions go row by row. `period`: rows from one line of an image or
    kernel to the next, 0 for none; `group`: rows of an N:M group, 0 for none.
    """

    rows: int
    columns: int
    period: int = 0
    group: int = 0


def count_class(count: np.ndarray) -> np.ndarray:
    """0 for 0, else 1 + floor(2 log2 count): two classes per octave."""
    return np.searchsorted(_THRESHOLDS, count, side="right")


COUNT_CLASSES = 44
"""For counts up to 2^21."""


def mask(
    coder: Coder,
    grid: Grid,
    values: np.ndarray | None,
    row_link: np.ndarray | None = None,
    column_link: np.ndarray | None = None,
) -> np.ndarray:
    """Where a tensor has another value than its commonest: bool [rows, columns]. A link is int per row or
    column, below COUNT_CLASSES.
    """
    rows, columns, period = grid.rows, grid.columns, grid.period
    density = np.array([0 if values is None else np.clip(values.mean() * ONE, 1, ONE - 1)]).astype(np.uint64)
    ones = int(max(1, min(ONE - 1, int(coder.raw(16, 1, density)[0]))))
    base = int(LN[ones] - LN[ONE - ones])
    linked = row_link is not None or column_link is not None

    def counters(contexts: int) -> Counters:
        return Counters(contexts, (Counters.STEP * (ONE - ones)) >> 16, (Counters.STEP * ones) >> 16)

    by_column, by_pattern, by_total = counters(columns), counters(64), counters(COUNT_CLASSES**2)
    by_link = counters(COUNT_CLASSES)
    by_phase = counters(grid.group * grid.group)
    tables = [
        by_column,
        by_pattern,
        by_total,
        *([by_link] if linked else []),
        *([by_phase] if grid.group else []),
    ]
    mixer = Mixer([WEIGHT_MASK] * (len(tables) + 1), RATE_MASK)
    before = max(2, 2 * period)
    seen = np.zeros((before + rows, columns), np.int64)
    classes = [0] * (before + rows)
    every = np.arange(columns)
    phase = np.zeros(columns, np.int64)
    for row in range(rows):
        at = row + before
        pattern = seen[at - 1] + 2 * seen[at - 2]
        if period:
            pattern += (
                4 * seen[at - period]
                + 8 * seen[at - period - 1]
                + 16 * seen[at - period + 1]
                + 32 * seen[at - 2 * period]
            )
        near, far = classes[at - 1], classes[at - max(2, period)]
        contexts = [every, pattern, np.full(columns, near * COUNT_CLASSES + far)]
        if linked:
            contexts.append(column_link if row_link is None else np.full(columns, row_link[row]))
        if grid.group:
            phase = seen[at - row % grid.group : at].sum(axis=0)
            contexts.append(row % grid.group * grid.group + phase)
        logits = np.empty((len(tables) + 1, columns), np.int64)
        for number, (table, context) in enumerate(zip(tables, contexts, strict=True)):
            logits[number] = table.logit(context) - base
        order = np.argsort(-logits[0], kind="stable")
        found = expected = start = 0
        length = SEGMENT
        while start < columns:
            part = order[start : start + length]
            start, length = start + length, 2 * length
            # how active the row is
            logits[-1] = LN[min(65535, 64 * found + 64)] - LN[min(65535, (expected >> 10) + 64)]
            probability = mixer.probability(base, logits[:, part])
            bits = coder.bits(probability, None if values is None else values[row, part])
            mixer.learn(bits)
            seen[at, part] = bits
            found, expected = found + int(bits.sum()), expected + int(probability.sum())
        for table, context in zip(tables, contexts, strict=True):
            table.update(context, seen[at])
        classes[at] = int(count_class(np.array(found)))
    return seen[before:] != 0


def symbols(
    coder: Coder,
    memory: Memory,
    levels: int,
    centre: int,
    places: Places,
    values: np.ndarray | None,
    logarithmic: bool = False,
) -> np.ndarray:
    """Integers of `levels` bits, int64 [n]; bit by bit from the highest, each in the context of the others
    and of the neighbours.

    `logarithmic` symbols are logarithms of a magnitude; of others it is the distance from `centre`.
    """
    nodes = 1 << levels
    kind = levels, logarithmic
    if kind not in memory.symbols:
        memory.symbols[kind] = [Mixer(NEW, RATE_SYMBOL) for _ in range(levels)], Counters(nodes, HALF, HALF)
    mixers, history = memory.symbols[kind]
    sizes = (1, 8, 8, 16, 16, 64, 1)
    tables = [*(Counters(size * nodes, HALF, HALF) for size in sizes[:-1]), history]
    own = tables[0]
    first, second = _Magnitudes(places.first, logarithmic), _Magnitudes(places.second, logarithmic)
    above = max(2, places.distance)
    seen = np.zeros(
        (int(places.row.max(initial=0)) + 1 + above, int(places.column.max(initial=0)) + 1), np.int64
    )
    result = np.zeros(places.row.size, np.int64)
    for part in places.batches():
        row, column = places.row[part] + above, places.column[part]
        near, far = seen[row - 1, column], seen[row - places.distance, column]
        of_first, of_second = places.first[part], places.second[part]
        about: list[np.ndarray | int] = [
            0,
            second.classes(of_second),
            first.classes(of_first),
            *(_level_class(near, far, first)),
            0,
        ]
        node = np.ones(row.size, np.int64)
        for level in range(levels):
            contexts: list[np.ndarray] = [size * node + what for size, what in zip(sizes, about, strict=True)]
            base = own.logit(node)
            logits = np.empty((len(tables), row.size), np.int64)
            logits[0] = base
            for number in range(1, len(tables)):
                logits[number] = tables[number].logit(contexts[number], base) - base
            probability = mixers[level].probability(base, logits)
            bits = coder.bits(
                probability, None if values is None else (values[part] >> (levels - 1 - level)) & 1
            )
            mixers[level].learn(bits)
            for table, context in zip(tables, contexts, strict=True):
                table.update(context, bits)
            node = 2 * node + bits
        found = result[part] = node - nodes
        first.add(of_first, np.abs(found - centre))
        second.add(of_second, np.abs(found - centre))
        if levels == 1:
            seen[row, column] = 2 * found - 1
        else:
            seen[row, column] = (
                found + 1 if logarithmic else np.where(found >= centre, found - centre + 1, found - centre)
            )
    return result


def _level_class(
    near: np.ndarray, far: np.ndarray, sizes: "_Magnitudes"
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Contexts from two neighbours, 0 where there is none: of each sign and size (below 16), of both the
    sizes (below 64).
    """
    octaves = [count_class(np.abs(level)) for level in (near, far)]
    together = 8 * np.minimum(octaves[0], 7) + np.minimum(octaves[1], 7)
    if sizes.logarithmic:
        apart = [
            np.minimum(np.maximum((64 * (level - 1) - sizes.average) // 96 + 8, 1), 15)
            for level in (near, far)
        ]
        return np.where(near > 0, apart[0], 0), np.where(far > 0, apart[1], 0), together
    size = [(np.minimum(octave, 13) + 1) // 2 for octave in octaves]
    return 7 + np.sign(near) * size[0], 7 + np.sign(far) * size[1], together


class _Magnitudes:
    """Average magnitude per index so far, against that of all."""

    def __init__(self, index: np.ndarray, logarithmic: bool) -> None:
        size = int(index.max(initial=0)) + 1
        self._sum, self._count = np.zeros(size, np.int64), np.zeros(size, np.int64)
        self._all, self._of, self.logarithmic = 1, 1, logarithmic

    @property
    def average(self) -> int:
        """In sixty-fourths."""
        return min(65535, max(1, 64 * self._all // self._of))

    def classes(self, index: np.ndarray) -> np.ndarray:
        """0..7, 4 around the average; a class is a factor of e^(3/16), or a quarter of an octave."""
        average = self.average
        ours = np.minimum(
            np.maximum((64 * self._sum[index] + 2 * average) // (self._count[index] + 2), 1), 65535
        )
        apart = (ours - average) // 64 if self.logarithmic else (LN[ours] - LN[average]) // 192
        return np.minimum(np.maximum(apart + 4, 0), 7)

    def add(self, index: np.ndarray, magnitude: np.ndarray) -> None:
        self._sum += np.bincount(index, magnitude, self._sum.size).astype(np.int64)  # exact: far below 2^53
        self._count += np.bincount(index, minlength=self._count.size)
        self._all, self._of = self._all + int(magnitude.sum()), self._of + index.size


def numbers(
    coder: Coder, memory: Memory, width: int, exponent_bits: int, places: Places, values: np.ndarray | None
) -> np.ndarray:
    """Floating-point numbers as bit patterns, uint64 [n]: exponent with the top of the mantissa as a
    symbol, sign, the rest as it is.

    Zeros at the end of every mantissa are not coded.
    """
    mantissa_bits = width - 1 - exponent_bits
    count = places.row.size
    exponent = mantissa = sign = None
    lowest = span = spare = 0
    if values is not None:
        exponent = ((values >> np.uint64(mantissa_bits)) & np.uint64((1 << exponent_bits) - 1)).astype(
            np.int64
        )
        mantissa = values & np.uint64((1 << mantissa_bits) - 1)
        sign = (values >> np.uint64(width - 1)).astype(np.int64)
        lowest = int(exponent.min(initial=(1 << exponent_bits) - 1))
        span = int(exponent.max(initial=lowest) - lowest).bit_length()
        used = int(np.bitwise_or.reduce(mantissa, initial=0))
        spare = mantissa_bits if used == 0 else (used & -used).bit_length() - 1
    header = np.array([lowest, span, spare], np.uint64)
    lowest = int(coder.raw(exponent_bits, 1, header[:1])[0])
    span = int(coder.raw(4, 1, header[1:2])[0])
    spare = int(coder.raw(6, 1, header[2:])[0])
    fine = min(FINE_BITS, mantissa_bits - spare, MOST_LEVELS - span)
    if spare > mantissa_bits or span > exponent_bits:
        raise ModelError("is damaged: its numbers have no such form; copy it again")
    high = mantissa_bits - fine
    symbol = (
        None
        if exponent is None or mantissa is None
        else (exponent - lowest << fine) + (mantissa >> np.uint64(high)).astype(np.int64)
    )
    symbol = (
        symbols(coder, memory, span + fine, 0, places, symbol, logarithmic=True)
        if span + fine
        else np.zeros(count, np.int64)
    )
    sign = symbols(coder, memory, 1, 0, places, sign)
    rest = coder.raw(
        high - spare,
        count,
        None if mantissa is None else (mantissa & np.uint64((1 << high) - 1)) >> np.uint64(spare),
    )
    top = ((symbol >> fine) + lowest).astype(np.uint64) << np.uint64(mantissa_bits)
    middle = (symbol & ((1 << fine) - 1)).astype(np.uint64) << np.uint64(high)
    return top | middle | rest << np.uint64(spare) | sign.astype(np.uint64) << np.uint64(width - 1)
