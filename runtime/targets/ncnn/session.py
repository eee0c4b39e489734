"""A written network as a session: the three methods of onnxruntime.InferenceSession that measuring uses, so that
metrics, gates and timing are the same code for ncnn.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from onnx_lathe.errors import ModelError
from onnx_lathe.runtime.targets.ncnn.convert import Port
from onnx_lathe.runtime.targets.ncnn.running import DEFAULT, Opened, Settings

FORMAT = 1
ELEMENTS = tuple(
    getattr(onnx.TensorProto, name)
    for name in ("FLOAT", "DOUBLE", "FLOAT16", "BFLOAT16", "BOOL")
    + tuple(f"{sign}INT{bits}" for sign in ("", "U") for bits in (8, 16, 32, 64))
)
"""Types of a port."""


@dataclass(frozen=True)
class Value:
    """An input or output, as onnxruntime.NodeArg describes one."""

    name: str
    shape: Sequence[int | str]
    type: str


class Session:
    """Runs the samples of a batch one after another; outputs are joined along their first axis."""

    def __init__(self, inputs: Sequence[Port], outputs: Sequence[Port], opened: Opened | None = None) -> None:
        self.inputs, self.outputs, self.opened = inputs, outputs, opened

    def get_inputs(self) -> list[Value]:
        return [_value(port) for port in self.inputs]

    def get_outputs(self) -> list[Value]:
        return [_value(port) for port in self.outputs]

    def sample(self, feeds: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Outputs of one sample by name."""
        if self.opened is None:
            raise ModelError("the network is not loaded")
        return self.opened.sample(feeds)

    def run(self, names: Sequence[str] | None, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """Raises ModelError if ncnn cannot run the feeds, or they are not what the network takes."""
        for port in self.inputs:
            _check(port, feeds)
        batched = [port.tensor for port in self.inputs if port.is_batched]
        count = len(feeds[batched[0]]) if batched else 1
        rows = [
            self.sample(
                {name: value[row : row + 1] if name in batched else value for name, value in feeds.items()}
            )
            for row in range(count)
        ]
        wanted = names or [port.tensor for port in self.outputs]
        return [
            rows[0][name] if count == 1 else np.concatenate([row[name] for row in rows]) for name in wanted
        ]


def _takes(port: Port) -> list[int | None]:
    """The sizes that it was written for; the first is that of a batch where the model leaves it open."""
    return [None if port.is_batched and axis == 0 else size for axis, size in enumerate(port.shape)]


def _bounds(port: Port) -> list[tuple[int, int]]:
    """Of each size; 0 where an open one has none. A batch has none: samples run one after another."""
    if not port.least:
        return [(0, 0)] * len(port.shape)
    bounds = list(zip(port.least, port.greatest, strict=True))
    return [(0, 0) if port.is_batched and axis == 0 else pair for axis, pair in enumerate(bounds)]


def _shown(size: int | None, bounds: tuple[int, int]) -> str:
    low, high = bounds
    return str(size) if size is not None else f"{low}..{high}" if low else "?"


def _check(port: Port, feeds: Mapping[str, np.ndarray]) -> None:
    wanted = _takes(port)
    shown = ", ".join(map(_shown, wanted, _bounds(port)))
    if port.tensor not in feeds:
        raise ModelError(f"input '{port.tensor}' [{shown}] is not fed")
    given = feeds[port.tensor].shape
    if len(given) != len(wanted) or any(
        not (low <= have <= high if size is None and low else size in (None, have))
        for size, have, (low, high) in zip(wanted, given, _bounds(port), strict=True)
    ):
        raise ModelError(f"input '{port.tensor}' takes [{shown}], not {list(given)}")


def _value(port: Port) -> Value:
    shape = [f"{port.tensor}_{axis}" if size is None else size for axis, size in enumerate(_takes(port))]
    kind = onnx.helper.tensor_dtype_to_string(port.element).removeprefix("TensorProto.").lower()
    return Value(port.tensor, shape, f"tensor({kind})")


def ports_as_json(inputs: Sequence[Port], outputs: Sequence[Port]) -> dict[str, Any]:
    return {
        "inputs": [asdict(port) for port in inputs],
        "outputs": [asdict(port) for port in outputs],
    }


def ports_from_json(table: Mapping[str, Any]) -> tuple[list[Port], list[Port]]:
    """(inputs, outputs). Raises ValueError, KeyError or TypeError for what `ports_as_json` does not make."""
    inputs, outputs = (
        [Port(**{**entry, "axes": tuple(entry["axes"])}) for entry in table[key]]
        for key in ("inputs", "outputs")
    )
    if not inputs or not outputs:
        raise ValueError("there is no input, or no output")
    for port in (*inputs, *outputs):
        _check_port(port)
    return inputs, outputs


def _check_port(port: Port) -> None:
    """Raises ValueError for a field that no network has: a file may be damaged or changed by hand."""
    if not all(isinstance(name, str) and name for name in (port.tensor, port.blob)):
        raise ValueError("a name is no text")
    if not all(_is_size(size) for size in (*port.shape, *port.declared)):
        raise ValueError(f"a size of '{port.tensor}' is neither open nor a whole number from 1 on")
    if len(port.shape) != len(port.declared) or not set(port.axes) <= set(range(len(port.shape))):
        raise ValueError(f"shape and axes of '{port.tensor}' do not fit")
    bounds = (*port.least, *port.greatest)
    if bounds and (len(port.least) != len(port.shape) or len(port.greatest) != len(port.shape)):
        raise ValueError(f"shape and bounds of '{port.tensor}' do not fit")
    if not all(_is_size(size) and size for size in bounds):
        raise ValueError(f"a bound of '{port.tensor}' is no whole number from 1 on")
    if port.element not in ELEMENTS or not isinstance(port.floats, bool):
        raise ValueError(f"the type of '{port.tensor}' is not known")


def _is_size(size: object) -> bool:
    return size is None or (isinstance(size, int) and not isinstance(size, bool) and size > 0)


def open_files(param: Path, settings: Settings = DEFAULT) -> Session:
    """The session of a network that Lathe wrote: the files NAME.param, NAME.bin and NAME.json.

    Raises ModelError for a file that is missing or not what it should be, TargetError without the package ncnn.
    """
    inputs, outputs = ports_from_json(description(param))
    return Session(inputs, outputs, Opened(param, param.with_suffix(".bin"), inputs, outputs, settings))


def description(param: Path) -> Mapping[str, Any]:
    """What NAME.json says of NAME.param. Raises ModelError for one that is missing, or that Lathe did not write."""
    path = param.with_suffix(".json")
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
        if table["format"] != FORMAT:
            raise ModelError(f"{path}: has format {table['format']}, this version of Lathe reads {FORMAT}")
        ports_from_json(table)
    except OSError as error:
        raise ModelError(
            f"{path}: {error.strerror}; it says what goes in and out of {param.name}, and is written beside it: "
            "optimize build MODEL --target ncnn"
        ) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ModelError(f"{path}: is not the description that Lathe writes beside {param.name}") from error
    return dict(table)
