"""The command held to what SECURITY.md promises of hostile input: an exit code, one line, bounded memory and time."""

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import pytest

from onnx_lathe.optimizer.cli import main

T = TypeVar("T")
SPARE_BYTES = 500_000_000
LIMIT_S = 30.0


@dataclass(frozen=True)
class Ended:
    """`line` is what was said on standard error, a single line for every refusal."""

    code: int
    line: str


def bounded(capfd: pytest.CaptureFixture[str], arguments: list[str | Path], file_bytes: int = 0) -> Ended:
    """Runs the command in this process. Fails for a defect's exit code, a traceback, a refusal of more or fewer lines
    than one, half a minute, or a peak of memory above twice `file_bytes` and 500 MB more than before.
    """
    capfd.readouterr()
    before, began = _reset_peak(), time.monotonic()
    code = main([str(word) for word in arguments])
    taken, grown = time.monotonic() - began, _status("VmHWM") - before
    printed, said = capfd.readouterr()
    assert "Traceback" not in said
    assert code in (0, 2, 4), said
    lines = said.strip().splitlines()
    if code == 4 and not lines:
        assert "FAILED: " in printed
    elif code:
        assert len(lines) == 1, said
        assert lines[0].startswith("optimize: "), said
    assert taken < LIMIT_S, f"{taken:.0f} s"
    assert grown < 2 * file_bytes + SPARE_BYTES, f"{grown / 1e6:.0f} MB more"
    return Ended(code, said.strip())


def grown_by(call: Callable[[], T]) -> tuple[T, int]:
    """What the call returns, and the bytes of its peak above what there was before."""
    before = _reset_peak()
    returned = call()
    return returned, _status("VmHWM") - before


def _reset_peak() -> int:
    """Bytes of memory now, from which on the peak is counted, or the peak so far where it cannot be begun anew; 0 where the
    system is not Linux.
    """
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return _status("VmHWM")
    return _status("VmRSS")


def _status(key: str) -> int:
    try:
        lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    except OSError:
        return 0
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith(key + ":")), 0)
