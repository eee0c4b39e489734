"""Whether anything breaks the compiler: cases run, passed, skipped with reason, failed; `make torture` runs all parts.

    python benchmarks/torture.py [PART...] [--seed N] [--cases N] [--first N] [--minutes M] [--workers N]
                                 [--networks FOLDER] [--no-page]

Parts are the modules of benchmarks/torture_parts, all of them by default. `--cases` is for each part, `--minutes` for all
together: what time is left is shared out among the parts still to come, and a part that ran out of it says how many cases
it did. `--first N --cases 1` does one case again. Rows go into benchmarks/torture.md, one for each part, in place of the one
that is there. Exit code 0 if nothing failed, 1 otherwise, 2 for a part that is not there.
"""

import argparse
import importlib
import pkgutil
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from types import ModuleType

sys.path.insert(0, str(Path(__file__).parent))

import torture_parts
from torture_parts import FAILED, PASSED, SKIPPED, Outcome, Request, failed

PAGE = Path(__file__).with_name("torture.md")
COLUMNS = (
    "part",
    "date",
    "version",
    "seed",
    "cases",
    "passed",
    "skipped",
    "failed",
    "time",
    "what became of them",
)
SHOWN = 20
"""Reasons and failures of a part that are printed; the page has as many."""
NO_FAILURE = "Nothing failed."


@dataclass
class Tally:
    """The outcomes of a part."""

    part: str
    seed: int
    seconds: float = 0.0
    verdicts: Counter[str] = field(default_factory=Counter)
    kinds: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    failures: list[Outcome] = field(default_factory=list)
    cut: bool = False

    def add(self, outcome: Outcome) -> None:
        self.verdicts[outcome.verdict] += 1
        if outcome.kind:
            self.kinds[outcome.kind] += 1
        if outcome.verdict == SKIPPED:
            self.reasons[outcome.reason] += 1
        elif outcome.verdict == FAILED:
            self.failures.append(outcome)

    @property
    def cases(self) -> int:
        return sum(self.verdicts.values())

    def lines(self) -> list[str]:
        """What is printed of the part."""
        counted = ", ".join(f"{self.verdicts[verdict]:,} {verdict}" for verdict in (PASSED, SKIPPED, FAILED))
        cut = ", out of time" if self.cut else ""
        lines = [f"{self.part}: {self.cases:,} cases, {counted}, in {self.seconds:,.0f} s{cut}"]
        lines += [f"  {count:>6,}  {kind}" for kind, count in self.kinds.most_common(SHOWN)]
        lines += [f"  {count:>6,}  skipped: {why}" for why, count in self.reasons.most_common(SHOWN)]
        lines += [f"  failed: {one.case}: {one.reason}" for one in self.failures[:SHOWN]]
        return lines

    def row(self, version: str) -> str:
        """Its row of the page."""
        became = [f"{count:,} {kind}" for kind, count in self.kinds.most_common(SHOWN)]
        became += [f"{count:,} skipped: {why}" for why, count in self.reasons.most_common(SHOWN)]
        became += [f"**failed**: {one.case}: {one.reason}" for one in self.failures[:SHOWN]]
        counts = [f"{self.verdicts[verdict]:,}" for verdict in (PASSED, SKIPPED, FAILED)]
        time_taken = f"{self.seconds / 60:.1f} min" + (", cut" if self.cut else "")
        cells = [
            self.part,
            date.today().isoformat(),
            version,
            str(self.seed),
            f"{self.cases:,}",
            *counts,
            time_taken,
        ]
        return "| " + " | ".join(cell.replace("|", "\\|") for cell in [*cells, "; ".join(became)]) + " |"


