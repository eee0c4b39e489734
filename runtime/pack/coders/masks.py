"""Coder of masks: where a sparse tensor has another value than its commonest, row by row of its grid.

The contexts of a decision are its column, its neighbours above, how full the rows above are, and what an
earlier tensor knew of the same channel. docs/pack-format.md, section 5.6, has the numbers.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from onnx_lathe.runtime.pack.coders.adaptive import COUNT_CLASSES, SEGMENT, count_class
from onnx_lathe.runtime.pack.coders.arithmetic import LN, ONE, Coder, Counters, Mixer

RATE = 96
WEIGHT = 22938
"""Of each input of the mixer at the start, of 65536."""
PATTERNS = 64
"""Of six neighbours, each a power of 2."""


@dataclass(frozen=True)
class Grid:
    """A tensor as `rows` x `columns`; decisions go row by row. `period`: rows from one line of an image or
    kernel to the next, 0 for none; `group`: rows of an N:M group, 0 for none.
    """

    rows: int
    columns: int
    period: int = 0
    group: int = 0


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
    share = _share(coder, values)
    base = int(LN[share] - LN[ONE - share])
    rows = _Rows(grid, row_link, column_link)
    tables = [
        Counters(size, (Counters.STEP * (ONE - share)) >> 16, (Counters.STEP * share) >> 16)
        for size in rows.sizes().values()
    ]
    mixer = Mixer([WEIGHT] * (len(tables) + 1), RATE)
    for row in range(grid.rows):
        contexts = list(rows.contexts(row).values())
        logits = np.empty((len(tables) + 1, grid.columns), np.int64)
        for number, (table, context) in enumerate(zip(tables, contexts, strict=True)):
            logits[number] = table.logit(context) - base
        bits = _code_row(coder, mixer, base, logits, None if values is None else values[row])
        for table, context in zip(tables, contexts, strict=True):
            table.update(context, bits)
        rows.put(row, bits)
    return rows.mask()


def _share(coder: Coder, values: np.ndarray | None) -> int:
    """Share of true places, of 65536, which is coded first."""
    share = np.array([0 if values is None else np.clip(values.mean() * ONE, 1, ONE - 1)]).astype(np.uint64)
    return int(max(1, min(ONE - 1, int(coder.raw(16, 1, share)[0]))))


def _code_row(
    coder: Coder, mixer: Mixer, base: int, logits: np.ndarray, values: np.ndarray | None
) -> np.ndarray:
    """The bits of a row. Columns that were true most often come first, so that the activity is known early.

    `logits` [tables + 1, columns] has what each table says of a column, beyond `base`; the last is the
    activity: how many of the row's bits were true so far against how many were expected to be.
    """
    bits = np.empty(logits.shape[1], np.int64)
    order = np.argsort(-logits[0], kind="stable")
    found = expected = 0
    for segment in _segments(order.size):
        part = order[segment]
        logits[-1] = LN[min(65535, 64 * found + 64)] - LN[min(65535, (expected >> 10) + 64)]
        probability = mixer.probability(base, logits[:, part])
        coded = bits[part] = coder.bits(probability, None if values is None else values[part])
        mixer.learn(coded)
        found, expected = found + int(coded.sum()), expected + int(probability.sum())
    return bits


def _segments(columns: int) -> Iterator[slice]:
    """Slices of 16, 32, 64, ... columns."""
    start, length = 0, SEGMENT
    while start < columns:
        yield slice(start, start + length)
        start, length = start + length, 2 * length


class _Rows:
    """The rows that are coded, zeros above the first, and the contexts that they give the next."""

    def __init__(self, grid: Grid, row_link: np.ndarray | None, column_link: np.ndarray | None) -> None:
        self._grid, self._row_link, self._column_link = grid, row_link, column_link
        self._linked = row_link is not None or column_link is not None
        self._above = max(2, 2 * grid.period)
        self._seen = np.zeros((self._above + grid.rows, grid.columns), np.int64)
        self._classes = [0] * (self._above + grid.rows)
        self._every_column = np.arange(grid.columns)

    def sizes(self) -> dict[str, int]:
        """How many contexts there are of each kind, by the names and in the order of `contexts`."""
        sizes = {"column": self._grid.columns, "pattern": PATTERNS, "totals": COUNT_CLASSES**2}
        if self._linked:
            sizes["link"] = COUNT_CLASSES
        if self._grid.group:
            sizes["group"] = self._grid.group**2
        return sizes

    def contexts(self, row: int) -> dict[str, np.ndarray]:
        """Each context of the row's places, int64 [columns]."""
        columns = self._grid.columns
        contexts = {
            "column": self._every_column,
            "pattern": self._pattern(row),
            "totals": np.full(columns, self._totals(row)),
        }
        if self._row_link is not None:
            contexts["link"] = np.full(columns, self._row_link[row])
        elif self._column_link is not None:
            contexts["link"] = self._column_link
        if self._grid.group:
            contexts["group"] = self._in_group(row)
        return contexts

    def put(self, row: int, bits: np.ndarray) -> None:
        self._seen[row + self._above] = bits
        self._classes[row + self._above] = int(count_class(bits.sum()))

    def mask(self) -> np.ndarray:
        return self._seen[self._above :] != 0

    def _pattern(self, row: int) -> np.ndarray:
        """Which neighbours in the same column are true, each with its number:

                            32  r - 2P
             8  r - P - 1    4  r - P     16  r - P + 1
             2  r - 2        1  r - 1         r            <- the place

        Rows are drawn as the positions of an image P wide (`period`). Without a period there are only r - 1
        and r - 2.
        """
        at, seen, period = row + self._above, self._seen, self._grid.period
        pattern: np.ndarray = seen[at - 1] + 2 * seen[at - 2]
        if period:
            line = 4 * seen[at - period] + 8 * seen[at - period - 1] + 16 * seen[at - period + 1]
            pattern += line + 32 * seen[at - 2 * period]
        return pattern

    def _totals(self, row: int) -> int:
        """How full two rows are: the one above, and the one a period above or, without a period, two."""
        at = row + self._above
        return self._classes[at - 1] * COUNT_CLASSES + self._classes[at - max(2, self._grid.period)]

    def _in_group(self, row: int) -> np.ndarray:
        """The row's place in its N:M group, and how many of the group's rows above are true."""
        at, place = row + self._above, row % self._grid.group
        in_column: np.ndarray = self._seen[at - place : at].sum(axis=0)
        return place * self._grid.group + in_column
