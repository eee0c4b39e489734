"""Where a training is after its last whole epoch, in a file, so that one that was interrupted goes on from
there.
"""

import contextlib
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, Protocol, cast

import torch

from onnx_lathe.errors import PassError
from onnx_lathe.runtime.files.writing import replacing

_DAMAGED = (OSError, EOFError, RuntimeError, ValueError, KeyError, pickle.UnpicklingError)
"""What torch.load raises for a file that was cut off, or that something else wrote."""


class Shape(Protocol):
    """What a pass has done so far while training runs; empty without one."""

    def state(self) -> dict[str, Any]: ...

    def restore(self, state: Mapping[str, Any]) -> None: ...


class _Refused:
    """A file that keeps what the disk refused: PyTorch's writer raises another error in its place."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.error: OSError | None = None

    def write(self, content: bytes) -> int:
        try:
            return self.file.write(content)
        except OSError as error:
            self.error = error
            raise

    def flush(self) -> None:
        self.file.flush()


class JobState:
    """One file. `identity` is a hash of everything that makes the job: what another job left in the file is
    not loaded.

    The state of a pass that acts while training runs is saved and restored along.
    """

    def __init__(self, path: Path, identity: str, shape: Shape) -> None:
        self.path, self.identity, self.shape = path, identity, shape

    def load(self) -> dict[str, Any] | None:
        """What `save` got, tensors on the CPU; None if there is no such file, or it is damaged, or of
        another job.
        """
        stored = self.stored()
        if stored is None:
            return None
        self.shape.restore(stored["shape"])
        state: dict[str, Any] = stored["state"]
        return state

    def stored(self) -> dict[str, Any] | None:
        """What is in the file, if it is of this job."""
        try:
            stored = torch.load(self.path, map_location="cpu", weights_only=True)
        except _DAMAGED:
            return None
        return stored if isinstance(stored, dict) and stored.get("identity") == self.identity else None

    def save(self, state: dict[str, Any]) -> None:
        """Tensors, numbers, strings, and lists and dicts of them; the file is replaced as a whole.

        Raises LatheError for what the disk refuses, PassError for what `load` would not read.
        """
        self.check(state)
        with replacing(self.path) as file:
            refused = _Refused(file)
            try:
                torch.save(
                    {"identity": self.identity, "shape": self.shape.state(), "state": state},
                    cast(BinaryIO, refused),
                )
            except RuntimeError:  # what PyTorch makes of a disk that is full
                if refused.error is not None:
                    raise refused.error from None
                raise

    def check(self, state: dict[str, Any]) -> None:
        """Raises PassError for what `load` would not read."""
        _check(state, "state")

    def delete(self) -> None:
        with contextlib.suppress(FileNotFoundError):
            self.path.unlink()


def _check(value: Any, where: str) -> None:
    """Raises PassError for anything but plain data: a file of other objects would have to run code to be
    read.
    """
    if isinstance(value, Mapping):
        for key, item in value.items():
            _check(item, f"{where}[{key!r}]")
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            _check(item, f"{where}[{index}]")
    elif not (value is None or type(value) in (bool, int, float, str) or isinstance(value, torch.Tensor)):
        raise PassError(
            f"job.state.save takes tensors, numbers, strings, and lists and dicts of them; {where} is {type(value).__name__}"
        )
