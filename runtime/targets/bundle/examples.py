"""Inputs, with the outputs that belong to them, stored beside a model; and the script that compares (verify_script.py)."""

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from onnx_lathe.runtime.files.writing import replacing
from onnx_lathe.runtime.running.bfloat16 import storable
from onnx_lathe.runtime.targets.bundle import verify_script
from onnx_lathe.runtime.targets.bundle.description import digest, put
from onnx_lathe.runtime.targets.bundle.ports import Port

LARGEST_BYTES = 64_000_000
"""Above, nothing is stored: the model of a phone comes with its application's developer, often by mail."""
MEASURES = ("largest", "length")


@dataclass(frozen=True)
class Examples:
    """Calls of the model and what ONNX Runtime computes of each, by the model's names, in its own layout and types.

    `measure`: "largest" difference relative to the largest value, or "length" of the difference relative to that of the
    output; `allowed`: the largest such error, by output; `floors`: by output, the least size of a value that it is
    relative to, where that is above 0.
    """

    calls: Sequence[tuple[Mapping[str, np.ndarray], Mapping[str, np.ndarray]]]
    measure: str
    allowed: Mapping[str, float]
    floors: Mapping[str, float]

    @property
    def size_bytes(self) -> int:
        return sum(array.nbytes for call in self.calls for part in call for array in part.values())


def write_examples(
    path: Path, inputs: Sequence[Port], outputs: Sequence[Port], examples: Examples
) -> dict[str, Any] | None:
    """Stores them in an .npz file. What the description says of it; None, and no file, where they are too large."""
    if examples.size_bytes > LARGEST_BYTES:
        return None
    arrays: dict[str, Any] = {}
    for call, parts in enumerate(examples.calls):
        for kind, ports, values in zip(("input", "output"), (inputs, outputs), parts, strict=True):
            for place, port in enumerate(ports):
                arrays[f"{kind}_{call}_{place}"] = storable(np.asarray(values[port.tensor]))
    with replacing(path) as file:
        np.savez(file, **arrays)
    return {
        "file": path.name,
        "sha256": digest(path)["sha256"],
        "calls": len(examples.calls),
        "outputs": {
            port.tensor: {
                "measure": examples.measure,
                "allowed": examples.allowed[port.tensor],
                "floor": examples.floors.get(port.tensor, 0.0),
            }
            for port in outputs
        },
    }


def write_script(path: Path) -> None:
    """The script as it stands here: it needs nothing of Lathe."""
    put(path, inspect.getsource(verify_script))
