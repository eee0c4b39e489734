"""A .tflite file as a session: the three methods of onnxruntime.InferenceSession that measuring uses, so that metrics,
gates and timing are the same code for LiteRT.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from onnx_lathe.errors import ModelError
from onnx_lathe.runtime.files.reading import beside
from onnx_lathe.runtime.targets.litert.reader import Port
from onnx_lathe.runtime.targets.litert.running import Opened, as_float, check_feeds

TYPES = {"FLOAT32": "float", "BOOL": "bool"}
"""Type in the file -> ONNX Runtime's word, where it is not the small letters of it."""


@dataclass(frozen=True)
class Value:
    """An input or output, as onnxruntime.NodeArg describes one."""

    name: str
    shape: Sequence[int | str]
    type: str


class Session:
    """Inputs and outputs are those of the model: float where the file stores them in INT8, and with the model's order of
    axes. A batch is one call where the file leaves its size open, else one after another of the size that the file has.
    """

    def __init__(self, inputs: Sequence[Port], outputs: Sequence[Port], opened: Opened | None = None) -> None:
        self.inputs, self.outputs, self.opened = inputs, outputs, opened

    def get_inputs(self) -> list[Value]:
        return [self._value(port) for port in self.inputs]

    def get_outputs(self) -> list[Value]:
        return [self._value(port) for port in self.outputs]

    def _value(self, port: Port) -> Value:
        sizes = [
            f"{port.name}_{axis}" if size is None or (port.fixed_batch and axis == 0) else size
            for axis, size in enumerate(port.model_sizes)
        ]
        return Value(
            port.name, sizes, f"tensor({'float' if port.scale else TYPES.get(port.type, port.type.lower())})"
        )

    def call(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Outputs by name, in the file's layout. Feeds are in it too."""
        if self.opened is None:
            raise ModelError("the file is not loaded")
        return self.opened.run(feeds)

    def run(self, names: Sequence[str] | None, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """Raises ModelError if LiteRT cannot run the feeds, or they are not what the file takes."""
        rows, count = _rows(self.inputs, feeds)
        for row in rows:
            check_feeds(self.inputs, row)
        results = [self._one(row) for row in rows]
        return [
            _together([one[name] for one in results], count)
            for name in names or [port.name for port in self.outputs]
        ]

    def _one(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        given = {
            port.name: feeds[port.name].transpose(np.argsort(port.order)) if port.order else feeds[port.name]
            for port in self.inputs
        }
        results = self.call(given)
        found = {}
        for port in self.outputs:
            value = as_float(results[port.name], port)
            found[port.name] = np.ascontiguousarray(value.transpose(port.order)) if port.order else value
        return found


def _rows(
    inputs: Sequence[Port], feeds: Mapping[str, np.ndarray]
) -> tuple[list[Mapping[str, np.ndarray]], int | None]:
    """(one call each, samples of all) of a batch, for a file that takes another: one sample, or as many as it was built
    for where the model has that open. The last sample is repeated in a call that lacks some. None where the feeds are
    one call as they are.
    """
    counts = {feeds[port.name].shape[:1] for port in inputs if port.name in feeds}
    sizes = {port.model_sizes[:1] for port in inputs}
    size, count = (next(iter(found), ()) if len(found) == 1 else () for found in (sizes, counts))
    if not size or size[0] is None or not count or count in (size, (0,)):
        return [feeds], None
    if size != (1,) and not all(port.fixed_batch for port in inputs):
        return [feeds], None
    places = [
        np.minimum(np.arange(start, start + size[0]), count[0] - 1) for start in range(0, count[0], size[0])
    ]
    return [{name: value[rows] for name, value in feeds.items()} for rows in places], count[0]


def _together(parts: Sequence[np.ndarray], count: int | None) -> np.ndarray:
    """An output of several calls; the first call's where it has no axis of samples."""
    if count is None or parts[0].ndim == 0:
        return parts[0]
    return np.concatenate(parts)[:count]


def open_file(path: Path, threads: int = 1) -> Session:
    """The session of a file that was built here. Raises ModelError for one that is missing or no .tflite file,
    TargetError without the package ai-edge-litert.
    """
    opened = Opened(content_of(path), str(path), threads)
    return Session(opened.inputs, opened.outputs, opened)


def content_of(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError as error:
        raise ModelError(f"{path}: no such file{beside(path)}") from error
    except OSError as error:
        raise ModelError(f"{path}: {error.strerror}") from error
