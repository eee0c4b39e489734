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


@dataclass(frozen=True)
class Value:
    """An input or output, as onnxruntime.NodeArg describes one."""

    name: str
    shape: Sequence[int | str]
    type: str


class Session:
    """Runs the samples of a batch one after another; outputs are joined along their first axis."""

    def __init__(self, opened: Opened) -> None:
        self.opened = opened

    def get_inputs(self) -> list[Value]:
        return [_value(port) for port in self.opened.inputs]

    def get_outputs(self) -> list[Value]:
        return [_value(port) for port in self.opened.outputs]

    def run(self, names: Sequence[str] | None, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """Raises ModelError if ncnn cannot run the feeds."""
        batched = [port.tensor for port in self.opened.inputs if port.declared and port.declared[0] is None]
        count = len(feeds[batched[0]]) if batched else 1
        rows = [
            self.opened.sample(
                {name: value[row : row + 1] if name in batched else value for name, value in feeds.items()}
            )
            for row in range(count)
        ]
        wanted = names or [port.tensor for port in self.opened.outputs]
        return [
            rows[0][name] if count == 1 else np.concatenate([row[name] for row in rows]) for name in wanted
        ]


def _value(port: Port) -> Value:
    shape = [f"{port.tensor}_{axis}" if size is None else size for axis, size in enumerate(port.declared)]
    kind = onnx.helper.tensor_dtype_to_string(port.element).removeprefix("TensorProto.").lower()
    return Value(port.tensor, shape, f"tensor({kind})")


def ports_as_json(inputs: Sequence[Port], outputs: Sequence[Port]) -> dict[str, Any]:
    return {
        "inputs": [asdict(port) for port in inputs],
        "outputs": [asdict(port) for port in outputs],
    }


def ports_from_json(table: Mapping[str, Any]) -> tuple[list[Port], list[Port]]:
    """(inputs, outputs)."""
    inputs, outputs = (
        [Port(**{**entry, "axes": tuple(entry["axes"])}) for entry in table[key]]
        for key in ("inputs", "outputs")
    )
    return inputs, outputs


def open_files(param: Path, settings: Settings = DEFAULT) -> Session:
    """The session of a network that Lathe wrote: the files NAME.param, NAME.bin and NAME.json.

    Raises ModelError for a file that is missing or not what it should be, TargetError without the package ncnn.
    """
    table = param.with_suffix(".json")
    try:
        inputs, outputs = ports_from_json(json.loads(table.read_text(encoding="utf-8")))
    except OSError as error:
        raise ModelError(
            f"{table}: {error.strerror}; it says what goes in and out of {param.name}"
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise ModelError(f"{table}: is not the description that Lathe writes beside {param.name}") from error
    return Session(Opened(param, param.with_suffix(".bin"), inputs, outputs, settings))
