"""How a running pipeline speaks: a progress bar on a terminal, plain lines elsewhere."""

import sys
import time
from collections.abc import Callable
from typing import TextIO

from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)

from onnx_lathe.optimizer.report.printing import Printer

LINE_EVERY_S = 5.0


class Ui:
    """Progress goes to standard error, so that standard output carries the report alone.

    `status` replaces itself on a terminal; elsewhere at most one line every few seconds is printed.
    """

    def __init__(self, stream: TextIO | None = None, quiet: bool = False) -> None:
        self.console = Printer(file=stream or sys.stderr, highlight=False, emoji=False, soft_wrap=True)
        self.quiet = quiet
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._last = time.monotonic()

    def start(self, total: int) -> None:
        if self.console.is_terminal and not self.quiet:
            self._bar = Progress(
                SpinnerColumn(), TextColumn("{task.description}"), BarColumn(20), MofNCompleteColumn(), TimeElapsedColumn(),
                TextColumn("[dim]{task.fields[status]}"), console=self.console, transient=True,
            )  # fmt: skip
            self._task = self._bar.add_task("", total=total, status="")
            self._bar.start()

    def step(self, title: str, done: int) -> None:
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, description=title, completed=done, status="")
        elif not self.quiet:
            self.console.print(title, markup=False)
        self._last = time.monotonic()

    def status(self, text: str) -> None:
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, status=text)
        elif not self.quiet and time.monotonic() - self._last > LINE_EVERY_S:
            self.console.print(f"  {text}", markup=False)
            self._last = time.monotonic()

    def share(self, title: str, done: int, total: int) -> None:
        """How far one long piece of work is, after `start(100)`: a bar, or a line every few seconds."""
        per_cent = 100 * done // max(1, total)
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, description=title, completed=per_cent)
        else:
            self.status(f"{title}: {per_cent} %")

    def note(self, text: str) -> None:
        """A line that stays."""
        if not self.quiet:
            self.console.print(text, markup=False)

    def stop(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None


class Calling(Ui):
    """Prints nothing: a caller's function hears of every step, status and note."""

    def __init__(self, progress: Callable[[str], None]) -> None:
        super().__init__(quiet=True)
        self.progress = progress

    def step(self, title: str, done: int) -> None:
        self.progress(title)

    def status(self, text: str) -> None:
        self.progress(text)

    def note(self, text: str) -> None:
        self.progress(text)
