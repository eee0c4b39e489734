"""Ctrl-C, and the signals that end a process or its terminal, are one exception: what was begun is taken away."""

import signal
from types import FrameType

SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]


def take() -> None:
    """From now on each raises KeyboardInterrupt, but for what the one who started the command ignores."""
    for number in SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _raise)


def _raise(number: int, frame: FrameType | None) -> None:
    for one in SIGNALS:  # a second one must not end what cleans up
        signal.signal(one, signal.SIG_IGN)
    raise KeyboardInterrupt
