"""Runs one request in a TensorRT process of its own (worker.py) and turns all that can happen to it into
TargetError.
"""

import json
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from onnx_lathe.errors import TargetError
from onnx_lathe.runtime.processes import environment, running
from onnx_lathe.runtime.targets.core.base import Progress
from onnx_lathe.runtime.user_code import search_path

WORKER = "onnx_lathe.runtime.targets.tensorrt.worker"
NOISE = "catchCudaError"
SILENCE = " and said nothing; log=true shows how far it came"


def ask(
    request: Mapping[str, Any], folder: Path, progress: Progress, time_limit_s: float | None = None
) -> dict[str, Any]:
    """The worker's answer. `folder` is an empty scratch folder, which becomes the worker's working directory.

    Raises TargetError with TensorRT's reasons, or how the process ended. The process never outlives this
    call.
    """
    with (folder / "stderr.txt").open("w+b") as errors:
        command = [sys.executable, "-m", WORKER]
        try:
            with running(command, environment(), time_limit_s, stderr=errors, cwd=folder) as child:
                message = _converse(child.process, {"path": search_path(), **request}, progress)
                child.process.wait()
        except OSError as error:
            raise TargetError(f"cannot start {sys.executable}: {error.strerror}") from error
        if "answer" in message:
            answer: dict[str, Any] = message["answer"]
            return answer
        if "refusal" in message:
            raise TargetError(message["refusal"])
        if child.overdue:
            raise TargetError(
                f"not built within the time limit of {time_limit_s:g} s; give more with time_limit"
            )
        errors.seek(0)
        raise TargetError(
            f"the builder ended with {ending(child.process.returncode)}{last_words(errors.read())}"
        )


def _converse(
    process: subprocess.Popen[bytes], request: Mapping[str, Any], progress: Progress
) -> dict[str, Any]:
    """The worker's last message, which is empty if it died without one."""
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdin.write(json.dumps(request).encode() + b"\n")
        process.stdin.flush()
    except BrokenPipeError:
        return {}
    for line in process.stdout:
        try:
            message: dict[str, Any] = json.loads(line)
        except ValueError:  # killed while it wrote
            return {}
        if "progress" not in message:
            return message
        progress(message["progress"])
    return {}


def ending(code: int) -> str:
    """How a process of this exit code ended."""
    if code >= 0:
        return f"exit code {code}" if code < 1 << 16 else f"exit code {code:#x}"
    try:
        return f"signal {signal.Signals(-code).name}"
    except ValueError:
        return f"signal {-code}"


def last_words(errors: bytes, none: str = SILENCE) -> str:
    """What a process said last, for the end of a message; `none` if it said nothing."""
    lines = [
        line for line in errors.decode("utf-8", "replace").splitlines() if line.strip() and NOISE not in line
    ]
    return f"; its last words: {' '.join(lines[-1].split())}" if lines else none
