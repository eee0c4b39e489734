"""Packs and unpacks files, external data included."""

import secrets
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, TypeVar

import numpy as np

from onnx_lathe.errors import ModelError, UsageError
from onnx_lathe.runtime.files import model_file
from onnx_lathe.runtime.files.external_data import ALIGNMENT
from onnx_lathe.runtime.files.tensors import BIG_BYTES
from onnx_lathe.runtime.files.writing import replacing
from onnx_lathe.runtime.pack import wire
from onnx_lathe.runtime.pack.container import (
    BEST,
    LIMIT_BYTES,
    MAGIC,
    Progress,
    Unpacker,
    is_packed,
    pack_parts,
)
from onnx_lathe.runtime.pack.plans import Parts

SUFFIX = ".lathe"
ASIDE_BYTES = 1 << 20
"""A larger blob is kept in a file until all are there."""
_Result = TypeVar("_Result")


@dataclass(frozen=True)
class Sizes:
    """Bytes of the ONNX file, external data included, and of the packed one."""

    onnx: int
    packed: int

    @property
    def ratio(self) -> float:
        return self.onnx / max(1, self.packed)


def require(path: Path, packed: bool) -> None:
    """Raises ModelError if a file that shall be packed already is, or one that shall be unpacked is not."""
    if _is_packed_file(path) == packed:
        return
    if not packed:
        raise ModelError(f"{path}: is packed already; every command takes it as it is")
    model_file.externals(path)  # says what is wrong with it, if it is not an ONNX file either
    raise ModelError(f"{path}: is a plain ONNX file, not a packed one; there is nothing to unpack")


def packed_file(path: str | Path, effort: str = BEST, progress: Progress = lambda done, total: None) -> bytes:
    """The model file `path` packed. Raises ModelError for what is not a model, or is packed already."""
    path = Path(path)
    require(path, packed=False)

    def join() -> bytes:
        made = pack_parts(*_content(path), effort, progress)
        out = b"".join(made.parts)
        made.check(out)
        return out

    return _naming(path, join)


def _content(path: Path) -> tuple[bytes, dict[bytes, np.ndarray] | None]:
    """What `pack_parts` takes."""
    model, outside = model_file.externals(path)
    if not outside:
        del model, outside
        return path.read_bytes(), None
    token = secrets.token_bytes(24)
    elsewhere = {}
    for number, (tensor, data) in enumerate(outside):
        name = token + number.to_bytes(8, "little")
        elsewhere[name] = data
        tensor.raw_data = name
        del tensor.external_data[:]
        tensor.ClearField("data_location")
    return model.SerializeToString(), elsewhere


class _Aside:
    """Keeps blobs in a nameless file."""

    def __init__(self, folder: Path) -> None:
        self.file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - closed with the object

    def __call__(self, blob: Parts) -> Parts:
        size = sum(map(len, blob))
        if size < ASIDE_BYTES or all(isinstance(part, memoryview) for part in blob):  # the tensor's own data
            return blob
        start = self.file.tell()
        self.file.writelines(blob)
        self.file.flush()
        return [np.memmap(self.file, np.uint8, "r", start, (size,)).data]


def pack_file(
    source: str | Path,
    target: str | Path,
    effort: str = BEST,
    progress: Progress = lambda done, total: None,
) -> Sizes:
    """Packs a model file into another, `effort` as container.pack has it. Raises ModelError as `packed_file`, LatheError for what the disk
    refuses.
    """
    source, target = Path(source), Path(target)
    require(source, packed=False)
    with replacing(target) as file:
        aside = _Aside(target.parent)
        made = _naming(source, lambda: pack_parts(*_content(source), effort, progress, aside))
        file.writelines(made.parts)
        file.flush()
        size = file.tell()
        _naming(source, lambda: made.check(_mapped(Path(file.name))))
    return Sizes(model_file.inspect_file(source).size_bytes, size)


def unpack_file(source: str | Path, target: str | Path, limit_bytes: int = LIMIT_BYTES) -> Sizes:
    """Writes the model in a packed file, above 1.9 GB with `<name>.data` beside it, as model_file.save does.

    Raises ModelError: not packed, damaged, or more than `limit_bytes` unpacked; UsageError: the data would
    replace a file of something else; LatheError for what the disk refuses.
    """
    source, target = Path(source), Path(target)
    require(source, packed=True)
    content = _mapped(source)

    def write() -> int:
        opened = Unpacker(content, limit_bytes)
        if opened.size_bytes <= model_file.INLINE_LIMIT_BYTES:
            whole = opened.whole()
            with replacing(target) as file:
                file.write(whole)
            return opened.size_bytes
        beside = target.with_name(target.name + ".data")
        if beside.exists() and not target.exists():  # it belongs to something else
            raise UsageError(
                f"{beside}: is there already, and the model's data would go there; name another file with -o"
            )
        with replacing(target) as file, replacing(beside) as data:
            _write_apart(opened, beside.name, file, data)
        return opened.size_bytes

    return Sizes(_naming(source, write), len(content))


def onnx_bytes(path: str | Path) -> int:
    """Bytes of a model as an ONNX file, external data included, whether it is packed or not. Raises
    ModelError.
    """
    path = Path(path)
    if _is_packed_file(path):
        return _naming(path, lambda: Unpacker(path.read_bytes(), 1 << 63).size_bytes)
    return model_file.inspect_file(path).size_bytes


def packed_bytes(path: str | Path, effort: str = BEST) -> int:
    """Bytes of a model when packed, whether it is already or not. Raises ModelError."""
    path = Path(path)
    if _is_packed_file(path):
        return model_file.inspect_file(path).size_bytes
    return len(packed_file(path, effort))


def _naming(path: Path, work: Callable[[], _Result]) -> _Result:
    """Puts the file's name before the reason."""
    try:
        return work()
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from error


def _is_packed_file(path: Path) -> bool:
    try:
        with open(path, "rb") as file:
            return is_packed(file.read(len(MAGIC)))
    except OSError:
        return False  # who opens it next has the reason


def _mapped(path: Path) -> memoryview:
    """The content of a file that is not empty."""
    return np.memmap(path, np.uint8, "r").data


def _write_apart(opened: Unpacker, location: str, file: BinaryIO, data: BinaryIO) -> None:
    """Writes the model into `file` with its big raw data in `data`, a file of the name `location` beside
    it.
    """
    end = 0
    inside: list[np.ndarray] = []
    places: dict[int, int] = {}
    for number, (site, size) in enumerate(zip(opened.sites, opened.sizes, strict=True)):
        out = np.empty(size, np.uint8)
        opened.decode(number, out)
        if site.field != wire.RAW_DATA or size < BIG_BYTES:
            inside.append(out)
            continue
        places[number] = -(-end // ALIGNMENT) * ALIGNMENT
        data.write(b"\0" * (places[number] - end))
        data.write(out.data)
        end = places[number] + size

    def refer(number: int, site: wire.Site, size: int) -> bytes | None:
        return wire.external_data(location, places[number], size) if number in places else None

    following = iter(inside)
    for piece in wire.layout(opened.skeleton, opened.sizes, refer):
        file.write(next(following).data if isinstance(piece, wire.Gap) else piece)
