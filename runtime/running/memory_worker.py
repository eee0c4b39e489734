"""The child of memory.py: loads one model, runs it, and says by how many bytes that made it grow at most.

Reads one document of JSON: "model" and "feeds", files, "names" of the inputs, "runs". Writes {"bytes": N}.
"""

import gc
import json
import os
import sys
from contextlib import suppress
from pathlib import Path

import numpy as np

from onnx_lathe.errors import LatheError
from onnx_lathe.runtime.running import ort


def main() -> None:
    request = json.load(sys.stdin)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints is no answer
    with np.load(request["feeds"]) as stored:
        feeds = {name: stored[f"arr_{at}"] for at, name in enumerate(request["names"])}
    ort.saturates()  # loads what any session needs
    gc.collect()
    before = _restarted()
    try:
        session = ort.as_opened(Path(request["model"]), 1)
        for _ in range(request["runs"]):
            ort.run(session, feeds)
    except LatheError as error:
        sys.exit(str(error))
    json.dump({"bytes": max(_peak() - before, 0)}, answers)


def _restarted() -> int:
    """Bytes that are resident; the peak counts from here on, where the system allows that."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return _stated("VmRSS") or _peak()


def _peak() -> int:
    if known := _stated("VmHWM"):
        return known
    import resource

    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else 1024 * most


def _stated(name: str) -> int:
    """Bytes, by Linux; 0 elsewhere."""
    try:
        text = Path("/proc/self/status").read_text(encoding="utf-8")
    except OSError:
        return 0
    lines = (line.split() for line in text.splitlines() if line.startswith(f"{name}:"))
    return next((1024 * int(words[1]) for words in lines), 0)


if __name__ == "__main__":
    main()
