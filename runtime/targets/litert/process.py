"""What LiteRT computes of a file, found out in a process of its own, which a file might end."""

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from onnx_lathe.errors import TargetError
from onnx_lathe.runtime.targets.core.asking import ask
from onnx_lathe.runtime.targets.litert.running import XNNPACK

WORKER = "onnx_lathe.runtime.targets.litert.worker"


def survive(
    path: Path, feeds: Mapping[str, np.ndarray], kernels: Sequence[str] = (XNNPACK,), threads: int = 1
) -> dict[str, str]:
    """Runs the file once with each kind of kernels. Returns for each why LiteRT refuses; empty if it does not.

    Raises TargetError where it ends the process.
    """
    with tempfile.TemporaryDirectory(prefix="lathe-") as scratch:
        given, names = Path(scratch) / "feeds.npz", list(feeds)
        arrays: dict[str, Any] = {f"input{place}": feeds[name] for place, name in enumerate(names)}
        np.savez(given, **arrays)
        request = {
            "path": str(path.resolve()),
            "names": names,
            "feeds": str(given),
            "threads": threads,
            "kernels": list(kernels),
        }
        return dict(ask(WORKER, request, "LiteRT", "run the model once"))


def try_once(path: Path, feeds: Mapping[str, np.ndarray], threads: int = 1) -> None:
    """Raises TargetError where LiteRT refuses the file or the feeds, or ends the process."""
    if reason := survive(path, feeds, threads=threads)[XNNPACK]:
        raise TargetError(reason)
