"""Parts of `benchmarks/torture.py`: each module here that does not begin with an underscore is one.

A part has a docstring, whose first line the runner shows, and

    CASES = 1000                                             how many it runs unless told otherwise
    def run(request: Request) -> Iterator[Outcome]: ...      yields what became of each case, as it ends

and may have `LIMITS`, a sentence on the bounds that its cases are held to, which the page repeats. A case is made by its
number and the seed alone, never by those before it, so that `--first N --cases 1` does it again. Where cases need a tool or a
file that is not here, `skipped` says which; an exception that leaves `run` counts as a failure of the part.
"""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

PASSED, SKIPPED, FAILED = "passed", "skipped", "failed"


@dataclass(frozen=True)
class Outcome:
    """What became of one case. `reason` is for what was skipped or failed; `kind` sorts what passed, such as "refused"."""

    case: str
    verdict: str
    reason: str = ""
    kind: str = ""


def passed(case: object, kind: str = "") -> Outcome:
    return Outcome(str(case), PASSED, kind=kind)


def skipped(case: object, reason: str) -> Outcome:
    return Outcome(str(case), SKIPPED, reason)


def failed(case: object, reason: str) -> Outcome:
    return Outcome(str(case), FAILED, " ".join(reason.split()))


@dataclass(frozen=True)
class Request:
    """What a part is to do: cases `first` to `first + cases - 1` of this seed, in folders of its own below `folder`."""

    folder: Path
    seed: int
    cases: int
    first: int = 0
    workers: int = 1
    """Processes that may compute at once."""
    networks: Path | None = None
    """Where real networks are, each fetched on first use; None: parts do without."""

    @property
    def numbers(self) -> range:
        return range(self.first, self.first + self.cases)

    @contextmanager
    def place(self, case: object) -> Iterator[Path]:
        """An empty folder for a case, removed behind it."""
        with tempfile.TemporaryDirectory(prefix=f"{case}-", dir=self.folder) as folder:
            yield Path(folder)
