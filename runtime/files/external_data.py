"""External data: tensors whose bytes lie in files beside the model, found, read and laid out.

What is read is checked before it is believed: sizes come from the shapes, and the files must lie in the
model's own folder. A model file that is a link has two of them, the link's and that of the file itself, as
for ONNX Runtime: a hub's cache keeps models and data as links into one folder of blobs. What is checked is the
opened file: one that is replaced meanwhile, by a link out of the folder, is not followed.
"""

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
import onnx
from onnx import ModelProto, TensorProto

from onnx_lathe.errors import ModelError
from onnx_lathe.runtime.files.reading import explaining
from onnx_lathe.runtime.files.tensors import VALUES, copy_fields, data_size, without_big

SPARE_BYTES = 100_000_000
ALIGNMENT = 4096
"""Of a tensor in external data. Page size: ONNX Runtime maps data that begins on a page."""


def external_path(model: Path, tensor: TensorProto) -> Path:
    """The file that holds the data of a tensor of the model file `model`, links resolved."""
    return _place(model, tensor)[1]


def _place(model: Path, tensor: TensorProto) -> tuple[Path, Path]:
    """The folder that the file may lie in, and the file, links resolved in both."""
    location = next((entry.value for entry in tensor.external_data if entry.key == "location"), "")
    named = f"external data '{location}' of tensor '{tensor.name}'"
    if not location:
        raise ModelError(
            f"tensor '{tensor.name}' has external data without a location; export the model again"
        )
    try:
        folders = (model.parent.resolve(), model.resolve().parent)
        file = (folders[0] / location).resolve()
    except (OSError, RuntimeError, ValueError) as error:  # a loop of symbolic links, or a NUL in the name
        raise ModelError(f"{named} is not a usable path; export the model again") from error
    folder = next((one for one in folders if file.is_relative_to(one)), None)
    if _leads_out(location) or folder is None:
        raise ModelError(
            f"{named} is outside the model's folder; copy the file itself, not a link, beside the model"
        )
    return folder, file


@contextmanager
def opened(model: Path, tensor: TensorProto) -> Iterator[BinaryIO]:
    """The file with the data of a tensor, open for reading: a regular one in the model's folder.

    Raises ModelError as `external_path` does, for what is no file, and for a file of another owner than the model's that
    has several names: a hard link, which nothing tells from a file that was put there. Those of package caches have
    the owner of the model.
    """
    folder, file = _place(model, tensor)
    with explaining(f"external data {file}: "), os.fdopen(_descriptor(folder, file), "rb") as stream:
        found = os.fstat(stream.fileno())
        if not stat.S_ISREG(found.st_mode):
            raise ModelError(f"external data {file}: is not a file; copy the data beside the model")
        if found.st_nlink > 1 and found.st_uid != model.stat().st_uid:
            raise ModelError(
                f"external data {file}: is a hard link to a file of another user; copy the file itself beside the model"
            )
        yield stream


def _descriptor(folder: Path, file: Path) -> int:
    """Opens a resolved path below a resolved folder step by step, and no link that has come into it since."""
    if os.open not in os.supports_dir_fd:  # Windows, where links take the rights of an administrator
        return os.open(file, os.O_RDONLY | getattr(os, "O_BINARY", 0))
    *between, name = file.relative_to(folder).parts or (".",)
    plain = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC
    # a folder that may be entered, if not listed, is enough
    through = plain | os.O_DIRECTORY | getattr(os, "O_PATH", getattr(os, "O_SEARCH", 0))
    at = os.open(folder, through)
    try:
        for part in between:
            at, above = os.open(part, through, dir_fd=at), at
            os.close(above)
        return os.open(name, plain | os.O_NONBLOCK, dir_fd=at)  # which a pipe without a writer would wait for
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.ENOTDIR):
            raise ModelError(
                f"external data {file}: was replaced by a link as it was read; copy it again"
            ) from error
        raise
    finally:
        os.close(at)


def _leads_out(location: str) -> bool:
    """Whether the name itself, without any link, is of a place outside the folder."""
    return os.path.isabs(location) or os.path.normpath(location).split(os.sep)[0] == os.pardir


def locate(model: Path, tensor: TensorProto, size: int) -> tuple[int, int]:
    """Offset and size of the external data of a tensor in its file of `size` bytes."""
    needed = data_size(tensor)
    where = {entry.key: entry.value for entry in tensor.external_data}
    named = f"external data of tensor '{tensor.name}'"
    try:
        offset, length = int(where.get("offset", 0)), int(where.get("length", needed))
    except ValueError as error:
        raise ModelError(
            f"{named} has an offset or length that is no number; export the model again"
        ) from error
    if offset < 0 or length != needed:
        raise ModelError(
            f"{named} is {length} bytes at {offset}, but its shape asks for {needed}; export the model again"
        )
    if offset + length > size:
        raise ModelError(
            f"{named}: {external_path(model, tensor).name} is too short, {size} bytes of at least "
            f"{offset + length}; copy it again"
        )
    return offset, length


class Reader:
    """Reads the data of a model's tensors from its other files.

    Files may be read twice over and SPARE_BYTES more, as tied weights are; a small file of which a thousand tensors
    want all would fill any memory.
    """

    def __init__(self, model: Path) -> None:
        self.model = model
        self.sizes: dict[tuple[int, int], int] = {}
        self.wanted = 0

    def read(self, tensor: TensorProto) -> None:
        """Reads the data into the tensor and makes it an ordinary one."""
        with opened(self.model, tensor) as stream:
            offset, length = self._located(tensor, stream)
            stream.seek(offset)
            tensor.raw_data = stream.read(length)
        del tensor.external_data[:]
        tensor.ClearField("data_location")

    def mapped(self, tensor: TensorProto) -> np.ndarray:
        """The data, uint8 [bytes], mapped and not read. Raises ModelError as `read` does."""
        with opened(self.model, tensor) as stream:
            offset, length = self._located(tensor, stream)
            return np.memmap(stream, np.uint8, "r", offset, (length,)) if length else np.zeros(0, np.uint8)

    def _located(self, tensor: TensorProto, stream: BinaryIO) -> tuple[int, int]:
        found = os.fstat(stream.fileno())
        offset, length = locate(self.model, tensor, found.st_size)
        self.sizes[found.st_dev, found.st_ino] = found.st_size
        self.wanted += length
        if self.wanted > 2 * sum(self.sizes.values()) + SPARE_BYTES:
            raise ModelError(
                f"tensor '{tensor.name}' and those before it read the same external data over and over, "
                f"{self.wanted / 1e9:.3g} GB in all; export the model again"
            )
        return offset, length


def externalized(model: ModelProto, location: str) -> tuple[ModelProto, list[tuple[int, TensorProto]]]:
    """The model with its big initializers in the file `location`, and those with their offsets there."""
    blobs: list[tuple[int, TensorProto]] = []
    end = 0

    def refer(graph: onnx.GraphProto, tensor: TensorProto) -> None:
        nonlocal end
        offset, length = -(-end // ALIGNMENT) * ALIGNMENT, data_size(tensor)
        entry = graph.initializer.add(data_location=TensorProto.EXTERNAL)
        copy_fields(tensor, entry, leave_out=(*VALUES, "data_location", "external_data"))
        for key, value in (("location", location), ("offset", str(offset)), ("length", str(length))):
            entry.external_data.add(key=key, value=value)
        blobs.append((offset, tensor))
        end = offset + length

    return without_big(model, refer), blobs
