"""A reader that leaves, as in `optimize ... | head`: the command goes on to its end and to its own exit code."""

import contextlib
import os
import sys
from collections.abc import Iterable, Iterator
from typing import Any, TextIO, cast


@contextlib.contextmanager
def reader_may_leave() -> Iterator[None]:
    """Standard output and standard error go nowhere from when their reader has closed them."""
    with (
        contextlib.redirect_stdout(cast(TextIO, _Output(sys.stdout))),
        contextlib.redirect_stderr(cast(TextIO, _Output(sys.stderr))),
    ):
        try:
            yield
        finally:
            for stream in (
                sys.stdout,
                sys.stderr,
            ):  # what is left is written here, not at the interpreter's exit
                stream.flush()


class _Output:
    """A stream whose writing does not fail for want of a reader.

    rich ends the process with code 1 on the first BrokenPipeError that it sees, and Python with 120 on one of
    its own last flush: neither is what the command found.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        with self._unless_closed():
            self._stream.write(text)
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        with self._unless_closed():
            self._stream.flush()

    @contextlib.contextmanager
    def _unless_closed(self) -> Iterator[None]:
        try:
            yield
        except BrokenPipeError:
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)
