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
import re
import signal
import subprocess
import sys
import threading
import warnings
from contextlib import suppress
from dataclasses import asdict, replace

from onnx_lathe.runtime.files import hashing
from onnx_lathe.runtime.processes import environment
from onnx_lathe.runtime.running.settings import Settings

WORKER = "onnx_lathe.runtime.running.guard_worker"
KILLED = "the system ended it (SIGKILL), likely for lack of memory"

LARGE_BYTES = 256 << 20
UNPACKED = ("session.disable_prepacking", "1")
"""For models above that size: packing weights for the processor changes no graph, and doubles them in memory."""

READY, SURVIVED = b"r", b"rs"
"""What the child has answered when it begins to load a model, and when it has."""

_LOCATION = re.compile(rb"\x0a\x08location\x12([\x80-\xff]{0,2}[\x00-\x7f])")
"""The entry of a tensor in external data that names its file, as protobuf writes it, up to the name's length."""


def prepare() -> None:
    """Starts the child, without waiting for it: it imports ONNX Runtime meanwhile."""
    _GUARD.start()


def crash(source: bytes | str, settings: Settings) -> str | None:
    """How a process ended that loaded the model, the content or the path of an ONNX file, such as "SIGSEGV"
    or KILLED; None if it survived.

    A model that ONNX Runtime refuses is survived. Warns, and answers None, where no child can be started, or
    where it ends before it has anything to load.
    """
    return _GUARD.crash(source, settings)


def _key(source: bytes | str) -> bytes | None:
    """Equal for equal models; None for a file that cannot be read. A large file is not copied into memory, and
    external data is not read: its files' places, sizes and times of change stand for it, and nothing does where
    these cannot tell yet: the model is tried again then.
    """
    if isinstance(source, bytes):
        return hashlib.blake2b(hashlib.sha256(source).hexdigest().encode(), digest_size=16).digest()
    try:
        found = hashing.content(source)
        if not found.size_bytes:
            return None
        digest = hashlib.blake2b(found.sha256.encode(), digest_size=16)
        locations = _located(source) if found.locates else set()
    except (OSError, ValueError):  # ValueError: a null byte in the name
        return None
    if locations:
        path = os.path.abspath(source)
        digest.update(os.fsencode(path))
        for location in sorted(locations):
            digest.update(_state(os.path.join(os.fsencode(os.path.dirname(path)), location)))
    return digest.digest()


def _is_large(path: str) -> bool:
    """Whether the file and its external data are."""
    with suppress(OSError, ValueError):
        folder, locations = os.path.dirname(os.path.abspath(path)), set[bytes]()
        if os.path.getsize(path):
            locations = _located(path)
        sizes = [os.path.getsize(os.path.join(os.fsencode(folder), one)) for one in locations]
        return os.path.getsize(path) + sum(sizes) > LARGE_BYTES
    return False


def _located(path: str) -> set[bytes]:
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return _locations(content)


def _locations(content: mmap.mmap) -> set[bytes]:
    """The names of files with external data in the content of an ONNX file."""
    found = set()
    for match in _LOCATION.finditer(content):
        length = sum((byte & 0x7F) << 7 * place for place, byte in enumerate(match[1]))  # a varint
        found.add(content[match.end() : match.end() + length])
    return found


def _state(path: bytes) -> bytes:
    """Changes when the file is written again, and always of a file that was just written; one that is missing has
    one too.
    """
    try:
        found = os.stat(path)
        once = b"" if hashing.settled(found) else os.urandom(8)
        times = found.st_mtime_ns, found.st_ctime_ns
        return b"%b %d %d %d %d %d;" % (path, found.st_dev, found.st_ino, found.st_size, *times) + once
    except (OSError, ValueError):  # ValueError: a null byte in the name
        return path + b";"


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
                if not self._usable:
                    return None
                self._known[digest, settings] = how
            return self._known[digest, settings]

    def _asked(self, source: bytes | str, settings: Settings) -> str | None:
        request: dict[str, object] = {"settings": asdict(settings)}
        content = b""
        if isinstance(source, bytes):
            content, request["size"] = source, len(source)
        else:
            request["path"] = os.path.abspath(source)
            if _is_large(source):
                settings = replace(settings, entries=(*settings.entries, UNPACKED))
                request["settings"] = asdict(settings)
        message = json.dumps(request).encode() + b"\n"
        for _ in range(2):
            process = self._started()
            if process is None:
                return None
            answer = _answer(process, message, content)
            if answer == SURVIVED:
                return None
            code = process.wait()
            self._end()
            if answer == READY:
                if code < 0 or os.name != "posix":
                    return _signal(code)
                self._unusable(f"it ended with exit code {code}")
                return None
            # it had not begun to load, so the model is not why: once more
        self._unusable(f"it ended before it was ready: {_signal(code)}")
        return None

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


def _answer(process: "subprocess.Popen[bytes]", message: bytes, content: bytes) -> bytes:
    """READY where the child ended as it loaded the content, nothing where it ended before, SURVIVED else."""
    found = b""
    with suppress(OSError):  # the child is gone; the caller sees how it went
        if process.stdin is not None and process.stdout is not None:
            process.stdin.write(message)
            process.stdin.write(content)
            process.stdin.flush()
            found = process.stdout.read(1)
            found += process.stdout.read(1)
    return found


def _signal(code: int) -> str:
    if code >= 0:
        return f"exit code {code:#x}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        return f"signal {-code}"
    return KILLED if name == "SIGKILL" else name


_GUARD = _Guard()
