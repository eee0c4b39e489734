"""A machine with a GPU, made up: a compiled stand-in for CUDA's driver, and a stand-in for TensorRT that computes."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from onnx_lathe.runtime.targets.tensorrt.engine_process import compute_here

FOLDER = Path(__file__).parent
VERSIONS = {
    "10.3.0": "tensorrt",
    "10.13.3.9": "tensorrt",
    "11.4.0.106": "tensorrt",
    "1.7.1.116": "tensorrt_rtx",
}
"""Version -> its library."""


def missing() -> str:
    """Why there can be no such machine here; empty if there can."""
    if sys.platform != "linux":
        return "the stand-in for CUDA's driver is for Linux"
    return "" if shutil.which("cc") else "there is no C compiler"


@cache
def _driver() -> bytes:
    """The stand-in for CUDA's driver, compiled once for all machines."""
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder, "libcuda.so.1")
        command = ["cc", "-shared", "-fPIC", "-o", str(made), str(FOLDER / "cuda_driver.c")]
        subprocess.run(command, check=True, timeout=60)
        return made.read_bytes()


class Machine:
    """Child processes find the libraries by LD_LIBRARY_PATH and sys.path, as the parent's say."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.folder, self._patch = folder / "machine", monkeypatch
        self.folder.mkdir()
        (self.folder / "libcuda.so.1").write_bytes(_driver())
        inherited = os.environ.get("LD_LIBRARY_PATH", "")
        monkeypatch.setenv("LD_LIBRARY_PATH", os.pathsep.join(filter(None, [str(self.folder), inherited])))
        monkeypatch.syspath_prepend(self.folder)
        self.has_gpu("86")

    def has_gpu(self, compute: str) -> None:
        """Of that architecture, such as 86; empty: there is a driver, and no GPU."""
        self._patch.setenv("FAKE_GPU", compute)
        compute_here.cache_clear()

    def install(self, version: str, costs: Mapping[str, float] | None = None, noise: float = 0.0) -> str:
        """Returns the library's name. `costs`: milliseconds by node, NODE|int8 on integers, or by operator. `noise` is
        added to outputs, of that standard deviation, and the same to each sample.
        """
        library = VERSIONS[version]
        package = self.folder / library
        shutil.copytree(FOLDER / "fake_tensorrt", package, dirs_exist_ok=True)
        settings = {
            "version": version,
            "rtx": library == "tensorrt_rtx",
            "costs": dict(costs or {}),
            "noise": noise,
        }
        (package / "settings.json").write_text(json.dumps(settings))
        compute_here.cache_clear()
        return library

    def python(self, library: str, version: str, expression: str) -> Any:
        """What the expression gives, of `trt`, the library in that version, in a process that finds it."""
        assert self.install(version) == library
        code = f"import json, sys; sys.path.insert(0, {str(self.folder)!r}); import {library} as trt; print(json.dumps({expression}))"
        done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, timeout=60)
        return json.loads(done.stdout)
