"""Training on machines of their own: network namespaces, where torchrun meets as it does over a network."""

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from onnx_lathe.optimizer.cli import main
from tests.support.distributed import digits
from tests.support.models import MODELS
from tests.support.namespaces import Machine, machines

LENET = str(MODELS / "lenet5-mnist" / "model.onnx")
LIMIT_S = 180.0
"""For a run on a machine with much else to do."""

QUICK = """
import importlib.util, sys

class Quick:
    \"\"\"Imports lifeline.py with seconds in place of half a minute.\"\"\"

    def find_spec(self, name, path, target=None):
        if name != "onnx_lathe.runtime.training.parallel.lifeline":
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(name)
        run = spec.loader.exec_module
        def quick(module):
            run(module)
            module._OPTIONS.update(TCP_KEEPIDLE=1, TCP_KEEPINTVL=1, TCP_KEEPCNT=3)
        spec.loader.exec_module = quick
        return spec

sys.meta_path.insert(0, Quick())
"""


def arguments(folder: Path, out: str, batch: int) -> list[str]:
    passes = f"retrain(epochs=12, batch={batch}, optimizer=sgd, rate=0.005)"
    data = ["--train", str(folder / "digits.npz"), "--target", "onnx"]
    return [LENET, "--passes", passes, *data, "--out", str(folder / out)]


def launch(first: Machine) -> str:
    meet = f"--rdzv-backend=c10d --rdzv-endpoint={first.name}:29400 --rdzv-id=7"
    return f"--launch=--nnodes=2 --nproc-per-node=1 {meet}"


def weights(out: Path) -> dict[str, np.ndarray]:
    model = onnx.load(out / "model.onnx")
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def reached(path: Path, processes: list[subprocess.Popen[str]]) -> None:
    deadline = time.monotonic() + LIMIT_S
    while not path.exists():
        assert time.monotonic() < deadline, "nothing was trained"
        assert all(process.poll() is None for process in processes), "ended before an epoch was done"
        time.sleep(0.02)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    batch = next(digits(160).batches(160))
    np.savez(tmp_path / "digits.npz", image=batch.inputs["image"], labels=batch.labels)
    (tmp_path / "quick").mkdir()
    (tmp_path / "quick" / "sitecustomize.py").write_text(QUICK)
    return tmp_path


@pytest.fixture
def environment(folder: Path) -> dict[str, str]:
    paths = os.pathsep.join([str(folder / "quick"), *filter(None, [os.environ.get("PYTHONPATH")])])
    return os.environ | {"PYTHONPATH": paths, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}


@pytest.mark.slow
def test_two_machines_one_of_which_is_cut_off_resume_to_what_one_worker_makes(
    folder: Path, environment: dict[str, str]
) -> None:
    optimize, outs = [sys.executable, "-m", "onnx_lathe"], [folder / "out0", folder / "out1"]

    def start(*more: str) -> list[subprocess.Popen[str]]:
        return [
            machine.start(
                [*optimize, *arguments(folder, out.name, batch=8), launch(made[0]), *more],
                env=environment,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
                stdin=subprocess.DEVNULL,
            )
            for machine, out in zip(made, outs, strict=True)
        ]

    with machines(2) as made:
        cut = start()
        reached(outs[1] / "steps" / "training.state", cut)
        made[1].cut()
        began = time.monotonic()
        said = [process.communicate(timeout=60)[1].strip().splitlines()[-1] for process in cut]
        assert time.monotonic() - began < 60
        assert [process.returncode for process in cut] == [2, 2]
        for rank, line in enumerate(said):
            other = made[1 - rank]
            assert f"retrain: lost worker {1 - rank} on {other.name}, silent for" in line
            assert "; the model is left as it was; --resume goes on after the last whole epoch" in line
            assert not (outs[rank] / "model.onnx").exists()
        made[1].mend()
        resumed = start("--resume")
        told = [process.communicate(timeout=LIMIT_S)[1] for process in resumed]
        assert [process.returncode for process in resumed] == [0, 0], told
    assert all("going on after epoch" in text for text in told)
    # Two workers with batches of 8 take the steps of one with batches of 16.
    assert main(arguments(folder, "alone", batch=16)) == 0
    expected = weights(folder / "alone")
    for out in outs:
        found = weights(out)
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            np.testing.assert_allclose(
                found[name], value, rtol=0, atol=2e-5 * np.abs(value).max(), err_msg=name
            )
