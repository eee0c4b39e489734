"""Runs one request in a TensorRT process of its own (tensorrt_worker.py) and turns all that can happen to it into TargetError."""

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from lathe import TargetError
from runtime.targets.base import Progress

WORKER = "runtime.targets.tensorrt_worker"
NOISE = "catchCudaError"


def ask(request: Mapping[str, Any], folder: Path, progress: Progress, time_limit_s: float | None = None) -> dict[str, Any]:
    """The worker's answer. `folder` is an empty scratch folder, which becomes the worker's working directory.

    Raises TargetError with TensorRT's reasons, or how the process ended. The process never outlives this call.
    """
    said = folder / "stderr.txt"
    with said.open("w+b") as errors:
        try:
            process = subprocess.Popen(
                [sys.executable, "-m", WORKER], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, cwd=folder, env=_environment()
            )
        except OSError as error:
            raise TargetError(f"cannot start {sys.executable}: {error.strerror}") from error
        overdue = threading.Event()

        def end_it() -> None:
            overdue.set()
            process.kill()

        timer = threading.Timer(time_limit_s or 0.0, end_it)
        timer.daemon = True
        if time_limit_s is not None:
            timer.start()
        try:
            message = _converse(process, request, progress)
            process.wait()
        finally:
            timer.cancel()
            process.kill()
            process.wait()
            for stream in (process.stdin, process.stdout):
                if stream is not None:
                    with suppress(OSError):  # a request that nobody reads any more
                        stream.close()
        if "answer" in message:
            answer: dict[str, Any] = message["answer"]
            return answer
        if "refusal" in message:
            raise TargetError(message["refusal"])
        if overdue.is_set():
            raise TargetError(f"not built within the time limit of {time_limit_s:g} s; give more with time_limit")
        errors.seek(0)
        raise TargetError(f"the builder ended with {_ending(process.returncode)}{_last_words(errors.read())}")


def _environment() -> dict[str, str]:
    """The worker imports from where this process imports; its own working directory is an empty folder."""
    path = os.pathsep.join(os.path.abspath(entry) for entry in sys.path)
    return os.environ | {"PYTHONPATH": path, "PYTHONIOENCODING": "utf-8"}


def _converse(process: subprocess.Popen[bytes], request: Mapping[str, Any], progress: Progress) -> dict[str, Any]:
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


def _ending(code: int) -> str:
    if code >= 0:
        return f"exit code {code}" if code < 1 << 16 else f"exit code {code:#x}"
    try:
        return f"signal {signal.Signals(-code).name}"
    except ValueError:
        return f"signal {-code}"


def _last_words(errors: bytes) -> str:
    lines = [line for line in errors.decode("utf-8", "replace").splitlines() if line.strip() and NOISE not in line]
    return f"; its last words: {' '.join(lines[-1].split())}" if lines else " and said nothing; log=true shows how far it came"
