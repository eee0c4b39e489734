"""What LiteRT computes of a file, found out in a process of its own, which a file might end."""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from onnx_lathe.runtime.targets.core.asking import ask

WORKER = "onnx_lathe.runtime.targets.litert.worker"


def outputs_of(path: Path, feeds: Mapping[str, np.ndarray], threads: int = 1) -> dict[str, np.ndarray]:
    """Outputs by name. Raises TargetError where LiteRT refuses the file or the feeds, or ends."""
    with tempfile.TemporaryDirectory(prefix="lathe-") as scratch:
        given, results = Path(scratch) / "feeds.npz", Path(scratch) / "results.npz"
        names = list(feeds)
        arrays: dict[str, Any] = {f"input{place}": feeds[name] for place, name in enumerate(names)}
        np.savez(given, **arrays)
        request = {
            "path": str(path.resolve()),
            "names": names,
            "feeds": str(given),
            "results": str(results),
            "threads": threads,
        }
        outputs = ask(WORKER, request, "LiteRT", "run the model once")
        with np.load(results) as found:
            return {name: found[f"output{place}"] for place, name in enumerate(outputs)}
