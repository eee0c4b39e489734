"""A training with a server on two machines of tests/support/namespaces.py, by the command that users give: process 0 and
worker 1 on the first, workers 2 and 3 on the second.

    place = prepared(folder)
    with machines(2) as made:
        first, second = started(made, place, "retrain(...)", "steady")

The function of the data file says what happens at workers: `steady` takes 10 ms a batch, keeps the moments at which worker 1
takes one (`moments`), and leaves a file "ready" when worker 2 has taken 40; `wrong` fails at worker 2's 20th batch.
"""

import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import onnx

from onnx_lathe.runtime.processes import environment
from tests.support.namespaces import Machine
from tests.support.training import Points, model

PORT = 29400
"""Any is free in a machine that is new."""

DATA = """
import os, sys, time
import numpy as np

HERE = os.path.dirname(__file__)
POINTS = np.load(os.path.join(HERE, "points.npz"))
WORKER = int(os.environ["RANK"]) if any("server_worker" in word for word in sys.orig_argv) else 0
read = 0

def points():
    global read
    for start in range(0, 512, 16):
        rows = slice(start, start + 16)
        read += WORKER > 0
        yield {"x": POINTS["x"][rows], "labels": POINTS["labels"][rows]}

def note(name, line):
    with open(os.path.join(HERE, name), "a") as file:
        file.write(line)

def steady():
    for batch in points():
        if WORKER:
            time.sleep(0.01)
        if WORKER == 1:
            note("moments", f"{time.monotonic()}\\n")
        if WORKER == 2 and read == 40:
            note("ready", "")
        yield batch

def wrong():
    for batch in points():
        if WORKER == 2 and read == 20:
            note("failed", "once ")
            raise ValueError("the disk is gone")
        yield batch
"""


def prepared(folder: Path) -> Path:
    """`folder` with a model and its data."""
    points = Points()
    np.savez(folder / "points.npz", x=points.points, labels=points.labels)
    (folder / "data.py").write_text(DATA)
    onnx.save(model(), folder / "model.onnx")
    return folder


def started(
    made: Sequence[Machine], place: Path, passes: str, data: str, restarts: int = 0
) -> list[subprocess.Popen[str]]:
    """The command on each machine, whose results go to place/0 and place/1."""
    given = environment() | {"OMP_NUM_THREADS": "1"}
    processes = []
    for number, machine in enumerate(made):
        launch = f"--nnodes=2 --nproc-per-node=2 --rdzv-endpoint={made[0].name}:{PORT} "
        # With c10d, which is for machines that come again, either may have rank 0.
        launch += (
            f"--rdzv-backend=c10d --rdzv-id=7 --max-restarts={restarts}"
            if restarts
            else f"--node-rank={number}"
        )
        command = [sys.executable, "-m", "onnx_lathe", str(place / "model.onnx"), "--passes", passes]
        command += ["--train", f"{place / 'data.py'}:{data}", "--target", "onnx"]
        command += ["--out", str(place / str(number)), "--launch", launch, "--parallel", "server"]
        processes.append(machine.start(command, env=given, stdout=subprocess.PIPE, stderr=subprocess.STDOUT))
    return processes
