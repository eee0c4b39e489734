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
from onnx_lathe.runtime.pack.coders.arithmetic import LN, Coder, Counters, Mixer

HALF = Counters.STEP // 2
_THRESHOLDS = np.array([isqrt((1 << octaves) - 1) + 1 for octaves in range(64)])
"""Least counts of the classes 1, 2, ...: rounded up powers of the square root of 2."""
NEW = [0, *[16384] * 6]
"""Weights of a symbol's contexts at the start: 0, and a quarter."""
SYMBOL_CONTEXTS = {"own": 1, "second": 8, "first": 8, "near": 16, "far": 16, "both": 64, "history": 1}
"""What a bit of a symbol depends on beside the bits before it, in the order of the mixer's inputs, with the
number of classes. First and second: the average magnitude of the symbols with the same index; near and far:
the symbols above; history: all symbols of this kind in the file.
"""
SEGMENT = 16
LONGEST = 1024
WHOLE_ROWS = 32
"""Symbols after which a batch ends with its row, so that the next row knows of it."""
RATE_SYMBOL = 32
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

    def of(self, levels: int, logarithmic: bool) -> tuple[list[Mixer], Counters]:
        """Mixers, one for each bit, and history of the symbols of this kind."""
        kind = levels, logarithmic
        if kind not in self.symbols:
            mixers = [Mixer(NEW, RATE_SYMBOL) for _ in range(levels)]
            self.symbols[kind] = mixers, Counters(1 << levels, HALF, HALF)
        return self.symbols[kind]


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


COUNT_CLASSES = 44
"""For counts up to 2^21."""


def count_class(count: np.ndarray) -> np.ndarray:
    """0 for 0, else 1 + floor(2 log2 count): two classes per octave."""
    return np.searchsorted(_THRESHOLDS, count, side="right")


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
    mixers, history = memory.of(levels, logarithmic)
    own = [
        Counters(size << levels, HALF, HALF) for name, size in SYMBOL_CONTEXTS.items() if name != "history"
    ]
    first, second = _Magnitudes(places.first, logarithmic), _Magnitudes(places.second, logarithmic)
    neighbours = _Neighbours(places, centre, levels, logarithmic)
    result = np.zeros(places.row.size, np.int64)
    for part in places.batches():
        of_first, of_second = places.first[part], places.second[part]
        near, far, both = neighbours.classes(part, first.average)
        about: dict[str, np.ndarray | int] = {
            "own": 0,
            "second": second.classes(of_second),
            "first": first.classes(of_first),
            "near": near,
            "far": far,
            "both": both,
            "history": 0,
        }
        batch = _Batch(mixers, [*own, history], about, part.stop - part.start)
        found = result[part] = batch.code(coder, levels, None if values is None else values[part])
        magnitudes = np.abs(found - centre)
        first.add(of_first, magnitudes)
        second.add(of_second, magnitudes)
        neighbours.put(part, found)
    return result


@dataclass(frozen=True)
class _Batch:
    """Symbols that are coded together: what is known `about` each, by the names of SYMBOL_CONTEXTS, goes with
    its node into one context for each of the `tables`.
    """

    mixers: list[Mixer]
    """One for each bit of a symbol."""
    tables: list[Counters]
    about: dict[str, np.ndarray | int]
    count: int

    def code(self, coder: Coder, levels: int, values: np.ndarray | None) -> np.ndarray:
        """The symbols. A symbol's node is 1 with all its bits so far behind it."""
        node = np.ones(self.count, np.int64)
        for level, mixer in zip(reversed(range(levels)), self.mixers, strict=True):
            contexts: list[np.ndarray] = [
                size * node + self.about[name] for name, size in SYMBOL_CONTEXTS.items()
            ]
            base = self.tables[0].logit(node)
            probability = mixer.probability(base, self._logits(base, contexts))
            bits = coder.bits(probability, None if values is None else (values >> level) & 1)
            mixer.learn(bits)
            for table, context in zip(self.tables, contexts, strict=True):
                table.update(context, bits)
            node = 2 * node + bits
        return node - (1 << levels)

    def _logits(self, base: np.ndarray, contexts: list[np.ndarray]) -> np.ndarray:
        """What each table says, beyond what the first says: [tables, n]."""
        logits = np.empty((len(self.tables), self.count), np.int64)
        logits[0] = base
        for number in range(1, len(self.tables)):
            logits[number] = self.tables[number].logit(contexts[number], base) - base
        return logits


class _Neighbours:
    """Levels of the symbols that are coded: 0 where there is none yet.

    row      same column
    r - d    far            d = distance: a line further up in an image or kernel
    ...
    r - 1    near
    r        the symbol
    """

    def __init__(self, places: Places, centre: int, levels: int, logarithmic: bool) -> None:
        self._places, self._centre, self._levels = places, centre, levels
        self._logarithmic = logarithmic
        self._above = max(2, places.distance)
        rows, columns = int(places.row.max(initial=0)) + 1, int(places.column.max(initial=0)) + 1
        self._seen = np.zeros((self._above + rows, columns), np.int64)

    def classes(self, part: slice, average: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Contexts near, far (sign and size of a level, below 16) and both (sizes of the two, below 64).

        `average` is that of all magnitudes, in sixty-fourths.
        """
        row, column = self._places.row[part] + self._above, self._places.column[part]
        near, far = self._seen[row - 1, column], self._seen[row - self._places.distance, column]
        near_octave, far_octave = count_class(np.abs(near)), count_class(np.abs(far))
        both = 8 * np.minimum(near_octave, 7) + np.minimum(far_octave, 7)
        if self._logarithmic:
            return _apart(near, average), _apart(far, average), both
        return _side(near, near_octave), _side(far, far_octave), both

    def put(self, part: slice, found: np.ndarray) -> None:
        row, column = self._places.row[part] + self._above, self._places.column[part]
        if self._levels == 1:
            level = 2 * found - 1
        elif self._logarithmic:
            level = found + 1
        else:
            level = np.where(found >= self._centre, found - self._centre + 1, found - self._centre)
        self._seen[row, column] = level


def _side(level: np.ndarray, octave: np.ndarray) -> np.ndarray:
    """0..14: 7 for no level, less for negative ones, more for positive ones, by two octave classes each."""
    return 7 + np.sign(level) * ((np.minimum(octave, 13) + 1) // 2)


def _apart(level: np.ndarray, average: int) -> np.ndarray:
    """1..15: how far a logarithm is from the average, 8 around it; 0 for no level."""
    return np.where(level > 0, np.minimum(np.maximum((64 * (level - 1) - average) // 96 + 8, 1), 15), 0)


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
