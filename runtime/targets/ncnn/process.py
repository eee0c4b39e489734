"""What ncnn computes of a network, found out in a process of its own, and whether that is what ONNX Runtime does."""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from onnx_lathe.runtime.running.bfloat16 import storable
from onnx_lathe.runtime.targets.core import asking
from onnx_lathe.runtime.targets.ncnn.convert import Port
from onnx_lathe.runtime.targets.ncnn.running import DEFAULT, Settings
from onnx_lathe.runtime.targets.ncnn.session import ports_as_json

WORKER = "onnx_lathe.runtime.targets.ncnn.worker"
LIMIT_S = asking.LIMIT_S


def outputs_of(
    param: Path,
    weights: Path,
    inputs: Sequence[Port],
    outputs: Sequence[Port],
    feeds: Mapping[str, np.ndarray],
    settings: Settings = DEFAULT,
) -> tuple[dict[str, np.ndarray], str]:
    """(outputs by name, ncnn's version). Raises TargetError where ncnn refuses the files or the feeds, or ends."""
    with tempfile.TemporaryDirectory(prefix="lathe-") as scratch:
        given, results = Path(scratch) / "feeds.npz", Path(scratch) / "results.npz"
        arrays: dict[str, Any] = {
            f"input{place}": storable(feeds[port.tensor]) for place, port in enumerate(inputs)
        }
        np.savez(given, **arrays)
        request = {
            "param": str(param.resolve()),
            "weights": str(weights.resolve()),
            "ports": ports_as_json(inputs, outputs),
            "feeds": str(given),
            "results": str(results),
            "settings": asdict(settings),
        }
        version = str(ask(request, "run the model once"))
        with np.load(results) as found:
            return {port.tensor: found[f"output{place}"] for place, port in enumerate(outputs)}, version


def ask(request: Mapping[str, Any], what: str, limit_s: float = LIMIT_S) -> Any:
    """The worker's answer. `what` it is to do, for the error of one that takes too long."""
    return asking.ask(WORKER, request, "ncnn", what, limit_s)
