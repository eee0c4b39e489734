"""Asks a worker of ours, in a process of its own: a line of JSON in, one out."""

import json
import signal
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

from onnx_lathe.errors import TargetError
from onnx_lathe.runtime.processes import environment, running

LIMIT_S = 600.0


def ask(worker: str, request: Mapping[str, Any], runtime: str, what: str, limit_s: float = LIMIT_S) -> Any:
    """The answer's `done`. `worker`: a module that may be ended by the `runtime` it loads; `what` it is to do, for the
    error of one that takes too long.

    Raises TargetError for the answer's `refusal`, and for a worker that ended or takes too long.
    """
    command = [sys.executable, "-m", worker]
    try:
        with running(command, environment(), limit_s, stderr=subprocess.PIPE) as child:
            said, errors = child.process.communicate(json.dumps(request).encode() + b"\n")
    except OSError as error:
        raise TargetError(f"cannot start {sys.executable}: {error.strerror}") from error
    if child.overdue:
        raise TargetError(f"{runtime} did not {what} within {limit_s:g} s")
    lines = said.decode("utf-8", "replace").splitlines()
    answer = json.loads(lines[-1]) if lines and lines[-1].startswith("{") else {}
    if "done" in answer:
        return answer["done"]
    last = [line for line in errors.decode("utf-8", "replace").splitlines() if line.strip()]
    reason = f"; its last words: {last[-1].strip()}" if last else ""
    if "refusal" in answer:
        raise TargetError(f"{answer['refusal']}{reason}")
    raise TargetError(f"{runtime} ended with {_ending(child.process.returncode)} as it ran the model{reason}")


def _ending(code: int) -> str:
    try:
        return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
    except ValueError:
        return f"signal {-code}"
