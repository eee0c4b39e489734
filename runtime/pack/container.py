"""The packed file: header, head (skeleton and plans), one stream for all small tensors, checks, blobs, and
a CRC-32 at the end.

docs/pack-format.md is the whole format, for who wants to decode it elsewhere.
"""

import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from io import BytesIO

import numpy as np

from onnx_lathe.errors import ModelError, UsageError
from onnx_lathe.runtime.pack import head, plans, wire
from onnx_lathe.runtime.pack.coders import blocks, elements, small, varint
from onnx_lathe.runtime.pack.coders.adaptive import Memory
from onnx_lathe.runtime.pack.coders.arithmetic import Decoder, Encoder
from onnx_lathe.runtime.pack.plans import TensorPlan

MAGIC = b"\x89LTH"
VERSION = 1
LIMIT_BYTES = 4_000_000_000
"""A file that would unpack to more is refused, unless the caller allows it."""
MOST_HEAD_BYTES = 1 << 31
"""protobuf's own limit: the skeleton is a message."""
FAST, BEST = EFFORTS = ("fast", "best")
Progress = Callable[[int, int], None]
"""Hears of (bytes done, bytes in all)."""
ADAPTIVE_BUDGET, ADAPTIVE_BUDGET_BIG, BIG = 1 << 21, 1 << 18, 1 << 22
"""Elements that `pack` codes adaptively, the smallest tensors first, and that of a model of more than BIG
elements: it takes some microseconds for each to find the best layout.
"""


def is_packed(content: bytes | memoryview) -> bool:
    return content[: len(MAGIC)] == MAGIC


def pack(
    content: bytes,
    elsewhere: Mapping[bytes, np.ndarray] | None = None,
    effort: str = BEST,
    progress: Progress = lambda done, total: None,
) -> bytes:
    """A packed file of the ONNX file `content`. Raises ModelError for what is not protobuf.

    `elsewhere`: uint8 arrays by the bytes that stand for them in `content` as raw_data: external data, not
    loaded. `effort`: "best" looks for the smallest file; "fast" codes no tensor adaptively, is mostly ten times
    faster and gives at most some per cent more. `progress` hears of the bytes of data that are coded, and of all.
    """
    made = pack_parts(content, elsewhere, effort, progress)
    out = b"".join(made.parts)
    made.check(out)
    return out


@dataclass(frozen=True)
class Packed:
    """A packed file in parts. `whole`: bytes of the ONNX file; `sure`: whether all of what it was made of is in it."""

    parts: plans.Parts
    whole: int
    sure: bool

    def check(self, out: bytes | memoryview) -> None:
        """Of the parts, joined: raises ModelError if the file that was packed is not in them."""
        if not self.sure or Unpacker(out, self.whole).size_bytes != self.whole:
            raise ModelError("cannot be packed without loss; save it again with onnx.save")


def pack_parts(
    content: bytes,
    elsewhere: Mapping[bytes, np.ndarray] | None,
    effort: str,
    progress: Progress,
    put_aside: Callable[[plans.Parts], plans.Parts] = lambda blob: blob,
) -> Packed:
    """As `pack`, to be joined and checked. `put_aside` gives back the parts of a blob, kept elsewhere than in memory."""
    if effort not in EFFORTS:
        raise UsageError(f"effort is {' or '.join(EFFORTS)}, not '{effort}'")
    elsewhere = elsewhere or {}
    skeleton, found = wire.split(content, lambda data: data.nbytes >= wire.CUT_BYTES)
    data = [elsewhere.get(bytes(piece)) if piece.nbytes < 64 else None for _, piece in found]
    arrays = [
        np.frombuffer(piece, np.uint8) if own is None else own
        for own, (_, piece) in zip(data, found, strict=True)
    ]
    forms = [(plans.form_of(site), array) for array, (site, _) in zip(arrays, found, strict=True)]
    counts = [
        array.size if form is None or not elements.fits(form, array) else form.count for form, array in forms
    ]
    adaptive = _within_budget(counts) if effort == BEST else [False] * len(counts)
    memory, encoder = Memory(), Encoder()
    chosen: list[TensorPlan] = []
    blobs: plans.Parts = []
    checks = b""
    known: dict[tuple[int, int], int] = {}
    ticker = _Ticker(sum(array.size for array in arrays), progress)
    for number, ((site, _), array) in enumerate(zip(found, arrays, strict=True)):
        check = zlib.crc32(array.data)
        plan, blob = _plan(
            number,
            site,
            array,
            arrays,
            known.setdefault((check, array.size), number),
            memory,
            encoder,
            adaptive[number],
            effort == BEST,
            ticker.of(array.size),
        )
        ticker.done(array.size)
        checks += check.to_bytes(4, "little")[: plan.check_bytes]
        chosen.append(plan)
        blobs.extend(put_aside(blob))
    stream = encoder.finish()
    whole = wire.size_of(wire.layout(skeleton, [array.size for array in arrays]))
    inside = varint.write(len(skeleton)) + skeleton + b"".join(plan.write() for plan in chosen)
    parts = _file(whole, inside, effort, [varint.write(len(stream)), stream, checks, *blobs])
    return Packed(parts, whole, bool(elsewhere) or whole == len(content))


