"""What was decided for each tensor: how it is coded, and its data size if the shape does not say it."""

import lzma
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import zstandard

from onnx_lathe.errors import ModelError
from onnx_lathe.runtime.pack.coders import blocks, elements, small, varint
from onnx_lathe.runtime.pack.coders.adaptive import Memory
from onnx_lathe.runtime.pack.coders.arithmetic import Encoder
from onnx_lathe.runtime.pack.coders.elements import Form
from onnx_lathe.runtime.pack.coders.general import lzma_filters, lzma_quick, reach, unlzma, unzstd
from onnx_lathe.runtime.pack.wire import DOUBLE_DATA, RAW_DATA, Site

EMPTY, STORED, ZSTD, LZMA, COPY, ADAPTIVE, BLOCKS = range(7)
EXPLICIT = 128
"""Bit of a mode: the size in bytes follows, and the elements are bytes."""
MOST_ADAPTIVE = 1 << 24
"""Elements of all adaptively coded tensors of a file; a decoder refuses more."""
GENERAL_BYTES = 1 << 20
"""Data up to this size is tried with zstd and LZMA; of larger data a sample tells whether it pays."""
SAMPLE_BYTES = 1 << 18
QUICK_LEVEL, PROMISING, PROMISING_BYTES = 3, 1.06, 1 << 10
"""Of zstd where there is no time; as near to another coder as this it has found repetitions, of which its best
and LZMA may find more. Small data has too few.
"""
BLOCKS_BYTES = 1 << 9
"""Smaller data gains next to nothing by a header of its own, and is not surveyed where there is no time."""
REPEATING, REPEATING_NUMBERS = 0.95, 1 << 12
"""Share of distinct numbers, of the first so many, below which LZMA is tried."""
LZMA_BYTES = 1 << 23
Parts = list[bytes | memoryview]
"""Of a blob, in order: they are joined once, with all others."""
WHOLE_CHECK_BYTES = 1 << 16
"""Data from this size on has a CRC-32 of its own; smaller data the lowest byte of one."""


@dataclass(frozen=True)
class TensorPlan:
    """`blob`: bytes of the tensor's own in the file; `source`: number of the equal tensor before it, for
    COPY.
    """

    mode: int
    form: Form
    explicit: bool = False
    blob: int = 0
    source: int = 0
    layout: small.Layout | None = None

    def write(self) -> bytes:
        out = bytes([self.mode | (EXPLICIT if self.explicit else 0)])
        out += varint.write(self.form.size_bytes) if self.explicit else b""
        out += varint.write(self.blob) if self.mode in (ZSTD, LZMA, BLOCKS) else b""
        out += varint.write(self.source) if self.mode == COPY else b""
        return out + (self.layout.write() if self.layout else b"")

    @property
    def check_bytes(self) -> int:
        return 0 if self.mode == EMPTY else 4 if self.form.size_bytes >= WHOLE_CHECK_BYTES else 1


def form_of(site: Site) -> Form | None:
    """What the shape of a tensor says of its data; None if nothing."""
    found = elements.form_of(site.data_type, site.dims)
    if site.field == RAW_DATA or found is None:
        return found
    per_element = found.count // max(1, int(np.prod(site.dims, dtype=object)))
    width, exponent = (64, 11) if site.field == DOUBLE_DATA else (32, 8)
    return Form(found.count, width, exponent, (*site.dims, 2) if per_element == 2 else site.dims)


def read(reader: varint.Reader, site: Site, number: int, limit: int) -> TensorPlan:
    """The plan of tensor `number`. Raises ModelError for what cannot be, and for more than `limit` bytes."""
    byte = reader.byte()
    mode = byte & ~EXPLICIT
    if mode > BLOCKS:
        raise ModelError("is damaged: a tensor is coded in an unknown way; copy it again")
    if mode == EMPTY:
        return TensorPlan(EMPTY, elements.as_bytes(0))
    form = elements.as_bytes(reader.varint()) if byte & EXPLICIT else form_of(site)
    if form is None or form.size_bytes > limit:
        raise ModelError(
            f"is damaged, or a tensor of it takes more than {limit / 1e9:.3g} GB; copy it again, or raise --limit"
        )
    blob = reader.varint() if mode in (ZSTD, LZMA, BLOCKS) else form.size_bytes if mode == STORED else 0
    source = reader.varint() if mode == COPY else 0
    if mode == COPY and source >= number:
        raise ModelError("is damaged: a tensor is a copy of none; copy the file again")
    return TensorPlan(
        mode,
        form,
        bool(byte & EXPLICIT),
        blob,
        source,
        small.Layout.read(reader) if mode == ADAPTIVE else None,
    )


