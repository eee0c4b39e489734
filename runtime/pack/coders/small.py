"""Small tensors: how the decisions of one are laid out, and which layout is best.

A tensor is symbols (of up to 8 bits, or few distinct values) or floating-point numbers, and sparse if its
commonest value is coded apart.
"""

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from math import isqrt, prod

import numpy as np

from onnx_lathe.errors import ModelError
from onnx_lathe.runtime.pack.coders import varint
from onnx_lathe.runtime.pack.coders.adaptive import Memory, Places, count_class, numbers, symbols
from onnx_lathe.runtime.pack.coders.arithmetic import ONE, Coder, given
from onnx_lathe.runtime.pack.coders.elements import Form
from onnx_lathe.runtime.pack.coders.masks import Grid, mask

MOST_ELEMENTS = 1 << 21
MOST_ROWS = 1 << 13
PALETTE, SPARSE = 1, 2
MOST_PALETTE = 256
SPARSE_SHARE, CLEARLY_SPARSE_SHARE = 0.2, 0.7
"""Share of the commonest value from which on it may be, and must be, coded apart."""
PERIODS = 64
TRIED_IN_FULL = 1 << 17
"""Elements up to which every orientation is tried."""


@dataclass(frozen=True)
class Layout:
    """`orientation` 0: rows are the first axis; 1: columns are; 2: so too, and the axes of rows are turned,
    spatial ones first.

    `link`: 1 if the other axes, 2 if the first axis have classes from an earlier tensor's `linked`
    channels; 0 for none.
    """

    flags: int
    orientation: int = 0
    period: int = 0
    group: int = 0
    link: int = 0
    linked: int = 0

    def write(self) -> bytes:
        out = bytes(
            [
                self.flags
                | self.orientation << 2
                | (self.group > 0) << 4
                | self.link << 5
                | (self.period > 0) << 7
            ]
        )
        out += varint.write(self.period) if self.period else b""
        out += bytes([self.group]) if self.group else b""
        return out + (varint.write(self.linked) if self.link else b"")

    @classmethod
    def read(cls, reader: varint.Reader) -> "Layout":
        byte = reader.byte()
        link = byte >> 5 & 3
        period = reader.varint() if byte >> 7 else 0
        group = reader.byte() if byte >> 4 & 1 else 0
        return cls(byte & 3, byte >> 2 & 3, period, group, link, reader.varint() if link else 0)


def code(coder: Coder, memory: Memory, form: Form, layout: Layout, values: np.ndarray | None) -> np.ndarray:
    """Codes the elements of a tensor (None: decodes them), and returns them. Raises ModelError for a plan
    that does not fit the form.
    """
    if not 0 < form.count <= MOST_ELEMENTS or (layout.link and not layout.linked):
        raise ModelError("is damaged: the plan of a tensor does not fit it; copy it again")
    rows, columns, order = _orient(form, layout.orientation)
    grid = Grid(rows, columns, layout.period, layout.group)
    if (
        rows > MOST_ROWS
        or layout.period == 1
        or layout.period > rows
        or layout.group > 16
        or (form.width > 8 and not layout.flags & PALETTE and not form.exponent_bits)
    ):
        raise ModelError("is damaged: the plan of a tensor does not fit it; copy it again")
    kind = np.dtype(f"<u{max(1, form.width // 8)}")
    turned = None if values is None else values[order]
    common = there = None
    if layout.flags & SPARSE:
        found = None if turned is None else np.array([_commonest(turned)], np.uint64)
        common = coder.raw(form.width, 1, found)[0].astype(kind)
        links = _links(memory, form, layout, order)
        seen = None if turned is None else (turned != common).reshape(rows, columns)
        there = np.flatnonzero(mask(coder, grid, seen, *links).reshape(-1))
    else:
        there = np.arange(form.count)
    at, places = _places(form, layout, order, there, columns)
    rest = None if values is None else values[at]
    if layout.flags & PALETTE:
        coded = _with_palette(coder, memory, form, places, rest)
    elif form.width <= 8:
        coded = _symbols(coder, memory, form.width, form.flip, places, rest)
    else:
        coded = numbers(
            coder,
            memory,
            form.width,
            form.exponent_bits,
            places,
            None if rest is None else rest.astype(np.uint64),
        )
    result = np.empty(form.count, kind)
    if common is not None:
        result[...] = common
    result[at] = coded.astype(kind)
    if layout.flags & SPARSE:
        _remember(memory, form, result != common)
    return result


