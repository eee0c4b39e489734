"""Trainings with a server from the command line: what is learned, a worker that is killed, one that fails."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import onnx
import pytest

from onnx_lathe.runtime.processes import environment
from tests.support.training import Points, accuracy, model

LIMIT_S = 240
"""Of a child that hangs; it takes seconds."""

DATA = """
import os, signal, sys
import numpy as np

POINTS = np.load(os.path.join(os.path.dirname(__file__), "points.npz"))
WORKS = any("server_worker" in word for word in sys.orig_argv)
read = 0

def points():
    for start in range(0, 512, 16):
        rows = slice(start, start + 16)
        yield {"x": POINTS["x"][rows], "labels": POINTS["labels"][rows]}

def fatal():
    # the only worker is killed, once
    global read
    died = os.path.join(os.path.dirname(__file__), "died")
    for batch in points():
        read += 1
        if WORKS and read > 50 and not os.path.exists(died):
            open(died, "w").close()
            os.kill(os.getpid(), signal.SIGKILL)
        yield batch

def wrong():
    global read
    for batch in points():
        read += 1
        if WORKS and read > 60:
            with open(os.path.join(os.path.dirname(__file__), "failed"), "a") as file:
                file.write("once ")
            raise ValueError("the disk is gone")
        yield batch
"""


@pytest.fixture
def place(tmp_path: Path) -> Path:
    import numpy as np

    data = Points()
    np.savez(tmp_path / "points.npz", x=data.points, labels=data.labels)
    (tmp_path / "data.py").write_text(DATA)
    onnx.save(model(), tmp_path / "model.onnx")
    return tmp_path


def optimize(place: Path, passes: str, data: str, *more: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "onnx_lathe", str(place / "model.onnx"), "--passes", passes]
    command += ["--train", f"{place / data}", "--target", "onnx", "--out", str(place / "out"), *more]
    return subprocess.run(command, env=environment(), capture_output=True, text=True, timeout=LIMIT_S)


def report(place: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((place / "out" / "report.json").read_text())
    return found


def test_workers_send_gradients_to_a_server(place: Path) -> None:
    # gradual pruning: the server chooses the zeros while workers compute with them
    training = "{epochs: 4, batch: 16, rate: 0.05, distill: 0, optimizer: sgd, gradients: half}"
    launch = ["--launch", "--nproc-per-node=3", "--parallel", "server"]
    done = optimize(place, f"prune(sparsity=0.5, min_size=1, training={training})", "points.npz", *launch)
    assert done.returncode == 0, done.stderr
    assert "momentum is 0 with a server" in done.stdout + done.stderr
    step = report(place)["steps"][0]
    metrics = step["metrics"]
    assert metrics["workers"] == 2
    assert metrics["updates"] == 4 * 512 / 16
    assert metrics["gradient_ratio"] == 2
    assert metrics["updates_per_second"] > 0
    assert metrics["lost_workers"] == metrics["dropped_gradients"] == metrics["momentum"] == 0
    assert sum(metrics[name] for name in metrics if name.startswith("staleness[")) >= metrics["updates"]
    trained = onnx.load(place / "out" / "model.onnx")
    arrays = [onnx.numpy_helper.to_array(tensor) for tensor in trained.graph.initializer]
    assert sum(int((array == 0).sum()) for array in arrays if array.ndim == 2) == 40
    assert (
        accuracy(trained) > 0.6
    )  # six runs: 0.76 to 0.81, by the order in which gradients came; 0.22 before
    assert not list((place / "out").glob("retrain-*"))


def test_a_worker_that_is_killed_is_named_and_comes_back(place: Path) -> None:
    launch = ["--launch", "--nproc-per-node=2 --max-restarts=1", "--parallel", "server"]
    passes = "retrain(epochs=4, batch=16, rate=0.05, distill=0, optimizer=sgd)"
    done = optimize(place, passes, "data.py:fatal", *launch)
    assert done.returncode == 0, done.stderr
    found = report(place)
    metrics = found["steps"][0]["metrics"]
    assert metrics["updates"] == 4 * 512 / 16
    assert metrics["lost[worker 1]"] == metrics["lost_workers"] == 1
    assert any(
        "lost worker 1, which was ended by signal 9 (as the system does when memory runs out) and came back"
        in line
        for line in found["warnings"]
    )
    assert "Traceback" not in done.stdout + done.stderr


def test_a_mistake_at_one_worker_is_one_line(place: Path) -> None:
    launch = ["--launch", "--nproc-per-node=2 --max-restarts=1", "--parallel", "server"]
    passes = "retrain(epochs=200, batch=16, rate=0.05, distill=0, optimizer=sgd)"
    done = optimize(place, passes, "data.py:wrong", *launch)
    assert done.returncode == 2
    assert "the disk is gone" in done.stderr
    assert (place / "failed").read_text() == "once "
    assert "Traceback" not in done.stderr
    assert not list((place / "out").glob("retrain-*"))
