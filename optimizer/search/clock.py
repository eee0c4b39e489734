"""How long a search may take, and who is to stop when the time is up."""

import re
import time
from collections.abc import Callable

from onnx_lathe.errors import UsageError

_UNITS = {"s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}
_EXAMPLE = "give a time such as 90s, 30m, 2h or 1h30m"


class OutOfTimeError(Exception):
    """The budget is spent in the middle of a trial."""


def parse_budget(text: str) -> float:
    """Seconds of "30m", "1h30m" or "90". Raises UsageError for what is no time, or none."""
    parts = re.findall(r"(\d+(?:\.\d+)?)\s*(min|[smh]|$)", text.strip().lower())
    whole = "".join(f"{number}{unit}" for number, unit in parts)
    bare = len(parts) > 1 and not all(unit for _, unit in parts)
    if not parts or bare or whole != re.sub(r"\s+", "", text.lower()):
        raise UsageError(f"--budget '{text}': {_EXAMPLE}")
    seconds = sum(float(number) * _UNITS.get(unit, 1.0) for number, unit in parts)
    if not 0 < seconds < 1e9:
        raise UsageError(f"--budget '{text}': {_EXAMPLE}")
    return seconds


class Clock:
    """Counts down. `ends` is a time of `time.time`, which processes of one machine share."""

    def __init__(self, ends: float) -> None:
        self.ends = ends
        self.reserve = 0.0
        """Seconds that are kept for what follows the last trial."""
        self.stopped = False

    @property
    def left(self) -> float:
        """Seconds for trials; never below 0."""
        return 0.0 if self.stopped else max(0.0, self.ends - self.reserve - time.time())

    def watched(self, progress: Callable[[str], None]) -> Callable[[str], None]:
        """The function of progress, which raises OutOfTimeError when the time for trials is up: passes and
        evaluations call it all the while.
        """

        def hear(text: str) -> None:
            if self.left <= 0:
                raise OutOfTimeError
            progress(text)

        return hear
