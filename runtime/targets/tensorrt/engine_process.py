"""The parent's side of a process that runs engines (engine_worker.py): requests, and what can become of them."""

import sys
import tempfile
import threading
import weakref
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import cache
from typing import Any

import numpy as np

from onnx_lathe.errors import ModelError, TargetError
from onnx_lathe.runtime import wire
from onnx_lathe.runtime.processes import environment, running
from onnx_lathe.runtime.targets.tensorrt.conversation import ending, last_words
from onnx_lathe.runtime.user_code import search_path

WORKER = "onnx_lathe.runtime.targets.tensorrt.engine_worker"
LIMIT_S = 600.0
"""For one answer: far more than any takes on a GPU that works. A request is a few calls of an engine, or loads one."""

Answer = tuple[dict[str, Any], dict[str, np.ndarray]]


@cache
def compute_here(library: str) -> str | None:
    """The architecture of the GPU on which the library runs engines here, such as sm86; None if there is none."""
    try:
        process = EngineProcess(library)
    except TargetError:
        return None
    process.close()
    return process.compute


class EngineProcess:
    """One process with one library on the first GPU. It ends with `close`, or when nobody holds this any more.

    Raises TargetError where there is no GPU, or the library cannot be used.
    """

    def __init__(self, library: str) -> None:
        stack = ExitStack()
        self._end = weakref.finalize(self, stack.close)
        self._library = library
        self._errors = stack.enter_context(tempfile.TemporaryFile())  # noqa: SIM115
        try:
            child = running([sys.executable, "-m", WORKER], environment(), stderr=self._errors)
            self._child = stack.enter_context(child)
            found = self.ask({"do": "hello"})[0]
        except OSError as error:
            raise TargetError(f"cannot start {sys.executable}: {error.strerror}") from error
        except BaseException as error:
            self.close()
            if isinstance(error, ModelError):
                raise TargetError(str(error)) from error
            raise
        self.gpu: str = found["gpu_name"]
        self.compute: str = found["compute"]
        self.version: str = found["version"]

    def ask(self, request: Mapping[str, Any], arrays: Mapping[str, np.ndarray] | None = None) -> Answer:
        """Raises ModelError for what the engine or its feeds do not allow, TargetError where the GPU fails, the process
        ends, or it gives no answer within LIMIT_S, which ends it.
        """
        process = self._child.process
        assert process.stdin is not None
        assert process.stdout is not None
        message = {"library": self._library, "path": search_path(), **request}
        try:
            with self._limited(LIMIT_S):
                wire.send(process.stdin, message, arrays)  # type: ignore[arg-type]
                answer = wire.receive(process.stdout)  # type: ignore[arg-type]
        except BrokenPipeError:
            answer = None
        except BaseException:  # half a conversation: what comes next would be taken for another answer
            self.close()
            raise
        if answer is None:
            process.wait()
            if self._child.overdue:
                raise TargetError(
                    f"the process that runs the engine gave no answer within {LIMIT_S:g} s, and was ended: the GPU hangs, "
                    "or is busy with other work; see what else runs on it, or feed fewer samples at a time"
                )
            self._errors.seek(0)
            words = last_words(self._errors.read(), none=" and said nothing")
            raise TargetError(
                f"the process that runs the engine ended with {ending(process.returncode)}{words}"
            )
        if "refusal" in answer[0]:
            raise ModelError(answer[0]["refusal"])
        if "gpu" in answer[0]:
            raise TargetError(answer[0]["gpu"])
        return answer

    @contextmanager
    def _limited(self, limit_s: float) -> Iterator[None]:
        """A block in which the process is killed after so many seconds: what waits for it then reads its end."""
        child = self._child

        def end_it() -> None:
            child.overdue = True
            child.process.kill()

        timer = threading.Timer(limit_s, end_it)
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()

    def close(self) -> None:
        self._end()