def _orient(form: Form, orientation: int) -> tuple[int, int, np.ndarray]:
    """Rows, columns, and which element each place of the grid holds, int64 [count]."""
    shape = form.shape if len(form.shape) > 1 else (1, form.count)
    index = np.arange(form.count).reshape(shape)
    first, rest = shape[0], prod(shape[1:])
    if orientation == 0:
        return first, rest, index.reshape(-1)
    if orientation == 1:
        return rest, first, index.reshape(first, rest).T.reshape(-1)
    if orientation == 2 and len(shape) > 2:
        return rest, first, index.transpose(*range(2, len(shape)), 1, 0).reshape(-1)
    raise ModelError("is damaged: the plan of a tensor does not fit it; copy it again")


def _places(
    form: Form, layout: Layout, order: np.ndarray, there: np.ndarray, columns: int
) -> tuple[np.ndarray, Places]:
    """Elements in the order of coding, and where they are. Of a kernel the positions are rows, so that
    neighbours in it are known.
    """
    at, spatial = order[there], prod(form.shape[2:])
    if len(form.shape) < 3 or spatial == 1:
        row, column = np.divmod(there, columns)
        return at, Places(row, column, column, row, layout.period or 2)
    at = at[np.argsort(at % spatial * form.count + at // spatial, kind="stable")]
    pair, position = np.divmod(at, spatial)
    first, second = np.divmod(pair, form.shape[1])
    wide = len(form.shape) > 3 and form.shape[-1] > 1
    return at, Places(position, pair, first, second, form.shape[-1] if wide else 2)


def _commonest(values: np.ndarray) -> int:
    found, counts = np.unique(values, return_counts=True)
    return int(found[counts.argmax()])


def _ordered(form: Form, values: np.ndarray) -> np.ndarray:
    """Keys in whose order floating-point numbers, or signed bytes, are in the order of their values."""
    if form.width <= 8:
        return values ^ values.dtype.type(form.flip)
    if not form.exponent_bits:
        return values
    top = values.dtype.type(1 << (form.width - 1))
    return np.where(values & top, ~values, values | top)


def _with_palette(
    coder: Coder, memory: Memory, form: Form, places: Places, values: np.ndarray | None
) -> np.ndarray:
    palette = chosen = None
    if values is not None:
        palette = np.unique(values)
        palette = palette[np.argsort(_ordered(form, palette), kind="stable")]
        rank = np.argsort(palette, kind="stable")
        chosen = rank[np.searchsorted(palette[rank], values)]
    size = int(coder.raw(8, 1, None if palette is None else np.array([max(palette.size, 1) - 1]))[0]) + 1
    if palette is not None and not palette.size:
        palette = np.zeros(1, np.uint64)
    if form.exponent_bits and form.width > 8:
        exact = None if palette is None else palette.astype(np.uint64)
        known = numbers(coder, memory, form.width, form.exponent_bits, Places.line(size), exact)
    else:
        known = coder.raw(form.width, size, palette)
    index = _symbols(coder, memory, (size - 1).bit_length(), 0, places, chosen)
    if index.size and int(index.max()) >= size:
        raise ModelError("is damaged: a symbol is not in its palette; copy it again")
    return known[index]


def _symbols(
    coder: Coder, memory: Memory, levels: int, flip: int, places: Places, values: np.ndarray | None
) -> np.ndarray:
    if levels == 0 or not places.row.size:
        return np.zeros(places.row.size, np.int64)
    ordered = None if values is None else values.astype(np.int64) ^ flip
    centre = coder.raw(levels, 1, None if ordered is None else np.array([_commonest(ordered)]))
    return symbols(coder, memory, levels, int(centre[0]), places, ordered) ^ flip


def _links(
    memory: Memory, form: Form, layout: Layout, order: np.ndarray
) -> tuple[np.ndarray | None, np.ndarray | None]:
    """Classes of the rows, or of the columns, of the grid, from an earlier tensor."""
    if not layout.link:
        return None, None
    classes = memory.links.get(layout.linked)
    first = form.shape[0] if len(form.shape) > 1 else 1
    rest = form.count // max(1, first)
    size = rest if layout.link == 1 else first
    if classes is None or size % layout.linked:
        raise ModelError("is damaged: a tensor refers to one that is not there; copy it again")
    spread = np.repeat(classes, size // layout.linked)
    if layout.link == 1:
        return (None, spread) if layout.orientation == 0 else (spread[order[::first] % rest], None)
    return (spread, None) if layout.orientation == 0 else (None, spread)


def _remember(memory: Memory, form: Form, there: np.ndarray) -> None:
    if len(form.shape) < 2:
        return
    flat = there.reshape(form.shape[0], -1)
    if len(form.shape) == 2:
        memory.links[form.shape[1]] = count_class(flat.sum(axis=0))
    memory.links[form.shape[0]] = count_class(flat.sum(axis=1))


class _Meter:
    """A coder that only counts the bits."""

    COST = -np.log2(np.arange(1, ONE + 1) / ONE)

    def __init__(self) -> None:
        self.total = 0.0

    def bits(self, probability: np.ndarray, values: np.ndarray | None) -> np.ndarray:
        bits = given(values).astype(np.int32)
        self.total += float(self.COST[np.where(bits, probability, ONE - probability) - 1].sum())
        return bits

    def raw(self, width: int, count: int, values: np.ndarray | None) -> np.ndarray:
        self.total += width * count
        return given(values).astype(np.uint64)


def best(
    memory: Memory, form: Form, values: np.ndarray, progress: Callable[[float], None] = lambda share: None
) -> tuple[Layout, float] | None:
    """The layout that codes the tensor in the fewest bytes, and how many; None if there is none.

    First the orientations are tried, then the periods in the best one.
    """
    if not 0 < form.count <= MOST_ELEMENTS:
        return None

    def cost(layout: Layout) -> float:
        meter = _Meter()
        code(meter, copy.deepcopy(memory), form, layout, values)
        return meter.total / 8 + len(layout.write())

    tried: dict[Layout, float] = {}
    candidates = list(_candidates(memory, form, values))
    for layout in candidates:
        tried[layout] = cost(layout)
        progress(len(tried) / (len(candidates) + 1))  # and coded once more
    if not tried:
        return None
    leader = min(tried, key=lambda layout: tried[layout])
    if leader.orientation:
        rows, _, order = _orient(form, leader.orientation)
        there = (values != _commonest(values))[order].reshape(rows, -1) if leader.flags & SPARSE else None
        tried |= {
            layout: cost(layout)
            for period in _periods(form, there)
            if (layout := replace(leader, period=period))
        }
    leader = min(tried, key=lambda layout: tried[layout])
    return leader, tried[leader]


def _candidates(memory: Memory, form: Form, values: np.ndarray) -> Iterator[Layout]:
    few, counts = np.unique(values, return_counts=True)
    share = counts.max() / values.size
    palette = (
        PALETTE
        if few.size <= MOST_PALETTE and (form.width > 8 or (few.size - 1).bit_length() < form.width)
        else 0
    )
    kinds = [palette, 0] if palette and form.exponent_bits else [palette]
    if form.width > 8 and not form.exponent_bits and not palette:
        return
    first = form.shape[0] if len(form.shape) > 1 else 1
    rest = form.count // max(1, first)
    turned = (
        [0]
        if len(form.shape) < 2
        else [0, 1]
        if len(form.shape) == 2 or prod(form.shape[2:]) == 1
        else [0, 1, 2]
    )
    fitting = [one for one in turned if (first if one == 0 else rest) <= MOST_ROWS]
    for flags in kinds:
        if share < CLEARLY_SPARSE_SHARE:
            for orientation in fitting if form.count <= TRIED_IN_FULL else fitting[1:2] or fitting:
                yield Layout(flags, orientation)
        if share >= SPARSE_SHARE and few.size > 1:
            there = values != few[counts.argmax()]
            for orientation in fitting:
                grid = there[_orient(form, orientation)[2]].reshape(first if orientation == 0 else rest, -1)
                link, linked = _link(memory, first, rest)
                yield Layout(flags | SPARSE, orientation, 0, _group(grid), link, linked)


def _link(memory: Memory, first: int, rest: int) -> tuple[int, int]:
    for size in sorted(memory.links, reverse=True):
        if size > 1 and rest % size == 0:
            return 1, size
    return (2, first) if first > 1 and first in memory.links else (0, 0)


def _group(there: np.ndarray) -> int:
    """4 or 8 if no group of so many rows has more than half of its places taken, in any column; else 0."""
    for size in (4, 8):
        if there.shape[0] % size == 0 and there.any():
            sums = there.reshape(-1, size, there.shape[1]).sum(axis=1)
            if sums.max() == size // 2 and (sums == size // 2).mean() > 0.5:
                return size
    return 0


def _periods(form: Form, there: np.ndarray | None) -> list[int]:
    """The size of a kernel's line or of a square image's, and the distance at which rows of a mask are most
    alike.
    """
    rows = prod(form.shape[1:])
    found = set[int]()
    if len(form.shape) > 2 and form.shape[-1] > 2 and there is not None:
        found.add(form.shape[-1])
    if len(form.shape) == 2 and isqrt(rows) ** 2 == rows:
        found.add(isqrt(rows))
    reach = min(PERIODS, rows // 4)
    if reach > 3 and there is not None:
        alike = [
            (np.count_nonzero(there[distance:] & there[:-distance]) / (rows - distance), distance)
            for distance in range(3, reach)
        ]
        found.add(max(alike)[1])
    return sorted(period for period in found if 2 < period <= rows)
