"""Coverage of lines and of branches in passes/ and runtime/, from the data of `make coverage`, and the files with least.

    python .ci/floors.py [--fail]

92 % of lines and 85 % of branches are aims so far: that the suite reaches them is not measured, and `make coverage` ends
well where it does not. With --fail they are floors, and the exit code is 1 below them.
"""

import argparse
import io
import json
import sys
from collections.abc import Iterable, Mapping
from contextlib import redirect_stdout
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

FOLDERS = ("passes", "runtime")
AIMS = {"lines": 0.92, "branches": 0.85}
SHOWN = 15


def shares(summaries: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """Of lines and of branches, what is run; 1 where there are none."""
    read = list(summaries)

    def share(covered: str, every: str) -> float:
        total = sum(one.get(every, 0) for one in read)
        return sum(one.get(covered, 0) for one in read) / total if total else 1.0

    return {
        "lines": share("covered_lines", "num_statements"),
        "branches": share("covered_branches", "num_branches"),
    }


def measured() -> dict[str, Mapping[str, Any]]:
    """File, relative to the repository -> its summary."""
    import coverage

    with TemporaryDirectory() as folder, redirect_stdout(io.StringIO()):
        out = Path(folder) / "coverage.json"
        read = coverage.Coverage()
        read.load()
        read.json_report(outfile=str(out))
        files = json.loads(out.read_text(encoding="utf-8"))["files"]
    return {name.replace("\\", "/"): file["summary"] for name, file in files.items()}


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--fail", action="store_true")
    arguments = parser.parse_args()
    files = measured()
    missed = False
    for folder in FOLDERS:
        inside = {name: one for name, one in files.items() if name.startswith(f"{folder}/")}
        found = shares(inside.values())
        for what, share in found.items():
            low = share < AIMS[what]
            missed |= low
            kind = "floor" if arguments.fail else "aim"
            print(f"{folder}: {share:.1%} of {what}, {kind} {AIMS[what]:.0%}{', missed' if low else ''}")
        least = sorted(inside, key=lambda name: shares([inside[name]])["branches"])[:SHOWN]
        for name in least:
            one = shares([inside[name]])
            print(f"  {one['lines']:>6.1%} {one['branches']:>6.1%}  {name}")
    return int(missed and arguments.fail)


if __name__ == "__main__":
    sys.exit(main())
