"""How much memory a model takes: the growth of a process that loads and runs it, measured in one of its own.

Peak resident size from before the model is loaded to after RUNS runs of one sample, on one thread: the weights and what
loading copies of them, the runtime's arena, activations, and kernels' scratch. Python, numpy and ONNX Runtime itself are
not counted; what they have free is used first, so that a model of less than some megabytes may show less than it is.
"""

import json
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from onnx_lathe.errors import ModelError
from onnx_lathe.runtime.processes import environment, running
from onnx_lathe.runtime.running.bfloat16 import storable

RUNS = 3
LIMIT_S = 600.0


def unmeasured() -> str | None:
    """Why it cannot be measured here; None if it can."""
    if sys.platform == "win32":
        return "the peak of a process is not read on Windows"
    return None


def peak_bytes(model: Path, feeds: Mapping[str, np.ndarray]) -> int:
    """Of a file that ONNX Runtime opens. Raises ModelError if it does not run."""
    with tempfile.TemporaryDirectory(prefix="lathe-") as folder:
        file = Path(folder) / "feeds.npz"
        np.savez(file, *map(storable, feeds.values()))
        request = {"model": str(model.resolve()), "names": list(feeds), "feeds": str(file), "runs": RUNS}
        command = [sys.executable, "-m", "onnx_lathe.runtime.running.memory_worker"]
        with running(command, environment(), LIMIT_S, stderr=subprocess.PIPE) as child:
            said, complaint = child.process.communicate(json.dumps(request).encode())
        if child.process.returncode or child.overdue:
            last = (complaint.decode(errors="replace").strip().splitlines() or ["no message"])[-1]
            reason = f"not done after {LIMIT_S:g} s" if child.overdue else last
            raise ModelError(f"{model}: its memory cannot be measured: {reason}")
        return int(json.loads(said.splitlines()[-1])["bytes"])
