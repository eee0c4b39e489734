"""Opens a .tflite file that was written earlier, by Lathe or by others: whatever LiteRT might not survive is tried in a
process of its own first.
"""

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from onnx_lathe.errors import ModelError, TargetError
from onnx_lathe.runtime.targets.core.base import Reopened
from onnx_lathe.runtime.targets.litert.package import interpreter_module, version
from onnx_lathe.runtime.targets.litert.process import try_once
from onnx_lathe.runtime.targets.litert.reader import Port, ports
from onnx_lathe.runtime.targets.litert.running import Opened
from onnx_lathe.runtime.targets.litert.session import Session, content_of
from onnx_lathe.runtime.targets.litert.tensors import NUMPY


class TriedSession(Session):
    """Runs a call of each new shape in a process of its own before one in this, where the file is loaded only when that
    went well.
    """

    def __init__(self, path: Path, threads: int) -> None:
        self.content = content_of(path)
        super().__init__(*ports(self.content, str(path)))
        self.path, self.threads = path, threads
        self._tried: set[tuple[tuple[int, ...], ...]] = set()

    def load(self) -> None:
        """Loads it now, with 1 for sizes that are open. Raises ModelError for sizes that no machine holds."""
        self.call({port.name: self._zeros(port) for port in self.inputs})

    def _zeros(self, port: Port) -> np.ndarray:
        shape = [1 if size is None else size for size in port.sizes]
        try:
            return np.zeros(shape, NUMPY[port.type])
        except (MemoryError, ValueError) as error:  # numpy's ValueError: more bytes than an address can count
            raise ModelError(f"{self.path}: input '{port.name}' {shape} does not fit into memory") from error

    def call(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        shapes = tuple(feeds[port.name].shape for port in self.inputs)
        if shapes not in self._tried:
            try:
                try_once(self.path, feeds, self.threads)
            except TargetError as error:
                said = str(error).replace(str(self.path.resolve()), str(self.path))
                named = "" if str(self.path) in said else f"{self.path}: "
                raise ModelError(f"{named}{said}") from error
            self._tried.add(shapes)
        if self.opened is None:
            self.opened = Opened(self.content, str(self.path), self.threads)
        return super().call(feeds)


def reopen(path: Path, threads: int) -> Reopened:
    """Raises ModelError for a file that is no .tflite file or that LiteRT cannot run, TargetError without the package."""
    interpreter_module()
    session = TriedSession(path, threads)
    for port in (*session.inputs, *session.outputs):
        if port.type not in NUMPY:
            raise ModelError(f"{path}: '{port.name}' is {port.type}, which Lathe neither feeds nor reads")
    if all(None not in port.sizes[1:] for port in session.inputs):
        session.load()
    return Reopened(session, f"LiteRT {version()}", path.stat().st_size)