def _file(whole: int, inside: bytes, effort: str, parts: plans.Parts) -> plans.Parts:
    """The packed file of a model of `whole` bytes: its head, of what is `inside`, then the parts and the check."""
    coder, packed = head.compress(inside, effort == BEST)
    sizes = [varint.write(whole), bytes([coder]), varint.write(len(inside)), varint.write(len(packed))]
    parts = [MAGIC, bytes([VERSION]), *sizes, packed, *parts]
    check = 0
    for part in parts:
        check = zlib.crc32(part, check)
    return [*parts, check.to_bytes(4, "little")]


def _plan(
    number: int,
    site: wire.Site,
    array: np.ndarray,
    arrays: list[np.ndarray],
    same: int,
    memory: Memory,
    encoder: Encoder,
    adaptive: bool,
    thorough: bool,
    progress: Callable[[float], None],
) -> tuple[TensorPlan, plans.Parts]:
    form = plans.form_of(site)
    if not array.size:
        return TensorPlan(plans.EMPTY, elements.as_bytes(0)), []
    if same < number and np.array_equal(arrays[same], array):
        explicit = form is None or form.size_bytes != array.size
        return TensorPlan(
            plans.COPY,
            elements.as_bytes(array.size) if form is None or explicit else form,
            explicit,
            source=same,
        ), []
    return plans.choose(site, array, memory, encoder, adaptive, thorough, progress)


class _Ticker:
    """Bytes of tensors that are coded, of all."""

    def __init__(self, total: int, progress: Progress) -> None:
        self.total, self.progress, self.before = total, progress, 0

    def of(self, size: int) -> Callable[[float], None]:
        """For one tensor of so many bytes: hears what share of it is done."""
        return lambda share: self.progress(self.before + int(share * size), self.total)

    def done(self, size: int) -> None:
        self.before += size
        self.progress(self.before, self.total)


def _within_budget(counts: list[int]) -> list[bool]:
    chosen, left = [False] * len(counts), ADAPTIVE_BUDGET if sum(counts) <= BIG else ADAPTIVE_BUDGET_BIG
    for number in sorted(range(len(counts)), key=lambda number: counts[number]):
        if counts[number] <= min(left, small.MOST_ELEMENTS):
            chosen[number], left = True, left - counts[number]
    return chosen


