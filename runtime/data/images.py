"""Data in a folder of pictures, decoded when a batch asks for them."""

import hashlib
import logging
import os
import re
import struct
import threading
import warnings
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import numpy as np
from PIL import Image, JpegImagePlugin

from onnx_lathe.errors import DataError
from onnx_lathe.runtime.data.classes import ClassNames, in_order, order_note, order_warning
from onnx_lathe.runtime.data.fitting import ONE_CALL
from onnx_lathe.runtime.data.preprocess import Feed, Preprocess, bind, channel_axis, is_float, show
from onnx_lathe.runtime.data.source import Batch, IndexedSource, fingerprint
from onnx_lathe.runtime.files.signature import InputSpec

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
_MODES: dict[int | None, str] = {1: "L", 3: "RGB", 4: "RGBA", None: "RGB"}
_COLOURED = (3, 4)
"""Channels of an input [channels, height, width], which is one picture; no batch has just so many grey ones."""
MOST_BYTES = 480_000_000
"""Of a picture as it is decoded and converted: a file of some kilobytes may ask for hundreds of millions of pixels."""
MOST_PIXELS = MOST_BYTES // 4
"""Of a picture as it is used: four bytes each."""
WEBP_BYTES = 16
"""That its decoder takes for a pixel (libwebp's canvas, the one before, a copy, and the picture)."""
_START_OF_SCAN = 0xDA
LARGE_PIXELS = 4_000_000
"""Pictures from this size on are decoded one at a time."""
MOST_THREADS = 8
_LARGE = threading.Lock()
# what it logs of a damaged file is in our one line, or nothing
logging.getLogger("PIL").addHandler(logging.NullHandler())
# What Pillow's decoders let through when a file is damaged.
_BROKEN = (
    OSError,
    ValueError,
    TypeError,
    LookupError,
    ArithmeticError,
    SyntaxError,
    EOFError,
    struct.error,
    Image.DecompressionBombError,
)


@dataclass(frozen=True)
class Framing:
    """Pillow mode, and size: the picture is resized, its shorter side to a number or all of it to (height, width),
    then the middle height x width is taken.
    """

    mode: str
    resized: int | tuple[int, int]
    height: int
    width: int
    asked: bool = True
    """Whether resize or crop says so; else the model's input does."""

    def __str__(self) -> str:
        if isinstance(self.resized, tuple):
            done = f"stretched to {self.resized[0]}x{self.resized[1]} pixels (height x width)"
            if self.resized == (self.height, self.width):
                return done + (
                    "" if self.asked else ", the model's input; resize= and crop= in --preprocess keep shapes"
                )
        else:
            done = f"resized until the shorter side has {self.resized} pixels"
        return f"{done}, then the middle {self.height}x{self.width} is taken"


class ImageSource(IndexedSource):
    """Pictures on disk, for the one input of a model."""

    def __init__(
        self,
        files: list[Path],
        labels: np.ndarray | None,
        name: str,
        framing: Framing,
        feed: Feed,
        per_call: bool = False,
    ) -> None:
        self.files, self.labels, self.per_call = files, labels, per_call
        self.name, self.framing, self.feed = name, framing, feed
        self.labelled, self.count = labels is not None, len(files)

    def read(self, rows: np.ndarray) -> Batch:
        workers = min(MOST_THREADS, os.cpu_count() or 1)
        with quiet(), ThreadPoolExecutor(workers) as pool:  # Pillow decodes outside the interpreter's lock
            pixels = np.stack(list(pool.map(lambda row: decode(self.files[row], self.framing), rows)))
        labels = None if self.labels is None else self.labels[rows]
        return Batch({self.name: self.feed(pixels)}, labels, per_call=self.per_call)

    def identities(self, rows: np.ndarray) -> np.ndarray:
        names = [os.fsencode(self.files[row].resolve()) for row in rows]
        return np.array(
            [int.from_bytes(hashlib.blake2b(name, digest_size=8).digest(), "little") for name in names],
            np.uint64,
        )


