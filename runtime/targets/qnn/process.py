"""The parent's side of a process that QNN compiles or simulates in (worker.py), and what can become of it."""

import sys
import tempfile
import threading
import weakref
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from onnx_lathe.errors import ModelError, TargetError
from onnx_lathe.runtime import wire
from onnx_lathe.runtime.processes import environment, running
from onnx_lathe.runtime.targets.tensorrt.conversation import ending, last_words
from onnx_lathe.runtime.user_code import search_path

WORKER = "onnx_lathe.runtime.targets.qnn.worker"
NOISE = "LIBNATIVE"
"""In a line that the simulator prints at each start."""

Answer = tuple[dict[str, Any], dict[str, np.ndarray]]


class QnnProcess:
    """One process with the library. It ends with `close`, or when nobody holds this any more. `folder`: its working
    directory, where the library leaves what it likes; none: a scratch folder.

    Raises TargetError where it cannot be started.
    """

    def __init__(self, folder: Path | None = None) -> None:
        stack = ExitStack()
        self._end = weakref.finalize(self, stack.close)
        self._errors = stack.enter_context(tempfile.TemporaryFile())  # noqa: SIM115
        place = folder or stack.enter_context(tempfile.TemporaryDirectory(prefix="lathe-"))
        try:
            child = running(
                [sys.executable, "-m", WORKER], environment(), stderr=self._errors, cwd=str(place)
            )
            self._child = stack.enter_context(child)
        except OSError as error:
            self.close()
            raise TargetError(f"cannot start {sys.executable}: {error.strerror}") from error

    def ask(
        self,
        request: Mapping[str, Any],
        arrays: Mapping[str, np.ndarray] | None = None,
        limit_s: float | None = None,
    ) -> Answer:
        """Raises ModelError with the reason for what the library refuses, TargetError where the process ends, or gives
        no answer within `limit_s` seconds, which ends it.
        """
        process = self._child.process
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            with self._limited(limit_s):
                wire.send(process.stdin, {"path": search_path(), **request}, arrays)  # type: ignore[arg-type]
                answer = wire.receive(process.stdout)  # type: ignore[arg-type]
        except BrokenPipeError:
            answer = None
        except BaseException:  # half a conversation: what comes next would be taken for another answer
            self.close()
            raise
        if answer is None:
            raise TargetError(self._how_it_ended(limit_s))
        if "refusal" in answer[0]:
            raise ModelError(answer[0]["refusal"])
        return answer

    def _how_it_ended(self, limit_s: float | None) -> str:
        process = self._child.process
        process.wait()
        if self._child.overdue:
            return f"QNN was not done within {limit_s:g} s; give more with time_limit"
        words = last_words(self.log().encode(), none=" and said nothing")
        return f"QNN ended its process with {ending(process.returncode)}{words}"

    @contextmanager
    def _limited(self, limit_s: float | None) -> Iterator[None]:
        """A block in which the process is killed after so many seconds: what waits for it then reads its end."""
        child = self._child

        def end_it() -> None:
            child.overdue = True
            child.process.kill()

        timer = threading.Timer(threading.TIMEOUT_MAX if limit_s is None else limit_s, end_it)
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()

    def log(self) -> str:
        """What the library has said so far."""
        self._errors.seek(0)
        lines = self._errors.read().decode("utf-8", "replace").splitlines()
        return "\n".join(line for line in lines if NOISE not in line)

    def close(self) -> None:
        self._end()
