"""Runs one request in a TensorRT process of its own (worker.py) and turns all that can happen to it into
TargetError.
"""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from onnx_lathe.errors import TargetError
from onnx_lathe.runtime.processes import environment, running
from onnx_lathe.runtime.targets.core.base import Progress
from onnx_lathe.runtime.targets.tensorrt.conversation import converse, ending, last_words
from onnx_lathe.runtime.user_code import search_path

WORKER = "onnx_lathe.runtime.targets.tensorrt.worker"


def ask(
    request: Mapping[str, Any], folder: Path, progress: Progress, time_limit_s: float | None = None
) -> dict[str, Any]:
    """The worker's answer. `folder` is an empty scratch folder, which becomes the worker's working directory.

    Raises TargetError with TensorRT's reasons, or how the process ended. The process never outlives this
    call.
    """
    with (folder / "stderr.txt").open("w+b") as errors:
        command = [sys.executable, "-m", WORKER]
        try:
            with running(command, environment(), time_limit_s, stderr=errors, cwd=folder) as child:
                message = converse(child.process, {"path": search_path(), **request}, progress)
                child.process.wait()
        except OSError as error:
            raise TargetError(f"cannot start {sys.executable}: {error.strerror}") from error
        if "answer" in message:
            answer: dict[str, Any] = message["answer"]
            return answer
        if "refusal" in message:
            raise TargetError(message["refusal"])
        if child.overdue:
            raise TargetError(
                f"not built within the time limit of {time_limit_s:g} s; give more with time_limit"
            )
        errors.seek(0)
        raise TargetError(
            f"the builder ended with {ending(child.process.returncode)}{last_words(errors.read())}"
        )
