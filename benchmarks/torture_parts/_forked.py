"""The command in a process group of its own, forked from a process that has imported everything: it starts in no time, and
can be killed with all its children.
"""

import contextlib
import ctypes
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class Ended:
    """How a command ended: its exit code, -9 of one that was killed, and what it wrote."""

    code: int
    said: str
    printed: str
    cpu_s: float


class Command:
    """`optimize ARGUMENTS`, begun. `before` runs in its process first, such as what is to go wrong there; `after` once the
    command has ended.
    """

    def __init__(
        self,
        arguments: Sequence[object],
        folder: Path,
        before: Callable[[], object] = lambda: None,
        after: Callable[[], object] = lambda: None,
    ) -> None:
        self.logs = [folder / "stdout", folder / "stderr"]
        sys.stdout.flush()
        self.number = os.fork()
        if self.number == 0:
            _serve([str(word) for word in arguments], self.logs, before, after)
        with contextlib.suppress(OSError):  # the child does it, too: whoever comes first
            os.setpgid(self.number, self.number)

    def kill(self) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.number, signal.SIGKILL)

    def running(self) -> bool:
        return os.waitid(os.P_PID, self.number, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None

    def reached(self, cpu_s: float) -> None:
        """Waits until it has computed for so many seconds, which tell where it is whatever else the machine does, or has
        ended.
        """
        while self.running() and self._cpu_s() < cpu_s:
            time.sleep(0.002)

    def _cpu_s(self) -> float:
        fields = Path(f"/proc/{self.number}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def wait(self, limit_s: float) -> Ended:
        """Raises AssertionError where it takes longer: it is killed then."""
        end = time.monotonic() + limit_s
        while self.running():
            if time.monotonic() > end:
                self.kill()
                os.waitpid(self.number, 0)
                raise AssertionError(f"hangs: no end after {limit_s:.0f} s; {self._read(1)[-300:]}")
            time.sleep(0.005)
        _, status, usage = os.wait4(self.number, 0)
        code = os.waitstatus_to_exitcode(status)
        self.kill()  # what it left running must not write into the next case
        return Ended(code, self._read(1), self._read(0), usage.ru_utime + usage.ru_stime)

    def _read(self, which: int) -> str:
        return self.logs[which].read_text(errors="replace") if self.logs[which].exists() else ""

    def children(self) -> list[int]:
        """All processes of its group but the command itself."""
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit() and int(entry.name) != self.number:
                with contextlib.suppress(OSError):
                    if os.getpgid(int(entry.name)) == self.number:
                        found.append(int(entry.name))
        return sorted(found)


def _serve(
    arguments: list[str], logs: Sequence[Path], before: Callable[[], object], after: Callable[[], object]
) -> None:
    """In the forked process; does not return."""
    code = 70
    try:
        os.setpgid(0, 0)
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        for descriptor, log in zip((1, 2), logs, strict=True):
            opened = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
            os.dup2(opened, descriptor)
            os.close(opened)
        sys.stdout, sys.stderr = (os.fdopen(os.dup(number), "w", buffering=1) for number in (1, 2))
        from onnx_lathe.optimizer.cli import main

        before()
        code = main(arguments)
        after()
        sys.stdout.flush()
    except BaseException as error:  # noqa: BLE001 - nothing may reach the process that was forked
        os.write(2, f"Traceback: {type(error).__name__}: {error}\n".encode())
    finally:
        os._exit(code)