def open_images(
    folder: Path,
    inputs: Sequence[InputSpec],
    options: Preprocess,
    classes: int | None,
    given: ClassNames | None = None,
) -> ImageSource:
    """The pictures of class folders, in the order that `given` says, or of a flat one. Raises DataError if the
    model or the folder does not allow it.
    """
    if len(inputs) != 1:
        raise DataError(
            f"{folder}: a folder feeds a model with one input, this one has {len(inputs)}; use .npz or a function"
        )
    one_picture = len(inputs[0].shape) == 3 and inputs[0].shape[0] in _COLOURED
    spec = replace(inputs[0], shape=(None, *inputs[0].shape)) if one_picture else inputs[0]
    framing = _framing(folder, spec, options)
    sample = (framing.height, framing.width, len(framing.mode))[: 2 if framing.mode == "L" else 3]
    feed = bind(spec, sample, np.dtype(np.uint8), replace(options, layout="nhwc"), f"{folder}: each picture")
    try:
        names, files, labels = _scan(folder, classes, given)
        stats = [
            (file.relative_to(folder).as_posix(), file.stat().st_size, file.stat().st_mtime_ns)
            for file in files
        ]
    except OSError as error:
        raise DataError(f"{error.filename or folder}: cannot be read: {error.strerror or error}") from error
    source = ImageSource(files, labels, spec.name, framing, feed, one_picture)
    source.fingerprint = fingerprint(repr(stats).encode(), repr(names).encode(), repr(options).encode())
    source.description = (
        f"{len(files):,} pictures"
        + (f" in {len(names)} classes" if names else ", unlabelled,")
        + f" of {folder}"
    )
    source.class_names = names
    source.notes = (
        *([order_note(names)] if names else []),
        f"pictures are {framing}",
        *([ONE_CALL] if one_picture else []),
    )
    if names and (warning := order_warning(folder, names, given)):
        source.warnings = (warning,)
    with quiet():
        decode(files[0], framing)
    return source


class _Quiet:
    """How many threads read pictures, and the filter that is set as long as any does: `warnings.catch_warnings` in two
    that overlap would leave one's filters set for good.
    """

    def __init__(self) -> None:
        self.lock, self.readers = threading.Lock(), 0
        self.filter: object = None

    def enter(self) -> None:
        with self.lock:
            self.readers += 1
            warnings.filterwarnings("ignore", module=r"PIL\.")
            self.filter = warnings.filters[0]

    def leave(self) -> None:
        with self.lock, suppress(ValueError):
            self.readers -= 1
            if not self.readers:
                cast("list[object]", warnings.filters).remove(self.filter)


_QUIET = _Quiet()


@contextmanager
def quiet() -> Iterator[None]:
    """Pillow warns of what is odd in a file and of sizes; what cannot be decoded is an error, and MOST_PIXELS bounds sizes."""
    _QUIET.enter()
    try:
        yield
    finally:
        _QUIET.leave()


def decode(file: Path, framing: Framing) -> np.ndarray:
    """uint8 [height, width, channels]; without the last axis if grey. Raises DataError naming the file if
    it is broken.

    Sizes are rounded and resampled (bilinear, antialiased) as torchvision's Resize and CenterCrop do on
    Pillow images; beyond its edges a picture is black.
    """
    try:
        with _opened(file) as opened:
            if opened.mode.startswith(("I", "F")):
                raise DataError(f"{file}: has 16 or 32 bits per pixel; convert it to 8 bits")
            pixels = opened.width * opened.height
            _make_fit(file, opened, framing.mode)
            with _LARGE if pixels >= LARGE_PIXELS else nullcontext():
                picture = opened if opened.mode == framing.mode else opened.convert(framing.mode)
                return _framed(file, picture, framing)
    except _BROKEN as error:
        raise DataError(
            f"{file}: is not a picture, or is damaged ({' '.join(str(error).split())}); mend or remove it"
        ) from error


