"""A decoder of packed files in plain Python, written from docs/pack-format.md alone: it shares no code with
Lathe.
"""

import lzma
import math
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import zstandard

DICTIONARY = Path(__file__).resolve().parents[2] / "runtime" / "pack" / "dictionary-1.bin"
LN = [0] + [round(1024 * math.log(i)) for i in range(1, 65537)]
SQUASH = [min(65535, max(1, round(65536 / (1 + math.exp(-x / 1024))))) for x in range(-12288, 12289)]
WORD, STATE = 1 << 32, 1 << 64
Place = tuple[int, int, int, int]
"""Row, column, first, second."""


class Reader:
    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def take(self, size: int) -> bytes:
        self.at += size
        return self.data[self.at - size : self.at]

    def byte(self) -> int:
        return self.take(1)[0]

    def varint(self) -> int:
        value = shift = 0
        while True:
            byte = self.byte()
            value |= (byte & 127) << shift
            shift += 7
            if byte < 128:
                return value


def varint(value: int) -> bytes:
    return bytes([value]) if value < 128 else bytes([value & 127 | 128]) + varint(value >> 7)


class RangeDecoder:
    def __init__(self, data: bytes) -> None:
        data += bytes(-len(data) % 4)
        self.words = iter([int.from_bytes(data[at : at + 4], "little") for at in range(0, len(data), 4)])
        self.lower, self.range = 0, STATE - 1
        self.point = next(self.words, 0) * WORD + next(self.words, 0)

    def symbol(self, frequencies: list[int], total: int) -> int:
        size, left, below = len(frequencies), [], 0
        for place, frequency in enumerate(frequencies):
            left.append(below * ((1 << 24) - size) // total + place)
            below += frequency
        left.append(1 << 24)
        scale = self.range >> 24
        quantile = (self.point - self.lower) % STATE // scale
        found = next(place for place in range(size) if left[place] <= quantile < left[place + 1])
        self.lower = (self.lower + scale * left[found]) % STATE
        self.range = scale * (left[found + 1] - left[found])
        if self.range < WORD:
            self.lower, self.range = self.lower * WORD % STATE, self.range * WORD
            self.point = self.point * WORD % STATE + next(self.words, 0)
        return found

    def bit(self, p: int) -> int:
        return self.symbol([65536 - p, p], 65536)

    def raw(self, width: int) -> int:
        return sum(self.bit(32768) << place for place in range(width))


class Counters(dict):
    def __init__(self, zeros: int, ones: int) -> None:
        super().__init__()
        self.start = zeros, ones

    def logit(self, context: int) -> int:
        zeros, ones = self.get(context, self.start)
        return LN[ones] - LN[zeros]

    def update(self, seen: list[tuple[int, int]]) -> None:  # type: ignore[override]
        for context, bit in seen:
            zeros, ones = self.get(context, self.start)
            self[context] = (zeros, ones + 16) if bit else (zeros + 16, ones)
        for context in {context for context, _ in seen}:
            while sum(self[context]) > 60000:
                self[context] = max(1, self[context][0] // 2), max(1, self[context][1] // 2)


class Mixer:
    def __init__(self, weights: list[int], rate: int) -> None:
        self.weights, self.rate, self.slope = list(weights), rate, [0] * len(weights)

    def decode(self, coder: RangeDecoder, base: int, logits: list[int]) -> tuple[int, int]:
        """The bit, and its probability."""
        x = base + (sum(w * s for w, s in zip(self.weights, logits, strict=True)) >> 16)
        p = SQUASH[min(12288, max(-12288, x)) + 12288]
        bit = coder.bit(p)
        self.slope = [slope + s * (65536 * bit - p) for slope, s in zip(self.slope, logits, strict=True)]
        return bit, p

    def learn(self) -> None:
        moved = [w + (self.rate * slope >> 24) for w, slope in zip(self.weights, self.slope, strict=True)]
        self.weights, self.slope = [min(1 << 18, max(-(1 << 18), w)) for w in moved], [0] * len(moved)


class Form:
    def __init__(self, width: int, exponent: int, shape: list[int], flip: int = 0) -> None:
        self.width, self.exponent, self.flip = width, exponent, flip
        self.count = math.prod(shape)
        self.shape = shape if len(shape) > 1 else [1, self.count]
        self.size = (self.count * width + 7) // 8


def form_of(field: int, data_type: int, dims: list[int]) -> Form | None:
    exponents = {1: 8, 11: 11, 10: 5, 16: 8, 14: 8, 15: 11}
    widths = {
        1: 32,
        11: 64,
        10: 16,
        16: 16,
        14: 32,
        15: 64,
        21: 4,
        22: 4,
        23: 4,
        25: 2,
        26: 2,
        4: 16,
        5: 16,
        6: 32,
        12: 32,
        7: 64,
        13: 64,
    }
    widths |= dict.fromkeys((2, 3, 9, 17, 18, 19, 20, 24), 8)
    if data_type not in widths:
        return None
    shape = [*dims, 2] if data_type in (14, 15) else dims
    if field == 9:
        return Form(widths[data_type], exponents.get(data_type, 0), shape, 128 if data_type == 3 else 0)
    return Form(32, 8, shape) if field == 4 else Form(64, 11, shape)


def to_bytes(form: Form, elements: list[int]) -> bytes:
    if form.width >= 8:
        return b"".join(element.to_bytes(form.width // 8, "little") for element in elements)
    whole = sum(element << place * form.width for place, element in enumerate(elements))
    return whole.to_bytes(form.size, "little")


class Small:
    """Section 5: decodes the tensors of the stream."""

    def __init__(self, data: bytes) -> None:
        self.coder = RangeDecoder(data)
        self.shared: dict[tuple[int, bool], tuple[list[Mixer], Counters]] = {}
        self.links: dict[int, list[int]] = {}

    def tensor(self, form: Form, layout: dict[str, int]) -> list[int]:
        first, rest = form.shape[0], form.count // max(1, form.shape[0])
        order = list(range(form.count))
        if layout["orientation"] == 1:
            order = [row * rest + column for column in range(rest) for row in range(first)]
        if layout["orientation"] == 2:
            channels, spatial = form.shape[1], rest // form.shape[1]
            order = [
                (o * channels + i) * spatial + k
                for k in range(spatial)
                for i in range(channels)
                for o in range(first)
            ]
        rows, columns = (first, rest) if layout["orientation"] == 0 else (rest, first)
        places, common = list(range(form.count)), 0
        spatial = math.prod(form.shape[2:])
        if layout["sparse"]:
            common = self.coder.raw(form.width)
            mask = self.mask(rows, columns, layout, self.link(form, layout, order, columns))
            places = [place for place in range(form.count) if mask[place]]
        if len(form.shape) > 2 and spatial > 1:
            chosen = sorted(
                (order[place] for place in places),
                key=lambda element: (element % spatial, element // spatial),
            )
            second = form.shape[1]
            at = [
                (one % spatial, one // spatial, one // spatial // second, one // spatial % second)
                for one in chosen
            ]
            distance = form.shape[-1] if len(form.shape) > 3 and form.shape[-1] > 1 else 2
        else:
            chosen = [order[place] for place in places]
            at = [(place // columns, place % columns, place % columns, place // columns) for place in places]
            distance = layout["period"] or 2
        if layout["palette"]:
            size = self.coder.raw(8) + 1
            if form.exponent:
                palette = self.numbers(form, [(0, column, column, 0) for column in range(size)], 2)
            else:
                palette = [self.coder.raw(form.width) for _ in range(size)]
            values = [palette[symbol] for symbol in self.centred((size - 1).bit_length(), at, distance)]
        elif form.width <= 8:
            values = [symbol ^ form.flip for symbol in self.centred(form.width, at, distance)]
        else:
            values = self.numbers(form, at, distance)
        elements = [common] * form.count
        for element, value in zip(chosen, values, strict=True):
            elements[element] = value
        if layout["sparse"] and layout["dimensions"] > 1:
            uncommon = [element != common for element in elements]
            if layout["dimensions"] == 2:
                self.links[rest] = [count_class(sum(uncommon[column::rest])) for column in range(rest)]
            self.links[first] = [
                count_class(sum(uncommon[row * rest : (row + 1) * rest])) for row in range(first)
            ]
        return elements

    def link(
        self, form: Form, layout: dict[str, int], order: list[int], columns: int
    ) -> Callable[[int, int], int] | None:
        if not layout["link"]:
            return None
        rest = form.count // form.shape[0]
        classes, size = self.links[layout["linked"]], rest if layout["link"] == 1 else form.shape[0]
        repeat = size // layout["linked"]

        def context(row: int, column: int) -> int:
            element = order[row * columns + column]
            return classes[(element % rest if layout["link"] == 1 else element // rest) // repeat]

        return context

    def mask(
        self, rows: int, columns: int, layout: dict[str, int], link: Callable[[int, int], int] | None
    ) -> list[int]:
        density = max(1, self.coder.raw(16))
        base = LN[density] - LN[65536 - density]
        period, group = layout["period"], layout["group"]
        start = max(1, 16 * (65536 - density) // 65536), max(1, 16 * density // 65536)
        tables = [Counters(*start) for _ in range(3 + (link is not None) + (group > 0))]
        mixer = Mixer([22938] * (len(tables) + 1), 96)
        mask: list[list[int]] = []

        def seen(row: int, column: int) -> int:
            return mask[row][column] if row >= 0 else 0

        def total(row: int) -> int:
            return count_class(sum(mask[row])) if row >= 0 else 0

        for r in range(rows):
            totals = 44 * total(r - 1) + total(r - max(2, period))
            contexts = []
            for c in range(columns):
                pattern = seen(r - 1, c) + 2 * seen(r - 2, c)
                if period:
                    pattern += 4 * seen(r - period, c) + 8 * seen(r - period - 1, c)
                    pattern += 16 * seen(r - period + 1, c) + 32 * seen(r - 2 * period, c)
                found = [c, pattern, totals]
                if link is not None:
                    found.append(link(r, c))
                if group:
                    found.append(
                        r % group * group + sum(seen(r - back, c) for back in range(1, r % group + 1))
                    )
                contexts.append(found)
            order = sorted(range(columns), key=lambda c: (-tables[0].logit(c), c))
            row, trues, expected, at, length = [0] * columns, 0, 0, 0, 16
            while at < columns:
                active = LN[min(65535, 64 * trues + 64)] - LN[min(65535, expected // 1024 + 64)]
                for c in order[at : at + length]:
                    logits = [
                        table.logit(context) - base
                        for table, context in zip(tables, contexts[c], strict=True)
                    ]
                    row[c], p = mixer.decode(self.coder, base, [*logits, active])
                    trues, expected = trues + row[c], expected + p
                mixer.learn()
                at, length = at + length, 2 * length
            for number, table in enumerate(tables):
                table.update([(contexts[c][number], row[c]) for c in range(columns)])
            mask.append(row)
        return [bit for row in mask for bit in row]

    def centred(self, levels: int, at: list[Place], distance: int) -> list[int]:
        if not levels or not at:
            return [0] * len(at)
        return self.symbols(levels, self.coder.raw(levels), at, distance, False)

    def symbols(
        self, levels: int, centre: int, at: list[Place], distance: int, logarithmic: bool
    ) -> list[int]:
        if (levels, logarithmic) not in self.shared:
            mixers = [Mixer([0] + [16384] * 6, 32) for _ in range(levels)]
            self.shared[levels, logarithmic] = mixers, Counters(8, 8)
        mixers, history = self.shared[levels, logarithmic]
        tables = [*(Counters(8, 8) for _ in range(6)), history]
        sums: list[dict[int, tuple[int, int]]] = [{}, {}]
        known: dict[tuple[int, int], int] = {}
        whole, number, result = 1, 1, []
        start, limit = 0, 16
        while start < len(at):
            stop = min(start + min(32, limit), len(at))
            while stop < len(at) and at[stop][0] == at[stop - 1][0]:
                stop += 1
            batch = at[start : min(stop, start + limit)]
            average = min(65535, max(1, 64 * whole // number))
            about = []
            for row, column, first, second in batch:
                near, far = known.get((row - 1, column), 0), known.get((row - distance, column), 0)
                classes = []
                for which, index in ((1, second), (0, first)):
                    magnitude, count = sums[which].get(index, (0, 0))
                    ours = min(65535, max(1, (64 * magnitude + 2 * average) // (count + 2)))
                    apart = (ours - average) // 64 if logarithmic else (LN[ours] - LN[average]) // 192
                    classes.append(min(7, max(0, 4 + apart)))
                sides = []
                for level in (near, far):
                    if logarithmic:
                        sides.append(min(15, max(1, (64 * (level - 1) - average) // 96 + 8)) if level else 0)
                    else:
                        sign = (level > 0) - (level < 0)
                        sides.append(7 + sign * ((min(13, count_class(abs(level))) + 1) // 2))
                both = 8 * min(7, count_class(abs(near))) + min(7, count_class(abs(far)))
                about.append((0, *classes, *sides, both, 0))
            nodes = [1] * len(batch)
            for level in range(levels):
                coded = []
                for place, what in enumerate(about):
                    contexts = [
                        size * nodes[place] + own
                        for size, own in zip((1, 8, 8, 16, 16, 64, 1), what, strict=True)
                    ]
                    base = tables[0].logit(contexts[0])
                    logits = [base]
                    for table, context in zip(tables[1:], contexts[1:], strict=True):
                        unseen = table.get(context, table.start) == table.start
                        logits.append(0 if unseen else table.logit(context) - base)
                    bit, _ = mixers[level].decode(self.coder, base, logits)
                    coded.append((contexts, bit))
                    nodes[place] = 2 * nodes[place] + bit
                mixers[level].learn()
                for table_number, table in enumerate(tables):
                    table.update([(contexts[table_number], bit) for contexts, bit in coded])
            for (row, column, first, second), node in zip(batch, nodes, strict=True):
                symbol = node - (1 << levels)
                magnitude = abs(symbol - centre)
                for which, index in ((0, first), (1, second)):
                    before, count = sums[which].get(index, (0, 0))
                    sums[which][index] = before + magnitude, count + 1
                whole, number = whole + magnitude, number + 1
                away = symbol - centre + (symbol >= centre)
                known[row, column] = 2 * symbol - 1 if levels == 1 else symbol + 1 if logarithmic else away
                result.append(symbol)
            start, limit = start + len(batch), min(1024, 2 * limit)
        return result

    def numbers(self, form: Form, at: list[Place], distance: int) -> list[int]:
        mantissa = form.width - 1 - form.exponent
        lowest, span, spare = self.coder.raw(form.exponent), self.coder.raw(4), self.coder.raw(6)
        fine = min(2, mantissa - spare, 12 - span)
        tops = self.symbols(span + fine, 0, at, distance, True) if span + fine else [0] * len(at)
        signs = self.symbols(1, 0, at, distance, False)
        rests = [self.coder.raw(mantissa - fine - spare) for _ in at]
        values = []
        for top, sign, rest in zip(tops, signs, rests, strict=True):
            exponent, high = (top >> fine) + lowest, top & ((1 << fine) - 1)
            values.append(
                sign << form.width - 1 | exponent << mantissa | high << mantissa - fine | rest << spare
            )
        return values


def count_class(count: int) -> int:
    return 0 if count == 0 else 1 + (count * count).bit_length() - 1


def draw(frequencies: list[int], times: int, coder: RangeDecoder) -> Iterator[int]:
    if 65536 in frequencies:
        return iter([frequencies.index(65536)] * times)
    return iter([coder.symbol(frequencies, 65536) for _ in range(times)])


def blocks(form: Form, blob: bytes) -> list[int]:
    """Section 6."""
    outer = Reader(blob)
    size, packed = outer.varint(), outer.varint()
    header = Reader(zstandard.ZstdDecompressor().decompress(outer.take(packed), max_output_size=size))
    columns = form.count // form.shape[0] if form.given > 1 and form.shape[0] else 65536  # type: ignore[attr-defined]
    if columns == 0 or columns > 1 << 22 or columns > form.count / 16:
        columns = 65536
    rows = -(-form.count // columns)
    flags, common = header.byte(), header.varint()
    palette = []
    if flags & 1:
        palette = [int.from_bytes(header.take(form.width // 8), "little") for _ in range(header.varint())]
    numbers = form.width > 8 and not palette
    lowest, spare = (header.varint(), header.varint()) if numbers else (0, 0)
    sparse = bool(flags & 2)
    row_class = list(header.take(rows)) if flags & 4 else [0] * rows
    column_class = list(header.take(columns)) if flags & 4 and sparse else [0] * columns
    kinds, column_kinds = max(row_class) + 1, max(column_class) + 1

    def histogram() -> list[int]:
        return [header.varint() for _ in range(header.varint())]

    patterns = histogram() if flags & 8 else []
    gapped = sparse and not patterns
    densities = [[header.varint() for _ in range(column_kinds)] for _ in range(kinds)] if gapped else []

    symbols = [histogram() for _ in range(kinds)]
    mantissa = form.width - 1 - form.exponent
    planes = [histogram() for _ in range((mantissa - spare + 8) // 8)] if numbers else []
    step = max(1, (1 << 22) // columns)
    if columns % 4:
        step = max(4, step // 4 * 4)
    starts = range(0, rows, step)
    chunks = [outer.take(length) for length in [outer.varint() for _ in starts]]
    elements: list[int] = []
    for start, chunk in zip(starts, chunks, strict=True):
        of_rows = row_class[start : start + step]
        there = min(len(of_rows) * columns, form.count - start * columns)
        if sparse:
            there = len(of_rows) * columns
        inside = Reader(chunk)
        parts = [
            (kind, column_kind, places)
            for kind in range(kinds)
            for column_kind in range(column_kinds)
            if (
                places := [
                    row * columns + column
                    for row in range(len(of_rows))
                    if of_rows[row] == kind
                    for column in range(columns)
                    if column_class[column] == column_kind
                ]
            )
        ]
        counts = [inside.varint() for _ in parts] if gapped else []
        count = inside.varint() if sparse else there
        stored = [None if plane else inside.take(count) for plane in planes]
        coder = RangeDecoder(inside.take(len(chunk) - inside.at))
        uncommon = list(range(there))
        if patterns:
            found = list(draw(patterns, there // 4, coder))
            uncommon = [place for place in range(there) if found[place // 4] >> place % 4 & 1]
        if gapped:
            uncommon = []
            for (kind, column_kind, places), gaps in zip(parts, counts, strict=True):
                model, rest = [], 1 << 24
                for _ in range(255):
                    model.append(rest * densities[kind][column_kind] >> 16)
                    rest -= model[-1]
                at = -1
                for _ in range(gaps):
                    gap = coder.symbol([*model, rest], 1 << 24)
                    at += 255 if gap == 255 else gap + 1
                    if gap < 255:
                        uncommon.append(places[at])
            uncommon.sort()
        assert len(uncommon) == count

        of_values = [of_rows[place // columns] for place in uncommon]
        drawn = [draw(symbols[kind], of_values.count(kind), coder) for kind in range(kinds)]
        values = [next(drawn[kind]) for kind in of_values]
        if palette:
            values = [palette[value] for value in values]
        if numbers:
            contents = [
                kept if kept is not None else list(draw(plane, count, coder))
                for kept, plane in zip(stored, planes, strict=True)
            ]
            for number, value in enumerate(values):
                rest = sum(content[number] << 8 * place for place, content in enumerate(contents))
                high = mantissa - spare
                values[number] = (
                    (value + lowest) << mantissa
                    | (rest & (1 << high) - 1) << spare
                    | rest >> high << form.width - 1
                )
        part = [common] * there
        for place, value in zip(uncommon, values, strict=True):
            part[place] = value
        elements += part[: form.count - start * columns]
    return elements


INSIDE = {
    "model": {7: "graph", 20: "training", 25: "function"},
    "training": {1: "graph", 2: "graph"},
    "graph": {1: "node", 5: "tensor", 15: "sparse"},
    "function": {7: "node", 11: "attribute"},
    "node": {5: "attribute"},
    "attribute": {5: "tensor", 10: "tensor", 6: "graph", 11: "graph", 22: "sparse", 23: "sparse"},
    "sparse": {1: "tensor", 2: "tensor"},
}


def fields(data: bytes) -> Iterator[tuple[int, int, bytes, bytes]]:
    """Number, wire type, value and the whole field."""
    reader = Reader(data)
    while reader.at < len(data):
        start, tag = reader.at, reader.varint()
        if tag & 7 == 0:
            at = reader.at
            reader.varint()
            value = data[at : reader.at]
        else:
            value = reader.take({1: 8, 5: 4}.get(tag & 7) or reader.varint())
        yield tag >> 3, tag & 7, value, data[start : reader.at]


def walk(data: bytes, kind: str, content: Callable[[int, int, list[int]], bytes]) -> bytes:
    """The message with `content(field, element type, dims)` in place of empty data."""
    data_type, dims = 0, []
    if kind == "tensor":
        for number, _, value, _ in fields(data):
            if number == 2:
                data_type = Reader(value).varint()
            if number == 1:
                reader = Reader(value)
                while reader.at < len(value):
                    dims.append(reader.varint())
    out = b""
    for number, wire_type, value, whole in fields(data):
        plain = wire_type == 2 and len(whole) == len(varint(number << 3 | 2)) + len(varint(len(value))) + len(
            value
        )
        if kind == "tensor" and number in (4, 9, 10) and plain and not value:
            value = content(number, data_type, dims)
        elif plain and number in INSIDE.get(kind, {}):
            value = walk(value, INSIDE[kind][number], content)
        else:
            out += whole
            continue
        out += varint(number << 3 | 2) + varint(len(value)) + value
    return out


def decode(packed: bytes) -> bytes:
    """The ONNX file."""
    assert packed[:5] == b"\x89LTH\x01"
    assert zlib.crc32(packed[:-4]) == int.from_bytes(packed[-4:], "little")
    reader = Reader(packed[:-4])
    reader.take(5)
    size = reader.varint()
    coder, length = reader.byte(), reader.varint()
    head = reader.take(reader.varint())
    if coder == 1:
        known = zstandard.ZstdCompressionDict(
            DICTIONARY.read_bytes(), dict_type=zstandard.DICT_TYPE_RAWCONTENT
        )
        opened = zstandard.ZstdDecompressor(dict_data=known, format=zstandard.FORMAT_ZSTD1_MAGICLESS)
        head = opened.decompress(head, max_output_size=length)
    if coder == 2:
        head = lzma.decompress(
            head, lzma.FORMAT_RAW, filters=[{"id": lzma.FILTER_LZMA2, "dict_size": 1 << 24}]
        )
    assert len(head) == length
    inside = Reader(head)
    skeleton = inside.take(inside.varint())
    plans: list[dict] = []

    def plan(field: int, data_type: int, dims: list[int]) -> bytes:
        byte = inside.byte()
        mode, given = byte & 127, len(dims) + (data_type in (14, 15))
        form = form_of(field, data_type, dims)
        if byte & 128:
            form, given = Form(8, 0, [inside.varint()]), 1
        if mode == 0:
            form, given = Form(8, 0, [0]), 1
        assert form is not None
        form.given = given  # type: ignore[attr-defined]
        found: dict = {"mode": mode, "form": form, "blob": form.size if mode == 1 else 0}
        if mode in (2, 3, 6):
            found["blob"] = inside.varint()
        if mode == 4:
            found["source"] = inside.varint()
        if mode == 5:
            first = inside.byte()
            layout = {
                "palette": first & 1,
                "sparse": first >> 1 & 1,
                "orientation": first >> 2 & 3,
                "link": first >> 5 & 3,
            }
            layout |= {"period": 0, "group": 0, "linked": 0, "dimensions": given}
            layout["period"] = inside.varint() if first >> 7 else 0
            layout["group"] = inside.byte() if first >> 4 & 1 else 0
            layout["linked"] = inside.varint() if layout["link"] else 0
            found["layout"] = layout
        plans.append(found)
        return b""

    walk(skeleton, "model", plan)
    small = Small(reader.take(reader.varint()))
    checks = [reader.take(0 if p["mode"] == 0 else 4 if p["form"].size >= 65536 else 1) for p in plans]
    contents: list[bytes] = []
    for number, found in enumerate(plans):
        blob, form = reader.take(found["blob"]), found["form"]
        if found["mode"] == 0:
            contents.append(b"")
        elif found["mode"] == 1:
            contents.append(blob)
        elif found["mode"] == 2:
            contents.append(zstandard.ZstdDecompressor().decompress(blob, max_output_size=form.size))
        elif found["mode"] == 3:
            contents.append(
                lzma.decompress(
                    blob, lzma.FORMAT_RAW, filters=[{"id": lzma.FILTER_LZMA2, "dict_size": 1 << 23}]
                )
            )
        elif found["mode"] == 4:
            contents.append(contents[found["source"]])
        elif found["mode"] == 5:
            contents.append(to_bytes(form, small.tensor(form, found["layout"])))
        else:
            contents.append(to_bytes(form, blocks(form, blob)))
        assert zlib.crc32(contents[-1]).to_bytes(4, "little")[: len(checks[number])] == checks[number]
    following = iter(contents)
    whole = walk(skeleton, "model", lambda field, data_type, dims: next(following))
    assert len(whole) == size
    return whole