def choose(
    site: Site,
    content: np.ndarray,
    memory: Memory,
    encoder: Encoder,
    adaptive: bool,
    thorough: bool = True,
    progress: Callable[[float], None] = lambda share: None,
) -> tuple[TensorPlan, Parts]:
    """The plan for the data of a tensor, and the parts of its blob; what is adaptive goes into `encoder` at once.

    thorough: general compressors are tried at their best, not only where they promise much. progress: hears
    what share of the work is done.
    """
    form = form_of(site)
    explicit = form is None or not elements.fits(form, content)
    if form is None or explicit:
        form = elements.as_bytes(content.size)
    size, mode = float(content.size), STORED
    blob: Parts = []
    best = small.best(memory, form, elements.read(form, content), progress) if adaptive else None
    if best is not None and best[1] < size:
        size, mode = best[1], ADAPTIVE
    own: Parts | None = None
    if best is None and (thorough or content.size >= BLOCKS_BYTES):
        own = blocks.encode(form, content, thorough)
    if own is not None and (taken := sum(map(len, own))) < size:
        size, mode, blob = taken, BLOCKS, own
    for kind, made in _general(form, content, size) if thorough else _promising(form, content, size):
        if len(made) < size:
            size, mode, blob = len(made), kind, [made]
    if mode == ADAPTIVE and best is not None:
        small.code(encoder, memory, form, best[0], elements.read(form, content))
        return TensorPlan(ADAPTIVE, form, explicit, layout=best[0]), []
    if mode == STORED:
        blob = [content.data]
    return TensorPlan(mode, form, explicit, int(size)), blob


def _promising(form: Form, content: np.ndarray, size: float) -> list[tuple[int, bytes]]:
    """A quick look: what zstd makes of the data, or a sample of it, and all that `_general` does where that comes
    near to `size`.
    """
    if content.size < PROMISING_BYTES:
        return [(ZSTD, _zstd(content.data, QUICK_LEVEL)), (LZMA, _lzma(form, content, quick=True))]
    looked_at = content.data if content.size <= SAMPLE_BYTES else _sample(content)
    quick = _zstd(looked_at, QUICK_LEVEL)
    if len(quick) / len(looked_at) < PROMISING * size / content.size or _repeats(form, content):
        return _general(form, content, size, thorough=False)
    return []


def _repeats(form: Form, content: np.ndarray) -> bool:
    """Whether numbers occur again, as in a symmetric filter: zstd's quick look misses what is no longer than one."""
    if form.width < 32 or not form.exponent_bits or content.size > GENERAL_BYTES:
        return False
    numbers = elements.read(form, content)[:REPEATING_NUMBERS]
    return bool(np.unique(numbers).size < REPEATING * np.count_nonzero(numbers))


def _sample(content: np.ndarray) -> bytes:
    """SAMPLE_BYTES from four places."""
    step = content.size // 4
    return b"".join(content[place * step : place * step + SAMPLE_BYTES // 4].tobytes() for place in range(4))


def _general(form: Form, content: np.ndarray, size: float, thorough: bool = True) -> list[tuple[int, bytes]]:
    """What general compressors make of the data, those that may come below `size` bytes."""
    if content.size > GENERAL_BYTES:
        sample = _sample(content)
        if len(_zstd(sample, QUICK_LEVEL)) / len(sample) > 0.9 * size / content.size:
            return []
        level = 19 if content.size < 8 * GENERAL_BYTES and thorough else 6
        return [(ZSTD, _zstd(content.data, level))]
    made = _zstd(content.data, 19 if thorough else 6)
    if len(made) > 1.25 * size:
        return []
    return [
        (ZSTD, made),
        (LZMA, _lzma(form, content, quick=not thorough and content.size > SAMPLE_BYTES // 4)),
    ]


def _zstd(content: bytes | memoryview, level: int) -> bytes:
    return zstandard.ZstdCompressor(level=level, write_checksum=False).compress(content)


def _lzma(form: Form, content: np.ndarray, quick: bool) -> bytes:
    dictionary, element = reach(content.size, LZMA_BYTES), max(1, form.width // 8)
    filters = lzma_quick(dictionary, element) if quick else lzma_filters(dictionary, 6, element)
    return lzma.compress(content.data, lzma.FORMAT_RAW, filters=filters)


def decode_general(plan: TensorPlan, blob: memoryview, out: np.ndarray) -> None:
    """Fills `out` from a blob of STORED, ZSTD or LZMA."""
    size = plan.form.size_bytes
    if plan.mode == STORED:
        out[:] = np.frombuffer(blob, np.uint8)
        return
    made = unzstd(bytes(blob), size) if plan.mode == ZSTD else unlzma(bytes(blob), size, LZMA_BYTES)
    out[:] = np.frombuffer(made, np.uint8)
