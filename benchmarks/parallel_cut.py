"""A machine that is cut off while it trains with a server, from the command line to the report.

    python benchmarks/parallel_cut.py [--epochs 150]      as root, on Linux

Two network namespaces: process 0 and worker 1 on the first, workers 2 and 3 on the second, whose port leaves the bridge
once worker 2 has taken 40 batches: no connection closes, no packet passes. Floors: all updates are made, the report names
both workers, worker 1 waits no longer than 1 s for an update after the cut, each command ends within 60 s of the end of its
training, or of the cut, and the one that was cut off ends with exit code 2 and a line that says why. Ends with 1 if one is missed.
"""

import argparse
import json
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from tests.support.namespaces import machines
from tests.support.served_machines import prepared, started

LONGEST_S, HANGING_S = 1.0, 60.0
LIMIT_S = 900.0
UPDATES = 512 // 16
"""Of an epoch."""


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--epochs", type=int, default=150, help="the training has to last 30 s after the cut")
    epochs = parser.parse_args().epochs
    passes = f"retrain(epochs={epochs}, batch=16, rate=0.05, distill=0, optimizer=sgd)"
    with tempfile.TemporaryDirectory() as scratch, machines(2) as made:
        place = prepared(Path(scratch))
        first, second = commands = started(made, place, passes, "steady")
        until = time.monotonic() + LIMIT_S
        while not (place / "ready").exists():
            if time.monotonic() > until or first.poll() is not None:
                raise SystemExit(f"no training began: {first.communicate(timeout=LIMIT_S)[0]}")
            time.sleep(0.05)
        made[1].cut()
        cut, ends = time.monotonic(), list[float]()
        for command in (second, first):
            command.wait(LIMIT_S)
            ends.append(time.monotonic())
        said = [command.communicate()[0] for command in commands]
        moments = [float(line) for line in (place / "moments").read_text().split()]
        report = json.loads((place / "0" / "report.json").read_text()) if first.returncode == 0 else {}
    after = [moment for moment in moments if moment > cut]
    waited = max((two - one for one, two in pairwise(after)), default=0.0)
    metrics = report["steps"][0]["metrics"] if report else {}
    rows = [
        ("updates made", f"{metrics.get('updates', 0):.0f}", metrics.get("updates") == epochs * UPDATES),
        (
            "workers that the report names",
            "; ".join(line for line in report.get("warnings", ()) if "lost worker" in line),
            all(f"lost[worker {rank}]" in metrics for rank in (2, 3)),
        ),
        ("longest wait of worker 1 after the cut", f"{waited:.2f} s", waited <= LONGEST_S),
        ("its training went on for", f"{moments[-1] - cut:.0f} s", moments[-1] > cut),
        (
            "its command ended after that",
            f"{ends[1] - moments[-1]:.0f} s",
            ends[1] - moments[-1] <= HANGING_S,
        ),
        ("the other command ended after the cut", f"{ends[0] - cut:.0f} s", ends[0] - cut <= HANGING_S),
        (
            "with exit code, and line",
            f"{second.returncode}, {said[1].strip().splitlines()[-1]}",
            second.returncode == 2,
        ),
    ]
    print("| what | found | floor |\n|---|---|---|")
    for what, found, met in rows:
        print(f"| {what} | {found} | {'met' if met else 'missed'} |")
    if first.returncode:
        print(said[0])
    return int(not all(met for *_, met in rows))


if __name__ == "__main__":
    sys.exit(main())
