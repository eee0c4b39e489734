"""A file of choices that were made on a device.

    {"format": 1, "device": "Pixel 8", "layers": {"/features/conv1/Conv": "direct", "/features/conv2/Conv": "winograd43"}}

`layers`: name of a Conv node -> algorithm. `device` is for the report.
"""

import json
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onnx_lathe.errors import UsageError, nearest
from onnx_lathe.kernels import NAMES

FORMAT = 1
KEYS = ("format", "device", "layers")


@dataclass(frozen=True)
class Tuning:
    device: str
    layers: dict[str, str]


def read_tuning(path: Path) -> Tuning:
    """Raises UsageError naming the file, and the layer if one is wrong."""
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{path}: cannot read the choices ({error.strerror or error})") from error
    except ValueError as error:
        raise UsageError(f"{path}: is not JSON: {error}") from error
    if not isinstance(table, dict):
        raise _wrong(path, "is no table")
    if table.get("format") != FORMAT:
        raise UsageError(f"{path}: has format {table.get('format')!r}; this version reads format {FORMAT}")
    if unknown := next((key for key in table if key not in KEYS), None):
        raise _wrong(path, f"has '{unknown}', which is not known{nearest(unknown, KEYS)}")
    layers, device = table.get("layers"), table.get("device", "")
    if not isinstance(layers, dict) or not isinstance(device, str):
        raise _wrong(path, "lacks the table 'layers', or its 'device' is no text")
    for layer, algorithm in layers.items():
        _check(path, layer, algorithm)
    return Tuning(device or "a device", layers)


def check_names(path: str, tuning: Tuning, known: Collection[str]) -> None:
    """Raises UsageError for a layer that the model does not have, or that has no choice."""
    for layer in tuning.layers:
        if layer not in known:
            raise UsageError(
                f"{path}: the model has no 3x3 convolution '{layer}' that has a choice{nearest(layer, known)}"
            )


def _check(path: Path, layer: str, algorithm: Any) -> None:
    if algorithm not in NAMES.values():
        raise UsageError(f"{path}: layer '{layer}' takes {', '.join(NAMES.values())}, not {algorithm!r}")


def _wrong(path: Path, what: str) -> UsageError:
    return UsageError(
        f'{path}: {what}; it looks like {{"format": {FORMAT}, "device": "...", "layers": {{"conv1": "direct"}}}}'
    )
