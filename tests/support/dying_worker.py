"""Stands in for runtime/running/guard_worker.py, and dies of any model that has the operator named Round."""

import os
import signal
import sys
from pathlib import Path

from onnx_lathe.runtime.running import guard_worker
from onnx_lathe.runtime.running.settings import Settings


def _load(model: str | bytes, settings: Settings) -> None:
    content = model if isinstance(model, bytes) else Path(model).read_bytes()
    if b"Round" in content:
        sys.stdout.flush()
        os.kill(os.getpid(), signal.SIGSEGV)


if __name__ == "__main__":
    guard_worker._load = _load
    guard_worker.main()