class Unpacker:
    """An opened packed file. Opening checks the file and every size, and decodes the head; tensors are
    decoded one after the other.
    """

    def __init__(self, content: bytes | memoryview, limit_bytes: int = LIMIT_BYTES) -> None:
        """Raises ModelError: not packed, another version, damaged, or more than `limit_bytes` unpacked."""
        if not is_packed(content):
            raise ModelError("is not a packed file")
        if len(content) < 12:
            raise ModelError("is truncated; copy it again")
        if content[4] != VERSION:
            raise ModelError(
                f"is of version {content[4]} of the packed format, and this Lathe knows version {VERSION}; update Lathe"
            )
        if zlib.crc32(memoryview(content)[:-4]) != int.from_bytes(content[-4:], "little"):
            raise ModelError("is damaged or truncated: its checksum does not match; copy it again")
        reader = varint.Reader(content, 5, len(content) - 4)
        self.size_bytes = reader.varint()
        if self.size_bytes > limit_bytes:
            raise ModelError(
                f"unpacks to {self.size_bytes / 1e9:.3g} GB, more than the {limit_bytes / 1e9:.3g} GB allowed here; "
                "unpack it to a file: optimize unpack FILE --limit GB"
            )
        coder, size = reader.byte(), reader.varint()
        if size > min(5 * self.size_bytes, MOST_HEAD_BYTES) + 64:
            raise ModelError("is damaged: its head is larger than itself; copy it again")
        packed = bytes(reader.take(reader.varint()))
        if size > head.most_bytes(len(packed)):
            raise ModelError(
                f"is damaged or made to fill memory: its head unpacks to {size / 1e6:.3g} MB, {size // max(1, len(packed)):,} "
                "times what it takes; copy it again"
            )
        inside = varint.Reader(head.decompress(coder, packed, size))
        self.skeleton = bytes(inside.take(inside.varint()))
        self.sites = wire.sites(self.skeleton)
        self.plans = [plans.read(inside, site, number, limit_bytes) for number, site in enumerate(self.sites)]
        self._check_sizes()
        self._stream = Decoder(bytes(reader.take(reader.varint())))
        self._checks = [bytes(reader.take(plan.check_bytes)) for plan in self.plans]
        self._blobs = [reader.take(plan.blob) for plan in self.plans]
        if reader.at != reader.end or inside.at != inside.end:
            raise ModelError("is damaged: it is longer than its parts; copy it again")
        self._memory = Memory()
        self._kept: dict[int, np.ndarray] = {}
        self._sources = {plan.source for plan in self.plans if plan.mode == plans.COPY}

    @property
    def sizes(self) -> list[int]:
        """Bytes of the data of each tensor."""
        return [plan.form.size_bytes for plan in self.plans]

    def _check_sizes(self) -> None:
        if wire.size_of(wire.layout(self.skeleton, self.sizes)) != self.size_bytes:
            raise ModelError("is damaged: its tensors do not have the size that it says; copy it again")
        if sum(plan.form.count for plan in self.plans if plan.mode == plans.ADAPTIVE) > plans.MOST_ADAPTIVE:
            raise ModelError("is damaged: it has more small tensors than may be; copy it again")
        for plan in self.plans:
            if plan.mode == plans.COPY and self.plans[plan.source].form.size_bytes != plan.form.size_bytes:
                raise ModelError("is damaged: a tensor is a copy of one of another size; copy the file again")

    def decode(self, number: int, out: np.ndarray) -> None:
        """Fills `out`, uint8 [size of tensor `number`]. Tensors are asked for in order, each once. Raises
        ModelError for damage.
        """
        plan, blob = self.plans[number], self._blobs[number]
        if plan.mode == plans.COPY:
            out[:] = self._kept[plan.source]
        elif plan.mode == plans.ADAPTIVE and plan.layout is not None:
            elements.write(
                plan.form, small.code(self._stream, self._memory, plan.form, plan.layout, None), out
            )
        elif plan.mode == plans.BLOCKS:
            blocks.decode(plan.form, blob, out)
        elif plan.mode != plans.EMPTY:
            plans.decode_general(plan, blob, out)
        if zlib.crc32(out.data).to_bytes(4, "little")[: plan.check_bytes] != self._checks[number]:
            raise ModelError("is damaged: the checksum of a tensor does not match; copy it again")
        if number in self._sources:
            self._kept[number] = out

    def whole(self) -> bytes:
        """The ONNX file."""
        if not self.size_bytes:
            return b""
        buffer = BytesIO()
        buffer.seek(self.size_bytes - 1)
        buffer.write(b"\0")  # then the buffer is filled in place, and handed out without a copy
        with buffer.getbuffer() as view:
            self._fill(view)
            self._kept.clear()
        return buffer.getvalue()

    def _fill(self, view: memoryview) -> None:
        at = number = 0
        for piece in wire.layout(self.skeleton, self.sizes):
            if isinstance(piece, wire.Gap):
                self.decode(number, np.frombuffer(view[at : at + piece.nbytes], np.uint8))
                number, at = number + 1, at + piece.nbytes
            else:
                view[at : at + len(piece)] = piece
                at += len(piece)


def unpack(content: bytes, limit_bytes: int = LIMIT_BYTES) -> bytes:
    """The ONNX file in a packed file. Raises ModelError as Unpacker does."""
    return Unpacker(content, limit_bytes).whole()
