"""One request to a process of its own, which TensorRT runs in: a crash ends that process alone, and so does Ctrl-C."""

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from onnx_lathe.runtime.targets.jetson.device.refusal import RefusedError
from onnx_lathe.runtime.targets.tensorrt.conversation import converse, ending, last_words

START = "import runpy, sys; sys.path[:] = sys.argv[2:]; runpy.run_module(sys.argv[1], None, '__main__', True)"
"""As `python -m` does, on the same path; PYTHONPATH cannot hold a folder with a colon in its name."""
SILENCE = " and said nothing; --log shows how far it came"


def ask(
    module: str,
    request: Mapping[str, Any],
    scratch: Path,
    progress: Callable[[str], None],
    time_limit_s: float | None = None,
) -> dict[str, Any]:
    """The answer of `python -m module`. `scratch`: an empty folder, which becomes its working directory.

    Raises RefusedError with the process's reasons, or how it ended. The process never outlives this call.
    """
    paths = [os.path.abspath(entry) for entry in sys.path]
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    overdue = threading.Event()
    with (scratch / "stderr.txt").open("w+b") as errors:
        child = subprocess.Popen(
            [sys.executable, "-c", START, module, *paths],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=errors,
            cwd=scratch,
            env=environment,
        )

        def end() -> None:
            overdue.set()
            child.kill()

        timer = threading.Timer(time_limit_s or 0, end)
        timer.daemon = True
        try:
            if time_limit_s is not None:
                timer.start()
            message = converse(child, {"path": paths, **request}, progress)
            child.wait()
        finally:
            timer.cancel()
            child.kill()
            child.communicate()
        if "answer" in message:
            answer: dict[str, Any] = message["answer"]
            return answer
        if "refusal" in message:
            raise RefusedError(message["refusal"])
        if overdue.is_set():
            raise RefusedError(f"not done within {time_limit_s:g} s; give more with --time-limit")
        errors.seek(0)
        raise RefusedError(
            f"the process ended with {ending(child.returncode)}{last_words(errors.read(), SILENCE)}"
        )