def _opened(file: Path) -> Image.Image:
    """Not decoded yet. Pillow refuses more than 179 million pixels, of a JPEG too, which may be decoded at a part of its size."""
    try:
        return Image.open(file)
    except Image.DecompressionBombError as error:
        try:
            return JpegImagePlugin.JpegImageFile(file)
        except SyntaxError:
            raise error from None


def _make_fit(file: Path, opened: Image.Image, mode: str) -> None:
    """Lets a JPEG that takes more than MOST_BYTES be decoded at a half, quarter or eighth of its width and height, which
    its blocks of 8 x 8 allow. Raises DataError for another picture of so many pixels.
    """
    (width, height), each = opened.size, _pixel_bytes(opened, mode)
    left, scales = MOST_BYTES, [1]
    if isinstance(opened, JpegImagePlugin.JpegImageFile):
        left, scales = MOST_BYTES - _coefficient_bytes(file, opened), [1, 2, 4, 8]
    for scale in scales:
        if -(-width // scale) * -(-height // scale) * each <= left:
            if scale > 1:
                opened.draft(None, (width // scale, height // scale))
            return
    advice = (
        ", or save it as a JPEG of one scan (not progressive)"
        if len(scales) > 1
        else ", or save it as a JPEG"
    )
    raise DataError(
        f"{file}: has {width * height / 1e6:,.0f} million pixels, and to decode so large a {opened.format} takes more than "
        f"{MOST_BYTES / 1e6:.0f} MB; scale it down{advice}"
    )


def _pixel_bytes(opened: Image.Image, mode: str) -> int:
    """As decoded, and once more where it has to be converted."""
    if opened.format == "WEBP":
        return WEBP_BYTES + (0 if opened.mode == mode else 4)
    stored = [1 if one in ("1", "L", "P") else 4 for one in (opened.mode, mode)]
    return stored[0] if opened.mode == mode else sum(stored)


def _coefficient_bytes(file: Path, opened: JpegImagePlugin.JpegImageFile) -> int:
    """A JPEG of several scans, as a progressive one, is kept whole while it is decoded, at any scale: two bytes for each
    value of each channel.
    """
    if "progressive" not in opened.info and _in_one_scan(file, len(opened.layer)):
        return 0
    samples = [layer[1] * layer[2] for layer in opened.layer]
    return 2 * opened.width * opened.height * sum(samples) // max(1, max(samples))


def _in_one_scan(file: Path, channels: int) -> bool:
    """Whether a JPEG's first scan has all of its channels."""
    with file.open("rb") as stream:
        stream.seek(2)
        while len(head := stream.read(4)) == 4 and head[0] == 0xFF:
            if head[1] == _START_OF_SCAN:
                return stream.read(1) == bytes([channels])
            stream.seek(max(0, int.from_bytes(head[2:], "big") - 2), os.SEEK_CUR)
    return False


def _framed(file: Path, picture: Image.Image, framing: Framing) -> np.ndarray:
    """Resized and cut. Raises DataError for a picture so long that it would be too large then."""
    width, height = picture.size
    if isinstance(framing.resized, tuple):
        height, width = framing.resized
    elif width <= height:
        width, height = framing.resized, int(framing.resized * height / width)
    else:
        width, height = int(framing.resized * width / height), framing.resized
    if width * height > MOST_PIXELS:
        raise DataError(
            f"{file}: is {picture.width}x{picture.height} pixels, too long to be resized; cut or remove it"
        )
    resized = picture.resize((width, height), Image.Resampling.BILINEAR)
    left, top = round((resized.width - framing.width) / 2), round((resized.height - framing.height) / 2)
    return np.asarray(resized.crop((left, top, left + framing.width, top + framing.height)))


def _framing(folder: Path, spec: InputSpec, options: Preprocess) -> Framing:
    """Mode and size from the graph's shape and the options. Raises DataError if the input is no picture or
    its size is not known.
    """
    shape = spec.shape
    channels: int | None = 1
    height, width = shape[1:3] if len(shape) == 3 else (None, None)
    if (axis := channel_axis(spec)) is not None:
        channels = shape[axis + 1]
        height, width = shape[2:4] if axis == 0 else shape[1:3]
    elif len(shape) != 3:
        raise DataError(
            f"{folder}: the model's input '{spec.name}' has shape {show(shape)}, which is no picture; use .npz or a function"
        )
    if channels not in _MODES:
        raise DataError(
            f"{folder}: the model's input '{spec.name}' has {channels} channels, pictures have 1, 3 or 4; use .npz or a function"
        )
    if not is_float(spec.dtype) and not np.can_cast(np.uint8, spec.dtype):
        raise DataError(
            f"{folder}: pictures are uint8, which the model's input '{spec.name}' of {spec.dtype} cannot hold; use a function"
        )
    if options.frames:
        resized = options.resize or min(options.crop or (0,))
        made = options.crop or ((resized, resized) if isinstance(resized, int) else resized)
        if height not in (None, made[0]) or width not in (None, made[1]):
            raise DataError(
                f"--preprocess makes pictures of {made[0]}x{made[1]}, but the model takes {show((height, width))}; "
                "add crop, or leave both out"
            )
        return Framing(_MODES[channels], resized, *made)
    if height is None or width is None:
        raise DataError(
            f'{folder}: the model takes pictures of any size; say which with --preprocess "resize=256 crop=224"'
        )
    return Framing(_MODES[channels], (height, width), height, width, asked=False)


def _scan(
    folder: Path, classes: int | None, given: ClassNames | None
) -> tuple[list[str], list[Path], np.ndarray | None]:
    """(class names by index, files, labels); no names and no labels for a flat folder."""
    entries = [
        entry
        for entry in sorted(folder.iterdir(), key=lambda entry: entry.name)
        if not entry.name.startswith(".")
    ]
    flat = sorted((entry for entry in entries if _is_picture(entry)), key=_natural)
    groups = {entry.name: _pictures(entry) for entry in entries if entry.is_dir()}
    if not flat and not any(groups.values()):
        raise DataError(f"{folder}: holds no pictures ({', '.join(SUFFIXES)})")
    if flat:
        if any(groups.values()):
            raise DataError(
                f"{folder}: holds pictures both beside and in subfolders; keep either class folders or a flat folder"
            )
        return [], flat, None
    if len(groups) == 1:
        raise DataError(
            f"{folder}: holds one subfolder only; for pictures without labels name {folder / next(iter(groups))}"
        )
    names = in_order(folder, groups, given)
    if classes is not None and len(names) != classes:
        raise DataError(
            f"{folder}: has {len(names)} class folders, the model has {classes} classes; labels are positions in the sorted names, "
            "so give every class its folder, an empty one if need be"
        )
    labels = np.repeat(np.arange(len(names)), [len(groups[name]) for name in names])
    return names, [file for name in names for file in groups[name]], labels


def _pictures(folder: Path) -> list[Path]:
    def refuse(error: OSError) -> None:
        raise error

    found = (
        Path(place, name)
        for place, _, names in os.walk(folder, onerror=refuse, followlinks=True)
        for name in names
    )
    return sorted((file for file in found if _is_picture(file)), key=_natural)


def _is_picture(file: Path) -> bool:
    return file.suffix.lower() in SUFFIXES and not file.name.startswith(".") and file.is_file()


def _natural(file: Path) -> list[tuple[int, str]]:
    """Sorts picture-2 before picture-10."""
    return [(int(piece), "") if piece.isdecimal() else (-1, piece) for piece in re.split(r"(\d+)", str(file))]
