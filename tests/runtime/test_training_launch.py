"""Training under torchrun: what comes back, what is said when it fails, and that nothing is left behind."""

import os
import pickle
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from onnx_lathe.errors import PassError, UsageError
from onnx_lathe.optimizer.cli import main
from onnx_lathe.optimizer.commands.compile import attached
from onnx_lathe.optimizer.recipe import load_recipe
from onnx_lathe.passes.numerics.sparsity.gradual import Gradual
from onnx_lathe.passes.numerics.sparsity.weight_choice import Budget
from onnx_lathe.runtime.training import TorchTrainer, TrainingSetup
from onnx_lathe.runtime.training.parallel.launch import killed, workers_environment
from onnx_lathe.runtime.training.parallel.request import parse_launch
from tests.support.distributed import digits, lenet, moved
from tests.support.models import MODELS
from tests.support.training import options

HOOK = """
import os, signal, sys, time
from pathlib import Path
from onnx_lathe.runtime.training.loop.builtin import retrain

HERE = Path(__file__).parent

def dies_once(module, job):
    batches, epochs, mark = job.data.batches, [], HERE / "died"
    def counted(size, shuffle_seed=None):
        epochs.append(shuffle_seed)
        for number, batch in enumerate(batches(size, shuffle_seed)):
            if shuffle_seed == 2 and number == 1 and job.workers.rank == 1 and not mark.exists():
                mark.write_text("")
                os.kill(os.getpid(), signal.SIGKILL)
            yield batch
    job.data.batches = counted
    retrain(module, job)

def fails(module, job):
    print(f"printed by {job.workers.rank}, threads {os.environ['OMP_NUM_THREADS']}")
    if job.workers.rank == 1:
        raise ValueError("of my own")
    job.workers.total(1.0)

def sleeps(module, job):
    (HERE / f"pid{job.workers.rank}").write_text(str(os.getpid()))
    time.sleep(60)
"""


class Half:
    """A Shaping: from the second call on, the last layer is multiplied by a mask."""

    every = 2

    def __init__(self) -> None:
        self.calls = np.array(0)
        self.mask = np.arange(5000).reshape(10, 500) % 2 == 0
        self.mask.flags.writeable = False

    def __call__(self, done: float, weights: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        self.calls = self.calls + 1
        return {"fc2.weight": self.mask} if self.calls > 1 else {}

    def state(self) -> dict[str, np.ndarray]:
        return {"calls": self.calls}

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        self.calls = state["calls"]


@pytest.fixture
def hook(tmp_path: Path) -> Path:
    path = tmp_path / "own" / "hook.py"
    path.parent.mkdir()
    path.write_text(HOOK)
    return path


def trainer(folder: Path, launch: str, hook: str | None, lines: list[str], samples: int) -> TorchTrainer:
    setup = TrainingSetup(
        digits(samples),
        lenet(),
        hook=hook,
        log=folder / "out" / "retrain.log",
        progress=lines.append,
        device="cpu",
        launch=parse_launch(launch),
        state=folder / "out" / "training.state",
    )
    return TorchTrainer(setup)


def test_a_worker_that_is_killed_changes_nothing(tmp_path: Path, hook: Path) -> None:
    settings: dict[str, Any] = {"epochs": 4, "shift": 1, "distill": 0.5}
    shaping, alone, lines = Half(), Half(), list[str]()
    several = trainer(tmp_path, "--nproc-per-node=2 --max-restarts=1", f"{hook}:dies_once", lines, 131)
    result = several.train(moved(lenet()), options(batch=16, **settings), shaping)
    assert (hook.parent / "died").exists()
    assert result.metrics["resumed_after"] == 2
    assert result.metrics["workers"] == 2
    assert "going on after epoch 2" in lines
    assert sum(line.startswith("epoch 4/4: loss") for line in lines) == 1
    one = TorchTrainer(TrainingSetup(digits(131), lenet(), device="cpu"))
    expected = one.train(moved(lenet()), options(batch=32, **settings), alone)
    assert list(result.values) == list(expected.values)
    for name, value in expected.values.items():
        assert result.values[name].dtype == value.dtype
        np.testing.assert_allclose(
            result.values[name], value, rtol=0, atol=2e-5 * np.abs(value).max(), err_msg=name
        )
    assert shaping.calls == alone.calls > 5
    assert not result.values["fc2.weight"][~shaping.mask].any()
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["training.state"]


def test_an_exception_in_a_hook_is_one_line_and_its_traceback_in_the_log(
    tmp_path: Path, hook: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    made = trainer(tmp_path, "--nproc-per-node=2", f"{hook}:fails", [], 40)
    with pytest.raises(PassError) as refused:
        made.train(lenet(), options())
    log = tmp_path / "out" / "retrain.log"
    assert (
        str(refused.value)
        == f"retraining hook '{hook}:fails' failed: ValueError: of my own; the traceback is in {log}"
    )
    assert 'raise ValueError("of my own")' in log.read_text()
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["retrain.log"]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    printed = capsys.readouterr()
    # without the line end: two workers print at a time
    assert f"printed by 1, threads {max(1, cores // 2)}" in printed.out
    assert "Traceback" not in printed.out + printed.err


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no signal for one process alone")
def test_interrupting_leaves_no_process_and_no_file(tmp_path: Path, hook: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "onnx_lathe",
        str(MODELS / "lenet5-mnist" / "model.onnx"),
        "--passes",
        "retrain(epochs=1)",
    ]
    command += [
        "--train",
        f"{MODELS / 'mnist.npz'}:test",
        "--preprocess",
        "scale=1/255",
        "--out",
        str(tmp_path / "out"),
    ]
    command += ["--retrain", f"{hook}:sleeps", "--launch", "--nproc-per-node=2"]

    def listen() -> None:
        # a shell's background job, and all that it starts, would ignore it
        signal.signal(signal.SIGINT, signal.SIG_DFL)

    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True, preexec_fn=listen) as process:
        files = [hook.parent / f"pid{rank}" for rank in (0, 1)]
        deadline = time.monotonic() + 180
        while not all(file.exists() and file.read_text() for file in files) and time.monotonic() < deadline:
            time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=180)  # a loaded machine takes its time
    assert process.returncode == 130
    assert said.strip().splitlines()[-1].startswith("optimize: interrupted")
    assert "Traceback" not in said
    for file in files:
        with pytest.raises(ProcessLookupError):
            os.kill(int(file.read_text()), 0)
    assert not [path for path in (tmp_path / "out").iterdir() if path.name.startswith("retrain")]


