"""A command that a signal ends in the middle of a build: one line, exit code 130, and nothing half-written stays."""

import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest

from onnx_lathe.optimizer.cli import main
from onnx_lathe.runtime import interruption
from onnx_lathe.runtime.processes import environment
from onnx_lathe.runtime.targets.coreml import package
from tests.support import faults
from tests.support.jetson import heed_signals

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")

COMMAND = """
import signal, sys, time
from onnx_lathe.optimizer.cli import main
from onnx_lathe.runtime.targets.core.registry import find

def build(self, model, directory, options, progress):
    (directory / "half.onnx").write_bytes(b"half")
    try:
        signal.raise_signal(getattr(signal, sys.argv[1]))
    finally:  # a terminal that closes sends several
        signal.raise_signal(signal.SIGHUP)
    time.sleep(600)

find("onnx").build = build
sys.exit(main(sys.argv[2:]))
"""


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_a_signal_in_the_middle_of_a_build_leaves_nothing(tmp_path: Path, name: str) -> None:
    onnx.save(faults.network(), tmp_path / "net.onnx")
    np.savez(tmp_path / "data.npz", x=faults.samples())
    out = tmp_path / "out"
    given = [str(tmp_path / "net.onnx"), "--passes", "fold", "--eval", str(tmp_path / "data.npz")]
    ended = subprocess.run(
        [sys.executable, "-c", COMMAND, name, *given, "--out", str(out), "--no-latency", "--quiet"],
        env=environment(), capture_output=True, text=True, check=False, timeout=300, preexec_fn=heed_signals,
    )  # fmt: skip
    assert ended.returncode == 130, ended.stderr
    assert [line[:22] for line in ended.stderr.splitlines()] == ["optimize: interrupted;"]
    assert sorted(path.name for path in out.iterdir()) == ["steps"]


@pytest.fixture
def listening() -> Iterator[None]:
    """As a command begins, whatever the tests were started with."""
    before = {number: signal.signal(number, signal.SIG_DFL) for number in interruption.SIGNALS}
    with interruption.signals_interrupt():
        yield
    for number, handler in before.items():
        signal.signal(number, handler)


def load_carelessly(done: list[str]) -> None:
    """As packages do with imports that they can do without."""
    try:
        signal.raise_signal(signal.SIGTERM)
        done.append("loaded")
    except:  # noqa: E722
        pass
    done.append("went on")


def test_foreign_code_that_catches_everything_does_not_lose_it(listening: None) -> None:
    done: list[str] = []
    with pytest.raises(KeyboardInterrupt), interruption.held():
        load_carelessly(done)
    assert done == ["loaded", "went on"]


def test_a_second_one_does_not_wait(listening: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(interruption, "CLEANING_S", 0.0)
    with interruption.held():
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)


def test_what_others_handle_and_what_is_ignored_stays(listening: None) -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    heard: list[int] = []
    signal.signal(signal.SIGTERM, lambda number, frame: heard.append(number))
    with interruption.signals_interrupt():
        signal.raise_signal(signal.SIGHUP)
        signal.raise_signal(signal.SIGTERM)
    assert heard == [signal.SIGTERM]


def test_a_command_leaves_the_signals_as_they_were() -> None:
    before = [signal.getsignal(number) for number in interruption.SIGNALS]
    assert main(["--version"]) == 0
    assert [signal.getsignal(number) for number in interruption.SIGNALS] == before


def test_a_command_runs_in_any_thread(capsys: pytest.CaptureFixture[str]) -> None:
    codes: list[int] = []
    thread = threading.Thread(target=lambda: codes.append(main(["--version"])))
    thread.start()
    thread.join()
    assert codes == [0]


def test_coremltools_is_not_interrupted_while_it_loads(
    listening: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = """
import signal
try:
    signal.raise_signal(signal.SIGTERM)
    loaded = True
except:
    loaded = False
"""
    (tmp_path / "coremltools.py").write_text(source, encoding="utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setitem(sys.modules, "coremltools", sys)  # what is there now comes back afterwards
    del sys.modules["coremltools"]
    with pytest.raises(KeyboardInterrupt):
        package.library.__wrapped__()
    assert sys.modules["coremltools"].loaded
