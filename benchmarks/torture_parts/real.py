"""Every pass at the setting that loses nothing, on real networks of packages: the same outputs.

As the part `differential`, on the networks of networks_packages.py in the folder of `--networks`, each fetched on first use,
in their order there. Each is fed with one sample of the kind that it is for.
"""

from collections.abc import Iterator
from functools import partial
from pathlib import Path

from torture_parts import Outcome, Request, skipped
from torture_parts._pool import each
from torture_parts._settings import LOSSLESS
from torture_parts._shipped import real
from torture_parts.differential import base, compared
from torture_parts.pipelines import judged, warm

CASES = 1_000
"""There are fewer: a run ends with the last network."""
LIMIT_S = 900.0
LIMITS = "Time: 900 s for a case."


def run(request: Request) -> Iterator[Outcome]:
    if request.networks is None:
        yield skipped("real networks", "there is no folder for them: give --networks FOLDER")
        return
    count = len(LOSSLESS) * len(real(request.networks))
    numbers = range(request.first, min(request.first + request.cases, count))
    for done in each(partial(tried, networks=request.networks), warm, numbers, LIMIT_S, request.workers):
        yield judged(done)


def tried(number: int, networks: Path) -> Outcome:
    place, which = divmod(number, len(LOSSLESS))
    one, setting = real(networks)[place], LOSSLESS[which]
    case = f"{number} ({one.name}, {setting.text})"
    known = base(one, setting.few)
    return skipped(case, known.reason) if known.reason else compared(case, known, setting)