def test_waiting_for_other_machines_ends_with_the_parent(tmp_path: Path) -> None:
    folder = tmp_path / "job"
    folder.mkdir()
    command = [
        sys.executable,
        "-m",
        "onnx_lathe.runtime.training.parallel.torchrun",
        str(folder),
        "--nnodes=2",
        "--rdzv-backend=c10d",
    ]
    command += [
        "--rdzv-endpoint=localhost:0",
        "-m",
        "onnx_lathe.runtime.training.parallel.worker",
        str(folder),
    ]
    with (
        open(tmp_path / "log", "wb") as log,
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=log, stderr=log) as process,
    ):
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(3)
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(60) != 0
    assert not folder.exists()


@pytest.mark.parametrize(
    ("codes", "says"),
    [
        ((3, -15), "a worker ended by itself with exit code 3"),
        ((-9, -15), "ended by signal 9, as the system does when memory runs out"),
    ],
)
def test_the_worker_that_failed_first_is_told(tmp_path: Path, codes: tuple[int, int], says: str) -> None:
    first, other = (f"  exitcode  : {code} (pid: 7)" for code in codes)
    (tmp_path / "torchrun.log").write_text(
        f"Failures:\n[1]:\n{other}\nRoot Cause (first observed failure):\n[0]:\n{first}\n"
    )
    assert says in str(killed(tmp_path, TrainingSetup(digits(2))))


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("--nproc-per-node=0", "0 processes train nothing"),
        ("--nproc-per-node=-1", "-1 processes train nothing"),
        ("--nproc-per-node=two", "two"),
        ("--bogus=3", "unrecognized arguments: --bogus=3"),
        ("--nproc-per-node", "--nproc-per-node needs a value"),
        ("--nproc-per-node=2 train.py", "'train.py' is no option"),
        ("--nproc-per-node=2 -m package", "says how to run a script"),
        ("--nnodes=0", "--nnodes=0 is no number of machines"),
        ("--nnodes=many", "many"),
        ("--nnodes=2", "2 machines have to meet; give --rdzv-endpoint=HOST:PORT"),
        ("--nnodes=2 --standalone", "2 machines have to meet; give --rdzv-endpoint=HOST:PORT"),
        (
            "--nnodes=2 --rdzv-id=4 --rdzv-backend=c10d",
            "2 machines have to meet; give --rdzv-endpoint=HOST:PORT",
        ),
        ("--help", "asks for help"),
        ("--nproc-per-node=2 --max-restarts=-1", "--max-restarts is -1"),
        ("--role='a b", "No closing quotation"),
        ("", "is empty"),
    ],
)
def test_wrong_launch_text_is_one_line(text: str, says: str) -> None:
    with pytest.raises(UsageError) as refused:
        parse_launch(text)
    assert says in str(refused.value)
    assert str(refused.value).startswith(f"--launch '{text}'")
    assert "\n" not in str(refused.value)


