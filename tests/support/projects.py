"""A user's project whose modules bear names that Lathe's folders have, and commands as a user runs them."""

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.support.models import ROOT

NAMES = ("lathe", "optimizer", "passes", "runtime")
FILES = {
    "lathe.py": "MARK = 'own lathe'\n",
    "optimizer.py": "MARK = 'own optimizer'\n",
    "passes.py": "MARK = 'own passes'\n",
    "runtime/__init__.py": "",
    "runtime/clock.py": "MARK = 'own runtime'\n",
}
HOOK = """
import lathe, optimizer, passes
from runtime.clock import MARK

def retrain(module, job):
    print("the hook has", lathe.MARK, optimizer.MARK, passes.MARK, MARK, flush=True)
"""
LOADER = """
import lathe, optimizer, passes
from runtime.clock import MARK
import numpy as np

def batches():
    print("the loader has", lathe.MARK, optimizer.MARK, passes.MARK, MARK, flush=True)
    for seed in range(4):
        draw = np.random.default_rng(seed)
        yield draw.random((8, 1, 28, 28), np.float32), draw.integers(0, 10, 8)
"""
FOUND = "own lathe own optimizer own passes own runtime"
"""What both print when each found the user's modules."""


def write(folder: Path, files: dict[str, str]) -> Path:
    """The folder, with the files in it."""
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text, encoding="utf-8")
    return folder


def run(
    command: Sequence[str], cwd: Path, path: Sequence[Path] = (), code: int | None = 0
) -> subprocess.CompletedProcess[str]:
    """Runs the command with this checkout behind `path` on PYTHONPATH, and checks its exit code."""
    given = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    paths = [*map(str, path), *filter(None, given), str(ROOT)]
    done = subprocess.run(
        command,
        cwd=cwd,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(paths), "COLUMNS": "200"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert code is None or done.returncode == code, f"exit code {done.returncode}\n{done.stdout}{done.stderr}"
    return done


def lathe(*arguments: str) -> list[str]:
    """`python -m onnx_lathe ARGUMENTS`."""
    return [sys.executable, "-m", "onnx_lathe", *arguments]


def script(*arguments: str) -> list[str]:
    """`optimize ARGUMENTS`, as an installation has it beside its Python."""
    return [str(Path(sys.executable).with_name("optimize")), *arguments]
