"""Whether ONNX Runtime survives a model: a child process loads it first.

ONNX Runtime's optimizer can crash the process that loads a model (seen: SIGSEGV in MatmulTransposeFusion).
One child serves the whole process: it is started when it is first wanted, and again after a crash; it
loads each model once for each way of opening it.
"""

import atexit
import hashlib
import json
import mmap
import os
import signal
import subprocess
import sys
import threading
import warnings
from contextlib import suppress
from dataclasses import asdict

from onnx_lathe.runtime.processes import environment
from onnx_lathe.runtime.running.settings import Settings

WORKER = "onnx_lathe.runtime.running.guard_worker"
KILLED = "SIGKILL"


def prepare() -> None:
    """Starts the child, without waiting for it: it imports ONNX Runtime meanwhile."""
    _GUARD.start()


def crash(source: bytes | str, settings: Settings) -> str | None:
    """How a process ended that loaded the model, the content or the path of an ONNX file, such as "SIGSEGV";
    None if it survived.

    A model that ONNX Runtime refuses is survived. Warns, and answers None, where no child can be started.
    """
    return _GUARD.crash(source, settings)


def _key(source: bytes | str) -> bytes | None:
    """Equal for equal models; None for a file that cannot be read. A large file is not copied into memory."""
    if isinstance(source, bytes):
        return hashlib.blake2b(source, digest_size=16).digest()
    try:
        with open(source, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            digest = hashlib.blake2b(content, digest_size=16)
            if content.find(b"location") >= 0:  # data in another file, which the path finds
                digest.update(os.path.abspath(source).encode())
            return digest.digest()
    except (OSError, ValueError):  # ValueError: an empty file
        return None


class _Guard:
    def __init__(self) -> None:
        self._process: subprocess.Popen[bytes] | None = None
        self._owner = 0
        self._usable = True
        self._lock = threading.Lock()
        self._known: dict[tuple[bytes, Settings], str | None] = {}
        atexit.register(self._end)

    def start(self) -> None:
        with self._lock:
            self._started()

    def crash(self, source: bytes | str, settings: Settings) -> str | None:
        with self._lock:
            digest = _key(source)
            if digest is None:
                return None
            if (digest, settings) not in self._known:
                how = self._asked(source, settings)
                if how == KILLED:
                    # the system ends processes too when memory is short: once more, when it may be free again
                    return self._asked(source, settings)
                self._known[digest, settings] = how
            return self._known[digest, settings]

    def _asked(self, source: bytes | str, settings: Settings) -> str | None:
        process = self._started()
        if process is None or process.stdin is None or process.stdout is None:
            return None
        request: dict[str, object] = {"settings": asdict(settings)}
        content = b""
        if isinstance(source, bytes):
            content, request["size"] = source, len(source)
        else:
            request["path"] = os.path.abspath(source)
        with suppress(OSError):  # the child is gone; how it went comes below
            process.stdin.write(json.dumps(request).encode() + b"\n")
            process.stdin.write(content)
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
