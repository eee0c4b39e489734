"""Weights that stay in files while passes work on a model: tensors of a ModelProto without data in it.

    TensorProto(w, raw_data=...)    becomes    TensorProto(w, EXTERNAL, location "lathe.held:7"), and 7 -> a mapped file

A message holds what it was given until the whole model goes, each look at its bytes copies them, and from 2 GiB on it
cannot be written. A mapped file has none of that: the system reads a page when it is looked at, and takes it back when
memory is short. Within `area`, a file that is loaded has its big tensors of external data held, and what passes then
write goes to files without a name in the area's folder, until a checkpoint holds it (`hold_again`).
"""

import errno
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto

from onnx_lathe.errors import LatheError

LEAST_BYTES = 1 << 20
"""A smaller tensor is kept in the message."""
_LOCATION = "lathe.held:"
_NUMBERS = count()
_MAPPED: dict[str, np.ndarray] = {}
"""uint8 [bytes] by location; read-only."""


@dataclass
class Area:
    """Where tensors are held. `folder`: what is written by passes lies there, nameless; it need not be there yet."""

    folder: Path
    locations: list[str] = field(default_factory=list)

    def hold(self, tensor: TensorProto, data: np.ndarray) -> None:
        """Makes the data of the tensor, which has a name, type and shape, the mapped uint8 array [bytes]."""
        location = f"{_LOCATION}{next(_NUMBERS)}"
        _MAPPED[location] = data
        self.locations.append(location)
        del tensor.external_data[:]
        tensor.ClearField("raw_data")
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value=location)

    def write(self, tensor: TensorProto, data: bytes | memoryview) -> None:
        """As `hold`, of data in memory, which goes to a file. Raises LatheError if the disk refuses it."""
        try:
            with tempfile.TemporaryFile(dir=self.folder) as file:
                file.write(data)
                file.flush()
                mapped = np.memmap(file, np.uint8, "r")
        except OSError as error:
            full = error.errno in (errno.ENOSPC, errno.EDQUOT)
            what = "the disk is full; free some space or" if full else f"{error.strerror or error};"
            raise LatheError(
                f"{self.folder}: weight '{tensor.name}' cannot be written: {what} choose another folder"
            ) from error
        self.hold(tensor, mapped)


_AREA: ContextVar[Area | None] = ContextVar("area", default=None)


@contextmanager
def area(folder: Path) -> Iterator[Area]:
    """As long as it lasts, big tensors are held; what is held is gone afterwards."""
    opened = Area(folder)
    token = _AREA.set(opened)
    try:
        yield opened
    finally:
        _AREA.reset(token)
        for location in opened.locations:
            _MAPPED.pop(location, None)


def open_area() -> Area | None:
    """The area, if there is one: numbers in files have their low byte first, as memory has on all but a few machines."""
    return _AREA.get() if sys.byteorder == "little" else None


def writing_area() -> Area | None:
    """The area, if anything is held in it: a model that came in one file is in memory, and so is what becomes of it."""
    opened = open_area()
    return opened if opened is not None and opened.locations else None


def are_any() -> bool:
    return bool(_MAPPED)


def _location(tensor: TensorProto) -> str:
    if tensor.data_location != TensorProto.EXTERNAL:
        return ""
    return next((entry.value for entry in tensor.external_data if entry.key == "location"), "")


def is_held(tensor: TensorProto) -> bool:
    return _location(tensor) in _MAPPED


def data_of(tensor: TensorProto) -> np.ndarray:
    """uint8 [bytes] of a held tensor, mapped, read-only."""
    return _MAPPED[_location(tensor)]


def hold_again(tensor: TensorProto, data: np.ndarray) -> None:
    """Of a held tensor, the same data where it has been written to a file with a name."""
    _MAPPED[_location(tensor)] = data


def to_array(tensor: TensorProto) -> np.ndarray:
    """The values of any tensor, as onnx.numpy_helper.to_array gives them; of a held one read-only, and not copied unless
    elements share a byte.
    """
    if not is_held(tensor):
        return onnx.numpy_helper.to_array(tensor)
    data, dims = data_of(tensor), tuple(tensor.dims)
    dtype = np.dtype(onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type))
    if data.size == dtype.itemsize * int(np.prod(dims, dtype=np.int64)):
        return np.asarray(data).view(dtype).reshape(dims)
    packed = TensorProto(name=tensor.name, data_type=tensor.data_type, dims=dims, raw_data=data.tobytes())
    return onnx.numpy_helper.to_array(packed)
