"""build.py of a bundle, ended by Ctrl-C or another signal: what is left, and what it says of that."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from onnx_lathe.runtime.targets.jetson.jetson import Jetson
from tests.support.jetson import QUIET, heed_signals, library, made, names, write

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_an_interruption_leaves_nothing(tmp_path: Path, name: str) -> None:
    _, bundle = write(tmp_path)
    before = names(bundle)
    begun = tmp_path / "begun"
    site = library(
        tmp_path / "site",
        BUILD=f"open({str(begun)!r}, 'w').write(str(__import__('os').getpid())); __import__('time').sleep(60)",
    )
    child = started(bundle, site)
    wait_for(child, lambda: begun.exists() and begun.read_text())
    # a terminal interrupts all processes of the command, kill the one it is given
    (os.killpg if name == "SIGINT" else os.kill)(child.pid, getattr(signal, name))
    _, errors = child.communicate(timeout=20)
    assert child.returncode == 130
    assert errors.strip() == "build.py: interrupted; nothing was written"
    assert made(bundle, before) == set()
    with pytest.raises(ProcessLookupError):
        os.kill(int(begun.read_text()), 0)


def test_an_interruption_after_the_build_says_what_was_written(tmp_path: Path) -> None:
    artifact, bundle = write(tmp_path)
    Jetson().verify(tmp_path / "lowered.onnx", artifact, Jetson.Config(reference="random"), {}, QUIET)
    before = names(bundle)
    begun = tmp_path / "begun"
    site = library(tmp_path / "site")
    with (site / "tensorrt" / "__init__.py").open("a", encoding="utf-8") as file:
        file.write(f"if 'verifying' in ' '.join(__import__('sys').orig_argv):\n    open({str(begun)!r}, 'w')\n    __import__('time').sleep(60)\n")  # fmt: skip
    child = started(bundle, site, "--verify")
    wait_for(child, begun.exists)
    os.killpg(child.pid, signal.SIGINT)
    _, errors = child.communicate(timeout=20)
    assert child.returncode == 130
    assert errors.splitlines()[-1] == "build.py: interrupted; model.engine, model.engine.json were written"
    assert made(bundle, before) == {"model.engine", "model.engine.json"}


def test_an_interruption_while_it_starts_is_one_line(tmp_path: Path) -> None:
    _, bundle = write(tmp_path)
    begun = tmp_path / "begun"
    site = library(tmp_path / "site")
    (site / "numpy.py").write_text(f"open({str(begun)!r}, 'w')\n__import__('time').sleep(60)")
    child = started(bundle, site)
    wait_for(child, begun.exists)
    os.killpg(child.pid, signal.SIGINT)
    _, errors = child.communicate(timeout=20)
    assert child.returncode == 130
    assert errors.strip() == "build.py: interrupted; nothing was written"


def started(bundle: Path, site: Path, *arguments: str) -> subprocess.Popen[str]:
    environment = {"PATH": os.environ["PATH"], "PYTHONPATH": str(site)}
    return subprocess.Popen(
        [sys.executable, str(bundle / "build.py"), *arguments],
        env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        preexec_fn=heed_signals,
    )  # fmt: skip


def wait_for(child: subprocess.Popen[str], begun: Callable[[], object]) -> None:
    while not begun():
        assert child.poll() is None, child.communicate()
        time.sleep(0.05)
