"""A bundle for a Jetson, and what runs it in tests: modules and programs that stand in for TensorRT's."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import onnx

from onnx_lathe.runtime.targets.core.base import Artifact
from onnx_lathe.runtime.targets.jetson.jetson import Jetson
from tests.support import quantized
from tests.support.tensorrt_bindings import ELEVEN, STAND_IN, TEN, filled

QUIET = lambda text: None  # noqa: E731

WITH_DLA = """
DeviceType = enum.Enum("DeviceType", ["GPU", "DLA"])
Config.allowed += ("default_device_type", "DLA_core")
Config.can_run_on_DLA = lambda self, layer: layer.name != "pool"
Builder.num_DLA_cores = @CORES@

class Layer:
    def __init__(self, name): self.name = name

Network.num_layers = 2
Network.get_layer = lambda self, index: Layer(["conv", "pool"][index])
"""
"""What 10.3 and 11.4 have for DLA beside what the stand-in has."""

TRTEXEC = """#!/bin/sh
for argument in "$@"; do echo "$argument"; done >> @FOLDER@/arguments
echo "&&&& RUNNING TensorRT.trtexec [TensorRT v@VERSION@] [b30] # trtexec $*"
case "$*" in *--help*) exit 0 ;; esac
@BEFORE@
for argument in "$@"; do
    case "$argument" in --saveEngine=*) echo engine > "${argument#--saveEngine=}" ;; esac
done
exit @CODE@
"""


def write(folder: Path, model: onnx.ModelProto | None = None, **options) -> tuple[Artifact, Path]:
    """A bundle of the small LeNet, or of `model`, without stored inputs: (what was built, its folder)."""
    source = folder / "lowered.onnx"
    onnx.save(model or quantized.lenet(codebook=False), source)
    (folder / "out").mkdir(exist_ok=True)
    artifact = Jetson().build(source, folder / "out", Jetson.Config(**options), QUIET)
    return artifact, folder / "out" / "model.jetson"


def library(folder: Path, version: str = "10.3.0", cores: int = 2, **changes: str) -> Path:
    """Puts a module `tensorrt` of that version into `folder`, which then is for PYTHONPATH."""
    marks = {"VERSION": version, "FLAGS": repr(_flags(version)), "CORES": str(cores)}
    source = filled(STAND_IN + WITH_DLA, **changes, **marks)
    package = folder / "tensorrt"
    package.mkdir(parents=True, exist_ok=True)
    (package / "__init__.py").write_text(source, encoding="utf-8")
    return folder


def _flags(version: str) -> dict[str, object]:
    known = TEN if version.startswith("10.") else ELEVEN
    return known | {"BuilderFlag": list(dict.fromkeys([*known["BuilderFlag"], "GPU_FALLBACK"]))}


def build_py(
    bundle: Path, site: Path | None, *arguments: str, **environment: str
) -> subprocess.CompletedProcess[str]:
    """Runs build.py by itself: nothing of Lathe is on its path but what the bundle holds."""
    kept = {
        name: os.environ[name]
        for name in ("PATH", "SYSTEMROOT", "LD_LIBRARY_PATH", "FAKE_GPU")
        if name in os.environ
    }
    path = {"PYTHONPATH": str(site)} if site else {}
    command = [sys.executable, str(bundle / "build.py"), *arguments]
    return subprocess.run(command, env=kept | path | environment, capture_output=True, text=True, timeout=120, check=False, cwd=bundle.parent)  # fmt: skip


def names(bundle: Path) -> set[str]:
    return {path.relative_to(bundle).as_posix() for path in bundle.rglob("*")}


def made(bundle: Path, before: set[str]) -> set[str]:
    """Files that are new since `before`."""
    return names(bundle) - before


def heed_signals() -> None:
    """In a process that begins: tests that run in the background of a shell ignore Ctrl-C, and so would it."""
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):
        signal.signal(getattr(signal, name), signal.SIG_DFL)


def trtexec(folder: Path, version: str = "100300", before: str = "", code: int = 0) -> Path:
    """A program that writes its arguments, a line each, to `arguments` beside it, and an engine."""
    program = folder / "trtexec"
    text = TRTEXEC
    marks = {"FOLDER": str(folder), "VERSION": version, "BEFORE": before, "CODE": str(code)}
    for mark, value in marks.items():
        text = text.replace(f"@{mark}@", value)
    program.write_text(text, encoding="utf-8")
    program.chmod(0o755)
    return program


def build_sh(bundle: Path, program: Path | None, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": os.environ["PATH"]} | ({"TRTEXEC": str(program)} if program else {})
    command = [str(bundle / "build.sh"), *arguments]
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False, cwd=bundle.parent)  # fmt: skip


def one_line(done: subprocess.CompletedProcess[str], code: int) -> str:
    """The one line that a script ends with, when it ends with that exit code."""
    assert done.returncode == code, (done.returncode, done.stdout, done.stderr)
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1, done.stderr
    assert "Traceback" not in done.stderr
    return lines[0]
