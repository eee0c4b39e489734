"""A written network as a session: the three methods of onnxruntime.InferenceSession that measuring uses, so that
metrics, gates and timing are the same code for ncnn.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import onnx

from onnx_lathe.errors import ModelError
from onnx_lathe.runtime.targets.bundle import ports
from onnx_lathe.runtime.targets.bundle.description import read
from onnx_lathe.runtime.targets.ncnn.convert import Port
from onnx_lathe.runtime.targets.ncnn.running import DEFAULT, Opened, Settings


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


def shared(port: Port) -> ports.Port:
    """A port as all bundles describe it."""
    shape = tuple(None if size is None else int(size) for size in port.shape)
    return ports.Port(
        tensor=port.tensor,
        name=port.blob,
        shape=tuple(shape[axis] for axis in port.axes),
        type="float32" if port.floats else "int32",
        axes=tuple(map(int, port.axes)),
        tensor_type=ports.type_name(onnx.helper.tensor_dtype_to_np_dtype(port.element)),
        tensor_shape=shape,
        declared=ports.open_to(port.declared),
        least=tuple(map(int, port.least)),
        greatest=tuple(map(int, port.greatest)),
    )


def _own(port: ports.Port) -> Port:
    """Raises ValueError for a type that ncnn has not."""
    if port.type not in ("float32", "int32") or port.is_quantized:
        raise ValueError(f"'{port.tensor}' is no blob of ncnn")
    kind = ml_dtypes.bfloat16 if port.tensor_type == "bfloat16" else port.tensor_type
    return Port(
        port.tensor,
        port.name,
        port.tensor_shape,
        port.axes,
        onnx.helper.np_dtype_to_tensor_dtype(np.dtype(kind)),
        port.declared,
        port.type == "float32",
        port.least,
        port.greatest,
    )


def ports_as_json(inputs: Sequence[Port], outputs: Sequence[Port]) -> dict[str, Any]:
    return {
        "inputs": [shared(port).as_json() for port in inputs],
        "outputs": [shared(port).as_json() for port in outputs],
    }


def ports_from_json(table: Mapping[str, Any]) -> tuple[list[Port], list[Port]]:
    """(inputs, outputs). Raises ValueError, KeyError or TypeError for what `ports_as_json` does not make."""
    inputs, outputs = ports.ports_from_json(table)
    return [_own(port) for port in inputs], [_own(port) for port in outputs]


def open_files(param: Path, settings: Settings = DEFAULT) -> Session:
    """The session of a network that Lathe wrote: the files NAME.param, NAME.bin and NAME.json.

    Raises ModelError for a file that is missing or not what it should be, TargetError without the package ncnn.
    """
    inputs, outputs = ports_from_json(description(param))
    return Session(inputs, outputs, Opened(param, param.with_suffix(".bin"), inputs, outputs, settings))


def description(param: Path) -> Mapping[str, Any]:
    """What NAME.json says of NAME.param. Raises ModelError for one that is missing, or that Lathe did not write."""
    table = read(param.with_suffix(".json"), param.name, "ncnn")
    try:
        ports_from_json(table)
    except ValueError as error:
        raise ModelError(
            f"{param.with_suffix('.json')}: is no description of a network of ncnn: {error}"
        ) from error
    return table