def main(arguments: Sequence[str] | None = None) -> int:
    parts = known()
    parser = argparse.ArgumentParser(description="Whether anything breaks the compiler.")
    shown = "; ".join(f"{name}: {(part.__doc__ or '').splitlines()[0]}" for name, part in parts.items())
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"default all. {shown}".replace("%", "%%"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--cases", type=int, help="of each part (default: the part's own number)")
    parser.add_argument("--first", type=int, default=0, help="number of the first case (default 0)")
    parser.add_argument("--minutes", type=float, help="for all parts together")
    parser.add_argument("--workers", type=int, default=1, help="processes that compute at once (default 1)")
    parser.add_argument(
        "--networks",
        type=Path,
        metavar="FOLDER",
        help="of real networks, fetched on first use (networks_packages.py)",
    )
    parser.add_argument("--no-page", action="store_true", help="leave benchmarks/torture.md as it is")
    given = parser.parse_args(arguments)
    wanted = given.parts or list(parts)
    if unknown := [name for name in wanted if name not in parts]:
        parser.error(f"there is no part '{unknown[0]}'; there are {', '.join(parts)}")
    end = time.monotonic() + given.minutes * 60 if given.minutes is not None else None
    tallies = []
    for place, name in enumerate(wanted):
        left = None if end is None else (end - time.monotonic()) / (len(wanted) - place)
        tallies.append(torment(name, parts[name], given, left))
        print("\n".join(tallies[-1].lines()), flush=True)
        if not given.no_page:
            write_row(PAGE, tallies[-1], version())
    total: Counter[str] = Counter()
    for tally in tallies:
        total += tally.verdicts
    counted = ", ".join(f"{total[verdict]:,} {verdict}" for verdict in (PASSED, SKIPPED, FAILED))
    print(f"together: {sum(total.values()):,} cases, {counted}")
    return 1 if total[FAILED] else 0


def known() -> dict[str, ModuleType]:
    """The parts by name."""
    names = sorted(one.name for one in pkgutil.iter_modules(torture_parts.__path__))
    return {
        name: importlib.import_module(f"torture_parts.{name}") for name in names if not name.startswith("_")
    }


def torment(name: str, part: ModuleType, given: argparse.Namespace, seconds: float | None) -> Tally:
    """Runs one part, for at most so long."""
    tally, began = Tally(name, given.seed), time.monotonic()
    with tempfile.TemporaryDirectory(prefix=f"torture-{name}-") as folder:
        cases = part.CASES if given.cases is None else given.cases
        outcomes = part.run(
            Request(Path(folder), given.seed, cases, given.first, given.workers, given.networks)
        )
        try:
            for outcome in outcomes:
                tally.add(outcome)
                if outcome.verdict == FAILED:
                    print(f"{name}: failed: {outcome.case}: {outcome.reason}", file=sys.stderr, flush=True)
                if seconds is not None and time.monotonic() - began > seconds:
                    tally.cut = tally.cases < cases
                    break
        except Exception as error:  # noqa: BLE001 - the other parts still run, and this one has failed
            tally.add(failed(name, f"the part itself ended with {type(error).__name__}: {error}"))
        finally:
            outcomes.close()
    tally.seconds = time.monotonic() - began
    return tally


def write_row(page: Path, tally: Tally, said: str) -> None:
    """Puts the part's row into the page's first table, in place of the one that is there."""
    lines = page.read_text(encoding="utf-8").splitlines()
    head = lines.index("| " + " | ".join(COLUMNS) + " |")
    end = next((at for at in range(head, len(lines)) if not lines[at].startswith("|")), len(lines))
    rows = [line for line in lines[head + 2 : end] if not line.startswith(f"| {tally.part} |")]
    lines[head + 2 : end] = sorted([*rows, tally.row(said)])
    page.write_text("\n".join(lines) + "\n", encoding="utf-8")


def version() -> str:
    """The commit that was run, with a plus if files differ from it; the package's version outside a repository."""
    try:
        said = subprocess.run(
            ["git", "describe", "--always", "--dirty=+", "--exclude=*"],
            cwd=PAGE.parent,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        return re.sub(r"\s", "", said)
    except (OSError, subprocess.CalledProcessError):
        from onnx_lathe.version import VERSION

        return VERSION


if __name__ == "__main__":
    sys.exit(main())
