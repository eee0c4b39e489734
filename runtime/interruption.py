"""Ctrl-C, the end of a terminal and the wish to end the process are one exception: what was begun is taken away."""

import math
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
CLEANING_S = 2.0
"""For so long after one signal the next are not heard: a terminal that closes sends several, and none may end what
cleans up. Later ones count: a search that was interrupted still builds what it has found."""

_UNHANDLED = (signal.SIG_DFL, signal.default_int_handler)


class _Signals:
    """What has come, and whether it has to wait."""

    def __init__(self) -> None:
        self.heard = -math.inf
        self.holding = 0
        self.waiting = False

    def hear(self, number: int, frame: FrameType | None) -> None:
        """Raises KeyboardInterrupt. In a block of `held` the first signal waits for its end."""
        if time.monotonic() - self.heard < CLEANING_S:
            return
        self.heard = time.monotonic()
        if self.holding and not self.waiting:
            self.waiting = True
            return
        self.waiting = False
        raise KeyboardInterrupt


_SIGNALS = _Signals()


@contextmanager
def signals_interrupt() -> Iterator[None]:
    """A block in which each raises KeyboardInterrupt, but for what somebody else handles, or the one who started the
    command ignores (`nohup`). Only the main thread is told of signals: in another nothing changes.
    """
    ours = threading.current_thread() is threading.main_thread()
    former = {number: signal.getsignal(number) for number in SIGNALS if ours}
    taken = {number: found for number, found in former.items() if found in _UNHANDLED}
    _SIGNALS.heard = -math.inf
    for number in taken:
        signal.signal(number, _SIGNALS.hear)
    try:
        yield
    finally:
        for number, found in taken.items():
            signal.signal(number, found)


@contextmanager
def held() -> Iterator[None]:
    """A block of foreign code that takes whatever is raised in it for its own trouble (`except:`), and would go on: an
    interruption is raised where it ends.
    """
    _SIGNALS.holding += 1
    try:
        yield
    finally:
        _SIGNALS.holding -= 1
        if _SIGNALS.waiting and not _SIGNALS.holding:
            _SIGNALS.waiting = False
            raise KeyboardInterrupt
