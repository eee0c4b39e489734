"""Data in a .npz archive: one array per input of the model, kept as stored and preprocessed batch by batch."""

import hashlib
import math
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from onnx_lathe.errors import DataError, first_few, nearest
from onnx_lathe.runtime.data.fitting import Fit, feed, fit
from onnx_lathe.runtime.data.preprocess import Feed, Preprocess, is_float
from onnx_lathe.runtime.data.source import Batch, IndexedSource, check_labels, check_values, fingerprint
from onnx_lathe.runtime.data.truth import Truth, content, read_truth
from onnx_lathe.runtime.files.signature import InputSpec

LABELS = "labels"
LABEL_WORDS = ("y", "gt", "truth", "class", "classes", "target", "targets", "category", "categories", "lbl")
"""What others call labels, perhaps with an underscore and more behind it."""
SPARE_BYTES, MOST_PACKED = 250_000_000, 20
"""Arrays of more bytes than these are refused where they are so many times their archive; pictures of digits are 5 times."""
IN_MEMORY = "arrays in memory"
_HEADER_READERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}


@dataclass(frozen=True)
class Header:
    """What the archive says of an array before its data is read."""

    shape: tuple[int, ...]
    dtype: np.dtype
    checksum: int

    @property
    def size_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize


class ArraySource(IndexedSource):
    """Arrays [N, ...] in memory, one per input."""

    def __init__(
        self,
        arrays: dict[str, np.ndarray],
        labels: np.ndarray | None,
        feeds: dict[str, Feed],
        fitted: Fit,
        truth: Sequence[Any] | None = None,
    ) -> None:
        self.arrays = {name: fitted.samples(name, array) for name, array in arrays.items()}
        self.labels, self.feeds, self.per_call = labels, feeds, fitted.per_call
        self.labelled, self.count, self.truth = labels is not None, fitted.count, truth

    def read(self, rows: np.ndarray) -> Batch:
        inputs = {name: self.feeds[name](array[rows]) for name, array in self.arrays.items()}
        labels = None if self.labels is None else self.labels[rows]
        truth = None if self.truth is None else [self.truth[row] for row in rows]
        return Batch(inputs, labels, per_call=self.per_call, truth=truth)

    def identities(self, rows: np.ndarray) -> np.ndarray:
        def identity(row: int) -> int:
            content = b"".join(array[row].tobytes() for array in self.arrays.values())
            return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little")

        return np.array([identity(row) for row in rows], np.uint64)


