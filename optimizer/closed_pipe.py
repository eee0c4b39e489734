"""Where the command's words go if nobody takes them, as in `optimize ... | head`, `>&-` or on a full disk: the command
goes on to its end and to its own exit code.
"""

import contextlib
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import Any, TextIO, cast


class Output:
    """A stream whose writing does not fail: what cannot be written goes nowhere.

    rich ends the process with code 1 on the first BrokenPipeError that it sees, and Python with 120 on one of
    its own last flush: neither is what the command found.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self.lost = ""
        """Why something was not written, if not for want of a reader."""

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def write(self, text: str) -> int:
        with self._unless_refused():
            self._stream.write(text)
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        with self._unless_refused():
            self._stream.flush()

    @contextlib.contextmanager
    def _unless_refused(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            if not isinstance(error, BrokenPipeError):
                self.lost = self.lost or error.strerror or str(error)
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, self._stream.fileno())
            os.close(nowhere)


@contextlib.contextmanager
def output_may_be_refused() -> Iterator[Output]:
    """Standard output and standard error go nowhere from when they cannot be written. Gives the output, which is
    written in full once the block has ended.
    """
    output = Output(sys.stdout or _nowhere(1))
    errors = Output(sys.stderr or _nowhere(2))
    with (
        contextlib.redirect_stdout(cast(TextIO, output)),
        contextlib.redirect_stderr(cast(TextIO, errors)),
    ):
        try:
            yield output
        finally:  # what is left is written here, not at the interpreter's exit
            output.flush()
            errors.flush()


def _nowhere(descriptor: int) -> TextIO:
    """In the place of a stream that is closed. Its descriptor is taken too: the next file to be opened would get it,
    and what libraries print with it.
    """
    opened = os.open(os.devnull, os.O_WRONLY)
    try:
        os.fstat(descriptor)
    except OSError:
        with suppress(OSError):
            os.dup2(opened, descriptor)
    return open(opened, "w", closefd=opened != descriptor)
