"""A compiled model in the simulator of the chip's processor, as a session: the methods of
onnxruntime.InferenceSession that measuring uses, so that metrics and gates are the same code for it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from onnx_lathe.errors import ModelError, TargetError
from onnx_lathe.runtime.targets.bundle.ports import Port
from onnx_lathe.runtime.targets.qnn import library
from onnx_lathe.runtime.targets.qnn.chips import Chip
from onnx_lathe.runtime.targets.qnn.process import QnnProcess

LIMIT_S = 600.0
"""For one sample: a network of 4 billion multiplications takes some seconds."""
SIMULATED = "it is simulated on this processor, and its times say nothing of a chip's"
WITHOUT = "simulate=false builds without it"
_TYPES = {"float32": "float", "float64": "double"}


@dataclass(frozen=True)
class Value:
    """An input or output, as onnxruntime.NodeArg describes one."""

    name: str
    shape: Sequence[int | str]
    type: str


class SimulatedSession:
    """Runs a context file in a process of its own. Where the model left the batch open, which a chip's program does not,
    samples run in turn, as many at a time as it was compiled for.
    """

    simulated = SIMULATED
    """Why its times are none to report or to judge."""

    def __init__(self, context: Path, inputs: Sequence[Port], outputs: Sequence[Port], chip: Chip) -> None:
        """Raises ModelError where the simulator does not load the file, TargetError where it ends."""
        self.inputs, self.outputs = inputs, outputs
        self.process = QnnProcess()
        request = {
            "do": "open",
            "model": str(context.resolve()),
            "entries": {"session.disable_cpu_ep_fallback": "1"},
            "options": library.provider_options([chip]),
        }
        try:
            self.process.ask(request, limit_s=LIMIT_S)
        except ModelError as error:
            self.close()
            raise ModelError(f"{context}: the simulator does not load it: {error}") from error

    def get_inputs(self) -> list[Value]:
        return [_value(port) for port in self.inputs]

    def get_outputs(self) -> list[Value]:
        return [_value(port) for port in self.outputs]

    def run(self, names: Sequence[str] | None, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """Raises ModelError for feeds that the model does not take, TargetError where the simulator ends."""
        for port in self.inputs:
            _check(port, feeds)
        given = {port.tensor: np.asarray(feeds[port.tensor]) for port in self.inputs}
        wanted = list(names or [port.tensor for port in self.outputs])
        batched = [port for port in self.inputs if is_batched(port)]
        if not batched:
            return self._call(wanted, given)
        counts = {len(given[port.tensor]) for port in batched}
        if len(counts) > 1:
            raise ModelError(f"inputs have batches of {' and '.join(map(str, sorted(counts)))} samples")
        count, size = counts.pop(), batched[0].tensor_shape[0] or 1
        pieces = []
        for start in range(0, count, size):
            rows = np.minimum(np.arange(start, start + size), count - 1)
            taken = {port.tensor: given[port.tensor][rows] for port in batched}
            pieces.append(self._call(wanted, {**given, **taken}))
        ports = {port.tensor: port for port in self.outputs}
        return [
            _joined(ports[name], parts, count, size)
            for name, parts in zip(wanted, zip(*pieces, strict=True), strict=True)
        ]

    def close(self) -> None:
        self.process.close()

    def _call(self, names: Sequence[str], feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        try:
            _, found = self.process.ask({"do": "run", "outputs": list(names)}, feeds, LIMIT_S)
        except TargetError as error:
            raise TargetError(f"the chip's simulator failed: {error}; {WITHOUT}") from error
        return [found[name] for name in names]


def _joined(port: Port, parts: Sequence[np.ndarray], count: int, size: int) -> np.ndarray:
    """What calls of `size` samples each gave, of `count` samples: along the axis that the model leaves open and that has
    as many, or along the first, where samples have several rows one behind another. An output without an open size is
    to be the same in all calls. Raises ModelError for one that is of all samples together.
    """
    if len(parts) == 1 and count == size:
        return parts[0]
    free = [axis for axis, length in enumerate(port.declared) if length is None]
    axis = next((axis for axis in free if port.tensor_shape[axis] == size), 0)
    rows, rest = divmod(parts[0].shape[axis], size) if axis in free else (0, 1)
    if not rest:
        return np.concatenate(parts, axis).take(np.arange(count * rows), axis)
    if not free and len(parts) > 1 and all(one.tobytes() == parts[0].tobytes() for one in parts):
        return parts[0]
    shown = ", ".join(map(str, parts[0].shape))
    raise ModelError(
        f"output '{port.tensor}' [{shown}] is of {size} samples together, and {count} are given: give {size}, or build with "
        "shapes for as many"
    )


def is_batched(port: Port) -> bool:
    """Whether the model leaves the first size open."""
    return bool(port.declared) and port.declared[0] is None and len(port.tensor_shape) > 0


def _takes(port: Port) -> list[int | None]:
    return [None if is_batched(port) and axis == 0 else size for axis, size in enumerate(port.tensor_shape)]


def _check(port: Port, feeds: Mapping[str, np.ndarray]) -> None:
    wanted = _takes(port)
    shown = ", ".join("?" if size is None else str(size) for size in wanted)
    if port.tensor not in feeds:
        raise ModelError(f"input '{port.tensor}' [{shown}] is not fed")
    given = np.shape(feeds[port.tensor])
    if (
        len(given) != len(wanted)
        or any(size not in (None, have) for size, have in zip(wanted, given, strict=True))
        or (is_batched(port) and not given[0])
    ):
        raise ModelError(f"input '{port.tensor}' takes [{shown}], not {list(given)}")


def _value(port: Port) -> Value:
    shape: list[Any] = [
        f"{port.tensor}_{axis}" if size is None else size for axis, size in enumerate(_takes(port))
    ]
    return Value(port.tensor, shape, f"tensor({_TYPES.get(port.tensor_type, port.tensor_type)})")