def open_arrays(
    path: Path,
    part: str | None,
    inputs: Sequence[InputSpec],
    options: Preprocess,
    classes: int | None,
    truth: Truth = Truth.CLASSES,
    fixed: frozenset[str] = frozenset(),
) -> ArraySource:
    """The arrays of the archive, or of one part of it, but for those of the inputs `fixed`. Raises DataError naming
    file and array.
    """
    with _opened(path) as archive:
        names = {name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")}
        prefix = _prefix(path, part, names, inputs)
        held = sorted(name for name in fixed if prefix + name in names)
        names -= {prefix + name for name in held}
        wanted = [spec.name for spec in inputs]
        labelled = prefix + LABELS in names and LABELS not in wanted
        headers = {
            name: _header(path, archive, prefix + name) for name in [*wanted, *([LABELS] if labelled else [])]
        }
        _feeds(path, prefix, headers, inputs, options)  # refuses before anything large is read
        _check_packing(path, headers)
        arrays = {name: _read(path, archive, prefix + name) for name in headers}
        source = _made(path, prefix, headers, arrays, inputs, options, classes, truth)
        source.description += f" of {path}" + (f":{part}" if part else "")
        source.notes = (*source.notes, *not_read(held))
        unused = sorted(
            {name.removeprefix(prefix) for name in names if name.startswith(prefix)} - headers.keys()
        )
        if unused and not labelled:
            source.description += f" (arrays not used: {first_few(unused, 8)})"
            shapes = {name: _shape(archive, prefix + name) for name in unused}
            source.warnings = _misnamed(path, prefix, shapes, source.count)
    return source


def _check_packing(path: Path, headers: Mapping[str, Header]) -> None:
    """Raises DataError for an archive of some kilobytes whose arrays would fill the memory."""
    size, needed = path.stat().st_size, sum(header.size_bytes for header in headers.values())
    if needed > SPARE_BYTES and needed > MOST_PACKED * size:
        raise DataError(
            f"{path}: its arrays take {needed / 1e9:.3g} GB, {needed / size:,.0f} times the archive; "
            "if they are what they should be, store them with np.savez, which packs nothing"
        )


def not_read(names: Sequence[str]) -> list[str]:
    """What is to be said of arrays of these names, whose inputs are constants."""
    return [f"array '{name}' is not read: the model has this input as a constant" for name in names]


def _shape(archive: zipfile.ZipFile, name: str) -> tuple[int, ...]:
    """Of an array that nobody reads: () if its header cannot be read."""
    try:
        with archive.open(f"{name}.npy") as stream:
            shape: tuple[int, ...] = _HEADER_READERS[np.lib.format.read_magic(stream)](stream)[0]
            return shape
    except (OSError, ValueError, KeyError, EOFError, RuntimeError, NotImplementedError, zlib.error):
        return ()


def _misnamed(path: Path, prefix: str, shapes: Mapping[str, tuple[int, ...]], count: int) -> tuple[str, ...]:
    """A warning for an unused array that may be the labels under another name: the name says so, or nothing else
    is there with one number per sample.
    """
    words = {name: name.lower().split("_")[0] for name in shapes}
    named = [name for name in shapes if words[name] in LABEL_WORDS or nearest(words[name], [LABELS])]
    shaped = [name for name, shape in shapes.items() if shape in ((count,), (count, 1))]
    likely = sorted(named, key=lambda name: name not in shaped) or (shaped if len(shaped) == 1 else [])
    if not likely:
        return ()
    return (
        f"{path}: array '{prefix + likely[0]}' is not used, so the data is unlabelled; "
        f"name it '{prefix + LABELS}' if it holds the class numbers",
    )


def arrays_in_memory(
    given: Mapping[str, Any],
    inputs: Sequence[InputSpec],
    options: Preprocess,
    classes: int | None,
    truth: Truth = Truth.CLASSES,
) -> ArraySource:
    """Arrays [N, ...] by the names of the model's inputs, and `labels`. Raises DataError naming the array."""
    wanted = [spec.name for spec in inputs]
    if truth and LABELS in given and LABELS not in wanted:
        source = arrays_in_memory(
            {name: array for name, array in given.items() if name != LABELS}, inputs, options, classes
        )
        source = _with_truth(source, given[LABELS], classes, IN_MEMORY, truth)
        source.fingerprint = fingerprint(
            source.fingerprint.encode(), str(content(source.truth or ())).encode()
        )
        return source
    try:
        arrays = {str(name): np.asarray(array) for name, array in given.items()}
    except ValueError as error:
        raise DataError(f"{IN_MEMORY}: {' '.join(str(error).split())}; give arrays of numbers") from error
    for name in wanted:
        if name not in arrays:
            there = f"it has {first_few(sorted(arrays), 8)}" if arrays else "it is empty"
            hint = nearest(name, arrays)
            raise DataError(f"{IN_MEMORY}: there is no array '{name}' for the model's input{hint}; {there}")
    if extra := sorted(arrays.keys() - {*wanted, LABELS}):
        hint = nearest(extra[0], [*wanted, LABELS])
        raise DataError(f"{IN_MEMORY}: '{extra[0]}' is no input of the model{hint}; name labels '{LABELS}'")
    for name, array in arrays.items():
        if array.dtype.hasobject:
            raise DataError(f"{IN_MEMORY}: array '{name}' holds Python objects; give plain numbers")
    headers = {
        name: Header(array.shape, array.dtype, zlib.crc32(array.tobytes())) for name, array in arrays.items()
    }
    return _made(IN_MEMORY, "", headers, arrays, inputs, options, classes)


def _made(
    path: Path | str,
    prefix: str,
    headers: Mapping[str, Header],
    arrays: dict[str, np.ndarray],
    inputs: Sequence[InputSpec],
    options: Preprocess,
    classes: int | None,
    truth: Truth = Truth.CLASSES,
) -> ArraySource:
    """The source of arrays that have been read; `path` and `prefix` are for messages."""
    feeds, fitted = _feeds(path, prefix, headers, inputs, options)
    for spec in inputs:
        where = f"{path}: array '{prefix + spec.name}'"
        check_values(arrays[spec.name], spec, where)
        if is_float(arrays[spec.name].dtype) and feeds[spec.name].mean is not None:
            _check_pixels(arrays[spec.name], where)
    labels, count = None, fitted.count
    given = arrays.pop(LABELS) if truth and LABELS in arrays and LABELS not in feeds else None
    if LABELS in arrays and LABELS not in feeds:
        labels = check_labels(arrays.pop(LABELS), count, classes, f"{path}: array '{prefix + LABELS}'")
    source = ArraySource(arrays, labels, feeds, fitted)
    source.fingerprint = fingerprint(
        repr(sorted((name, str(header)) for name, header in headers.items())).encode(), repr(options).encode()
    )
    source.description = f"{count:,} {'unlabelled' if labels is None else 'labelled'} samples"
    source.notes = tuple(filter(None, [fitted.note(inputs)]))
    return source if given is None else _with_truth(source, given, classes, str(path), truth)


def _with_truth(
    source: ArraySource, labels: Any, classes: int | None, where: str, form: Truth
) -> ArraySource:
    """The source with labels of any form."""
    source.truth, source.labels = read_truth(labels, source.count, classes, f"{where}: the labels", form)
    source.labelled = source.labels is not None
    source.description = source.description.replace("unlabelled", "labelled")
    return source


@contextmanager
def _opened(path: Path) -> Iterator[zipfile.ZipFile]:
    try:
        archive = zipfile.ZipFile(path)
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file") from error
    except (zipfile.BadZipFile, NotImplementedError, ValueError) as error:
        raise DataError(
            f"{path}: is not a .npz archive, or is truncated; write it again with np.savez"
        ) from error
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error
    with archive:
        yield archive


def _prefix(path: Path, part: str | None, names: set[str], inputs: Sequence[InputSpec]) -> str:
    """What stands before the names of the part's arrays. Raises DataError if the part or an input's array
    is missing.
    """
    parts = sorted(
        {
            name.removesuffix(f"/{spec.name}")
            for name in names
            for spec in inputs
            if name.endswith(f"/{spec.name}")
        }
    )
    if part is not None and not any(name.startswith(f"{part}/") for name in names):
        there = f"it has {first_few(parts, 8)}" if parts else f"name the file alone: {path}"
        raise DataError(f"{path}: has no part '{part}'{nearest(part, parts)}; {there}")
    prefix = "" if part is None else f"{part}/"
    for spec in inputs:
        if prefix + spec.name in names:
            continue
        here = sorted(name.removeprefix(prefix) for name in names if name.startswith(prefix))
        if part is None and parts:
            raise DataError(f"{path}: has parts {first_few(parts, 8)}; name one, such as {path}:{parts[0]}")
        there = f"it has {first_few(here, 8)}" if here else "it is empty"
        raise DataError(
            f"{path}: has no array '{prefix + spec.name}' for the model's input{nearest(spec.name, here)}; {there}"
        )
    return prefix


def _header(path: Path, archive: zipfile.ZipFile, name: str) -> Header:
    """Shape and dtype, compared with the size of the data so that nothing of a wrong size is ever
    allocated.
    """
    info = archive.getinfo(f"{name}.npy")
    with _reading(path, name), archive.open(info) as stream:
        shape, _, dtype = _HEADER_READERS[np.lib.format.read_magic(stream)](stream)
        if dtype.hasobject:
            raise DataError(f"{path}: array '{name}' holds Python objects; store plain numbers")
        if info.file_size != stream.tell() + math.prod(shape) * dtype.itemsize:
            raise ValueError("its size does not match its shape")
        return Header(shape, dtype, info.CRC)


def _read(path: Path, archive: zipfile.ZipFile, name: str) -> np.ndarray:
    with _reading(path, name), archive.open(f"{name}.npy") as stream:
        return np.asarray(np.lib.format.read_array(stream, allow_pickle=False))


@contextmanager
def _reading(path: Path, name: str) -> Iterator[None]:
    """RuntimeError is an encrypted member, NotImplementedError an unknown compression, KeyError an unknown
    format version.
    """
    try:
        yield
    except MemoryError as error:
        raise DataError(
            f"{path}: array '{name}' does not fit into memory; use a folder or a function instead"
        ) from error
    except (
        OSError,
        ValueError,
        KeyError,
        EOFError,
        RuntimeError,
        NotImplementedError,
        zipfile.BadZipFile,
        zlib.error,
    ) as error:
        raise DataError(
            f"{path}: array '{name}' cannot be read ({' '.join(str(error).split())}); write it again with np.savez"
        ) from error


def _feeds(
    path: Path | str,
    prefix: str,
    headers: Mapping[str, Header],
    inputs: Sequence[InputSpec],
    options: Preprocess,
) -> tuple[dict[str, Feed], Fit]:
    """How each input's array is fed. With several inputs, --preprocess scales those that are stored as
    bytes.
    """

    def where(name: str) -> str:
        return f"{path}: array '{prefix + name}'"

    fitted = fit(inputs, {spec.name: headers[spec.name].shape for spec in inputs}, where)
    feeds = {}
    for spec in inputs:
        header = headers[spec.name]
        pixels = options.scales and len(inputs) == 1 and is_float(header.dtype)
        feeds[spec.name] = feed(fitted, spec, header.shape, header.dtype, options, where(spec.name), pixels)
    if options.scales and all(feed.mean is None for feed in feeds.values()):
        raise DataError(
            f"{path}: --preprocess scales arrays of uint8, and no input's array is; store pixels as uint8 or leave scaling out"
        )
    return feeds, fitted


def _check_pixels(array: np.ndarray, where: str) -> None:
    """Raises DataError if floats that --preprocess is to scale are no pixels 0..255: they have been scaled
    already.
    """
    low, high = float(array.min()), float(array.max())
    if low < 0 or high > 255 or high <= 1:
        raise DataError(
            f"{where} holds {low:.3g}..{high:.3g}, not pixels 0..255; leave scale, mean and std out if it is preprocessed already"
        )
