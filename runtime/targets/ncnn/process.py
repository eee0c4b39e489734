"""What ncnn computes of a network, found out in a process of its own, and whether that is what ONNX Runtime does."""

import json
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from onnx_lathe.errors import TargetError
from onnx_lathe.runtime.processes import environment, running
from onnx_lathe.runtime.running.bfloat16 import storable
from onnx_lathe.runtime.targets.ncnn.convert import Port
from onnx_lathe.runtime.targets.ncnn.running import DEFAULT, Settings
from onnx_lathe.runtime.targets.ncnn.session import ports_as_json

WORKER = "onnx_lathe.runtime.targets.ncnn.worker"
LIMIT_S = 600.0


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
    command = [sys.executable, "-m", WORKER]
    try:
        with running(command, environment(), limit_s, stderr=subprocess.PIPE) as child:
            said, errors = child.process.communicate(json.dumps(request).encode() + b"\n")
    except OSError as error:
        raise TargetError(f"cannot start {sys.executable}: {error.strerror}") from error
    if child.overdue:
        raise TargetError(f"ncnn did not {what} within {limit_s:g} s")
    lines = said.decode("utf-8", "replace").splitlines()
    answer = json.loads(lines[-1]) if lines and lines[-1].startswith("{") else {}
    if "done" in answer:
        return answer["done"]
    last = [line for line in errors.decode("utf-8", "replace").splitlines() if line.strip()]
    reason = f"; its last words: {last[-1].strip()}" if last else ""
    if "refusal" in answer:
        raise TargetError(f"{answer['refusal']}{reason}")
    raise TargetError(f"ncnn ended with {_ending(child.process.returncode)} as it ran the model{reason}")


def _ending(code: int) -> str:
    try:
        return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
    except ValueError:
        return f"signal {-code}"
