"""Whether ONNX Runtime survives a model: a child process loads it first.

ONNX Runtime's optimizer can crash the process that loads a model (seen: SIGSEGV in MatmulTransposeFusion).
One child serves the whole process: it is started when it is first wanted, and again after a crash; it
loads each model as a user would, with all of ONNX Runtime's defaults.
"""

import atexit
import json
import os
import signal
import subprocess
import sys
import threading
import warnings
from contextlib import suppress
from pathlib import Path

import onnx

from onnx_lathe.runtime.processes import environment

WORKER = "onnx_lathe.runtime.running.guard_worker"
LIMIT_BYTES = 2**31 - 1
"""Of a model in memory: protobuf's limit, beyond which ONNX Runtime takes none either."""


def prepare() -> None:
    """Starts the child, without waiting for it: it imports ONNX Runtime meanwhile."""
    _GUARD.start()


def crash(model: onnx.ModelProto | Path) -> str | None:
    """How a process ended that loaded the model, such as "SIGSEGV"; None if it survived.

    A model that ONNX Runtime refuses is survived. Warns, and answers None, where no child can be started.
    """
    if isinstance(model, Path):
        return _GUARD.crash(json.dumps({"path": str(model.resolve())}), b"")
    if model.ByteSize() > LIMIT_BYTES:
        return None
    content = model.SerializeToString()
    return _GUARD.crash(json.dumps({"size": len(content)}), content)


class _Guard:
    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._owner = 0
        self._usable = True
        self._lock = threading.Lock()
        atexit.register(self._end)

    def start(self) -> None:
        with self._lock:
            self._started()

    def crash(self, request: str, content: bytes) -> str | None:
        with self._lock:
            how = self._asked(request, content)
            # the system ends processes too when memory is short: once more, when it may be free again
            return self._asked(request, content) if how == "SIGKILL" else how

    def _asked(self, request: str, content: bytes) -> str | None:
        process = self._started()
        if process is None or process.stdin is None or process.stdout is None:
            return None
        with suppress(OSError):  # the child is gone; how it went comes below
            process.stdin.write(request.encode() + b"\n" + content)
            process.stdin.flush()
            ready = process.stdout.read(1)
            if ready and process.stdout.read(1):
                # each answer has two bytes: the child is ready for the request, and has survived it
                return None
        code = process.wait()
        self._end()
        if code >= 0 and os.name == "posix":
            self._unusable(f"it ended with exit code {code}")
            return None
        return _signal(code)

    def _started(self) -> "subprocess.Popen[bytes] | None":
        """The child of this very process: one that a fork inherited belongs to its parent."""
        if self._process is not None and (self._owner != os.getpid() or self._process.poll() is not None):
            self._end()
        if self._process is None and self._usable:
            try:
                self._process = subprocess.Popen(
                    [sys.executable, "-m", WORKER],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.DEVNULL,
                    env=environment(),
                )
                self._owner = os.getpid()
            except OSError as error:
                self._unusable(str(error))
        return self._process

    def _unusable(self, reason: str) -> None:
        self._usable = False
        warnings.warn(
            f"models are not tried in a process of their own before they are loaded: {sys.executable} cannot be started for it ({reason})",
            RuntimeWarning,
            stacklevel=4,
        )

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is None or self._owner != os.getpid():
            return
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                with suppress(OSError):
                    stream.close()
        process.kill()
        process.wait()


def _signal(code: int) -> str:
    try:
        return signal.Signals(-code).name
    except ValueError:
        return f"exit code {code:#x}" if code > 0 else f"signal {-code}"


_GUARD = _Guard()
