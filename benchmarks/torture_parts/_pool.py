"""Cases in processes of their own, which are held to bounds: one that dies, hangs or takes too much is named, and the next go on.

A process does many cases one after another, since it takes seconds to import what they need. Memory is the peak of each
case (Linux counts anew when asked) above what the process had when it had imported everything, and the same of the
children that the case had. Address space is bounded too, so that a case cannot take the whole machine down.
"""

import contextlib
import multiprocessing
import os
import resource
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

ADDRESSES = 4 << 30
"""Bytes that may be reserved beyond those of the imports."""
FILE_BYTES = 256 << 20
"""A case may write no larger file."""
RENEWED_AFTER = 1000
"""Cases after which a process is replaced by a fresh one."""
START_S = 600.0
"""To import PyTorch and to make the onnx package's models takes minutes on a busy machine."""


@dataclass(frozen=True)
class Done:
    """One case: `value` is what the function returned, or None where `fault` says why there is none."""

    number: int
    value: Any = None
    fault: str = ""
    peak_bytes: int = 0
    seconds: float = 0.0


def each(
    function: Callable[[int], Any],
    warm: Callable[[], object],
    numbers: Iterable[int],
    limit_s: float,
    workers: int = 1,
    start_s: float = START_S,
) -> Iterator[Done]:
    """What the function makes of each number, as it comes. `function` and `warm`, which runs first in every process, are
    pickled and may take `start_s` seconds. A case that takes more than `limit_s` seconds ends with its process.
    """
    pending = iter(numbers)
    pool = [_Worker(function, warm, start_s) for _ in range(workers)]
    try:
        while True:
            for worker in pool:
                if worker.number is None and (number := next(pending, None)) is not None:
                    worker.give(number)
            busy = [worker for worker in pool if worker.number is not None]
            if not busy:
                return
            wait([worker.pipe for worker in busy], timeout=0.5)
            for worker in busy:
                if (done := worker.taken(limit_s)) is not None:
                    yield done
    finally:
        for worker in pool:
            worker.end()


class _Worker:
    """A process and the case that it is at."""

    def __init__(self, function: Callable[[int], Any], warm: Callable[[], object], start_s: float) -> None:
        self.function, self.warm, self.start_s = function, warm, start_s
        self.number: int | None = None
        self.process: Any = None

    def give(self, number: int) -> None:
        if self.process is None or self.cases >= RENEWED_AFTER:
            self.end()
            context = multiprocessing.get_context("spawn")
            self.pipe, theirs = context.Pipe()
            self.process = context.Process(target=_serve, args=(self.function, self.warm, theirs))
            self.process.start()
            theirs.close()
            self.cases = 0
            if not self.pipe.poll(self.start_s) or self.pipe.recv() != "ready":
                raise RuntimeError("a process for cases does not start")
        self.number, self.began, self.cases = number, time.monotonic(), self.cases + 1
        self.pipe.send(number)

    def taken(self, limit_s: float) -> Done | None:
        """What became of the case; None while it runs."""
        number, self_seconds = self.number, time.monotonic() - self.began
        assert number is not None
        if self.pipe.poll():
            try:
                done: Done = self.pipe.recv()
            except EOFError:
                self.process.join()
                code = self.process.exitcode
                how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
                done = Done(number, fault=f"the process died: {how}", seconds=self_seconds)
                self.end()
        elif self_seconds > limit_s:
            done = Done(number, fault=f"hangs: no end after {limit_s:.0f} s", seconds=self_seconds)
            self.end()
        else:
            return None
        self.number = None
        return done

    def end(self) -> None:
        """Ends the process and its children, which are of its session."""
        if self.process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.join()
        self.pipe.close()
        self.process = None


def _serve(function: Callable[[int], Any], warm: Callable[[], object], pipe: Connection) -> None:
    os.setsid()
    warm()
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_FSIZE, (FILE_BYTES, FILE_BYTES))
    most = _status("VmSize") + ADDRESSES
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    baseline = {os.getpid(): _status("VmRSS")} | {child: _status("VmRSS", child) for child in _children()}
    pipe.send("ready")
    while True:
        try:
            number = pipe.recv()
        except EOFError:
            return
        began = time.monotonic()
        for process in (os.getpid(), *_children()):
            with contextlib.suppress(OSError):
                Path(f"/proc/{process}/clear_refs").write_text("5")  # the peak is counted from here
        value, fault = None, ""
        try:
            value = function(number)
        except BaseException as error:  # noqa: BLE001 - what a case raises is what became of it
            lines = traceback.extract_tb(error.__traceback__)
            place = f"{Path(lines[-1].filename).name}:{lines[-1].lineno}" if lines else ""
            fault = f"{type(error).__name__} at {place}: {error}"
        ordinary = max(baseline.values())
        peaks = [
            _status("VmHWM", process) - baseline.get(process, ordinary)
            for process in (os.getpid(), *_children())
        ]
        pipe.send(Done(number, value, fault, max(peaks), time.monotonic() - began))
        sys.stdout.flush()


def _status(key: str, process: int | str = "self") -> int:
    """Bytes of an entry of /proc/PID/status; 0 of a process that is gone."""
    with contextlib.suppress(OSError):
        for line in Path(f"/proc/{process}/status").read_text().splitlines():
            if line.startswith(key + ":"):
                return 1024 * int(line.split()[1])
    return 0


def _children() -> list[int]:
    found: list[int] = []
    for task in Path("/proc/self/task").iterdir():
        with contextlib.suppress(OSError):
            found += [int(one) for one in (task / "children").read_text().split()]
    return found