def test_where_workers_meet() -> None:
    assert parse_launch("--nproc-per-node=2").arguments == ("--standalone", "--nproc-per-node=2")
    machines = "--nnodes=2 --nproc-per-node=3 --node-rank=1 --rdzv-endpoint=head:29400"
    assert parse_launch(machines).arguments == tuple(machines.split())
    assert parse_launch(machines).local == 3
    assert parse_launch("--standalone --nproc_per_node 4").local == 4


def test_machines_that_are_left_ask_no_store_of_a_lost_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TORCH_DISABLE_SHARE_RDZV_TCP_STORE", raising=False)
    place = "--rdzv-backend=c10d --rdzv-endpoint=head:29400"
    for text, several in (
        ("--nproc-per-node=2", False),
        (f"--nnodes=2 {place}", True),
        (f"--nnodes=1:3 {place}", True),
    ):
        assert ("TORCH_DISABLE_SHARE_RDZV_TCP_STORE" in workers_environment(parse_launch(text))) == several


def test_launch_is_an_argument_that_begins_with_dashes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert attached(["m", "--launch", "--nproc-per-node=2", "--json"], "--launch") == [
        "m",
        "--launch=--nproc-per-node=2",
        "--json",
    ]
    assert attached(["m", "--launch"], "--launch") == ["m", "--launch"]
    model, out = str(MODELS / "lenet5-mnist" / "model.onnx"), ["--out", str(tmp_path / "out")]
    data = ["--train", f"{MODELS / 'mnist.npz'}:train", "--preprocess", "scale=1/255"]
    assert main([model, "--passes", "retrain", "--launch", "--bogus", *data, *out]) == 2
    assert "unrecognized arguments: --bogus" in capsys.readouterr().err
    assert main([model, "--passes", "fold", "--launch", "--nproc-per-node=2", *out]) == 2
    assert "no pass of the recipe retrains" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
    (tmp_path / "recipe.toml").write_text('passes = "retrain"\nlaunch = "--nproc-per-node=2"\n')
    assert load_recipe(tmp_path / "recipe.toml").launch == "--nproc-per-node=2"


@pytest.mark.parametrize(
    ("passes", "options", "told"),
    [
        ("retrain", ["--parallel", "height=2"], "one process trains; give --launch"),
        ("fold", ["--parallel", "height=2"], "no pass of the recipe retrains"),
        ("retrain", ["--launch", "--nproc-per-node=2", "--parallel", "hight=2"], "hight is nothing that it knows"),
        ("retrain", ["--launch", "--nproc-per-node=3", "--parallel", "height=2"], "3 processes start"),
    ],
)  # fmt: skip
def test_what_parallel_cannot_mean_is_told_before_anything_starts(
    passes: str, options: list[str], told: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, out = str(MODELS / "lenet5-mnist" / "model.onnx"), ["--out", str(tmp_path / "out")]
    data = ["--train", f"{MODELS / 'mnist.npz'}:train", "--preprocess", "scale=1/255"]
    assert main([model, "--passes", passes, *options, *data, *out]) == 2
    assert told in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_what_cannot_be_handed_to_other_processes_is_refused(tmp_path: Path) -> None:
    made = trainer(tmp_path, "--nproc-per-node=2", None, [], 40)
    made.setup.data.extra = lambda: None  # type: ignore[attr-defined]
    with pytest.raises(PassError, match=r"cannot be handed to other processes .*; leave --launch out"):
        made.train(lenet(), options())
    assert not list((tmp_path / "out").iterdir())


def test_gradual_pruning_goes_to_a_worker_and_comes_back() -> None:
    made = Gradual([Budget(("w",), 6)], [0], [], "magnitude", "cubic", 2, 0.5, 0.8, True)
    weights = {"w": np.arange(1, 11, dtype=np.float32).reshape(2, 5)}
    copy = pickle.loads(pickle.dumps(made))
    for done in (0.0, 0.3, 1.0):
        copy(done, weights)
    made.restore(copy.state())
    np.testing.assert_array_equal(made(1.0, weights)["w"], weights["w"] > 6)
    np.testing.assert_array_equal(made.been_zero["w"], copy.been_zero["w"])
