"""One study, several processes: through a journal and through PostgreSQL, as the command shares it."""

import json
import os
import pickle
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest

from onnx_lathe.errors import UsageError
from onnx_lathe.optimizer.cli import main
from onnx_lathe.optimizer.recipe import parse_calls
from onnx_lathe.optimizer.search.bench import Outcome
from onnx_lathe.optimizer.search.clock import Clock
from onnx_lathe.optimizer.search.goal import Goal
from onnx_lathe.optimizer.search.loop import Loop
from onnx_lathe.optimizer.search.space import Dimension, Settings, Space
from onnx_lathe.optimizer.search.storage import BUSY, Shared, end_between, open_storage
from onnx_lathe.optimizer.search.untrained import RULED_OUT
from onnx_lathe.runtime import processes
from tests.support.builders import build, random
from tests.support.models import ROOT
from tests.support.postgres import server

pytest.importorskip("optuna")
NETWORK = "(float[N, 16] x) => (float[N, 5] y) { h = MatMul (x, w1)  r = Relu (h)  y = MatMul (r, w2) }"


@pytest.fixture(scope="module")
def postgres() -> Iterator[str]:
    with server() as url:
        yield url


@pytest.fixture
def storage(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    if request.param == "postgresql":
        url: str = request.getfixturevalue("postgres")
        return url
    return f"journal:{tmp_path / 'shared.journal'}"


@pytest.fixture
def asked(tmp_path: Path) -> list[str]:
    onnx.save(build(NETWORK, w1=random(16, 64), w2=random(64, 5)), tmp_path / "model.onnx")
    np.savez(tmp_path / "data.npz", x=random(200, 16))
    return [
        "search", str(tmp_path / "model.onnx"), "--passes", "prune, codebook", "--gate", "sqnr >= 5", "--data",
        str(tmp_path / "data.npz"), "--threads", "1", "--quiet", "--json",
    ]  # fmt: skip


def start(*arguments: str) -> "subprocess.Popen[bytes]":
    return subprocess.Popen(
        [sys.executable, "-m", "onnx_lathe", *arguments],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


@pytest.mark.slow
@pytest.mark.parametrize("storage", ["journal", "postgresql"], indirect=True)
def test_two_commands_share_one_study(storage: str, asked: list[str], tmp_path: Path) -> None:
    """As on two machines: each has its own folder, and both see the trials of both."""
    places = [tmp_path / name for name in ("one", "two")]
    more = ["--storage", storage, "--trials", "12", "--budget", "2h"]
    running = [start(*asked, *more, "--out", str(place)) for place in places]
    said = [process.communicate() for process in running]
    assert [process.returncode for process in running] == [0, 0], said
    one, two = (json.loads(out) for out, _ in said)
    assert one["study"] == two["study"]
    least = min(len(one["trials"]), len(two["trials"]))
    assert least >= 12
    numbers = [trial["number"] for trial in one["trials"]]
    assert len(set(numbers)) == len(numbers)
    seen, others = ({trial["number"]: trial for trial in record["trials"]} for record in (one, two))
    common = seen.keys() & others.keys()
    assert len(common) >= 10
    assert all(seen[number] == others[number] for number in common)
    assert one["winner"]["ratio"] == pytest.approx(two["winner"]["ratio"], rel=0.2)


@pytest.mark.slow
@pytest.mark.parametrize("storage", ["journal"], indirect=True)
def test_jobs_are_processes_of_one_search(
    storage: str, asked: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The caller waits for a trial of the other process, whose start takes long on a machine with much to do, and makes
    some more itself.
    """
    run, patience = Loop.run, time.monotonic() + 500

    def patiently(loop: Loop) -> None:
        while not loop.shared.finished() and time.monotonic() < patience:
            time.sleep(0.05)
        loop.most = len(loop.shared.finished()) + 8
        run(loop)

    monkeypatch.setattr(Loop, "run", patiently)
    out = tmp_path / "out"
    more = ["--storage", storage, "--seed", "1", "--trials", "20", "--budget", "2h", "--jobs", "2"]
    assert main([*asked, *more, "--out", str(out)]) == 0
    record = json.loads((out / "search.json").read_text())
    assert len({trial["process"] for trial in record["trials"]}) == 2
    assert not [note for note in record["notes"] if "ended early" in note]


@pytest.mark.parametrize("storage", ["journal", "postgresql"], indirect=True)
def test_an_outcome_comes_back_as_it_was(storage: str) -> None:
    dimensions = (
        Dimension("a.layers[w]", 0, ("layers",), "w", (0.0, 0.5, 0.9)),
        Dimension("b.rate", 0, ("rate",), low=1e-4, high=1e-1, log=True),
        Dimension("b.batch", 0, ("batch",), choices=(32, "auto", None, True)),
    )
    space = Space((), dimensions)
    shared = Shared.open(open_storage(storage), "study", space, 0)
    wanted = {"a.layers[w]": 0.9, "b.rate": 0.01, "b.batch": None}
    shared.enqueue(wanted)
    assert shared.waiting == 1
    trial, settings = shared.ask()
    assert settings == wanted
    outcome = Outcome(
        0.5, {"sqnr": float("inf"), "top1": 0.5}, False, 1.5, 2, False, ("no",), "hopeless", 0.1
    )
    shared.tell(trial, outcome)
    again = Shared.open(open_storage(storage), "study", space, 1)
    (tried,) = again.finished()
    assert tried.settings == wanted
    assert tried.outcome == outcome


def test_another_process_sees_a_trial_whole_or_not_at_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    optuna = pytest.importorskip("optuna")
    space = Space((), (Dimension("x", 0, ("x",), choices=(1, 2)),))
    name = f"journal:{tmp_path / 'j'}"
    shared, other = (Shared.open(open_storage(name), "study", space, seed) for seed in (0, 1))
    write = optuna.Trial.set_user_attr
    seen = []

    def written(trial: object, key: str, value: object) -> None:
        write(trial, key, value)
        seen.extend(other.finished())

    monkeypatch.setattr(optuna.Trial, "set_user_attr", written)
    trial, _ = shared.ask()
    shared.tell(trial, Outcome(0.5, {}, True, 0.0, 1, True))
    assert seen
    assert seen == other.finished() * len(seen)


def test_a_lock_that_a_killed_process_left_holds_up_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Links relative to the folder of the command, which lead nowhere, made Optuna wait for ever."""
    monkeypatch.chdir(tmp_path)
    stale = tmp_path / "out" / "study.journal.lock"
    stale.parent.mkdir()
    stale.symlink_to("out/study.journal")
    os.utime(stale, (1, 1), follow_symlinks=False)
    made = []
    worker = threading.Thread(
        target=lambda: made.append(
            Shared.open(open_storage("journal:out/study.journal"), "study", Space((), ()), 0)
        ),
        daemon=True,
    )
    worker.start()
    worker.join(100)
    assert made
    storage = open_storage("journal:out/study.journal")
    lock = storage._backend._lock
    lock.acquire()
    assert stale.exists()  # it leads somewhere, so that Optuna sees its age
    lock.release()


def test_a_process_is_not_ended_in_the_middle_of_a_write(monkeypatch: pytest.MonkeyPatch) -> None:
    ended: list[int] = []
    monkeypatch.setattr("os._exit", ended.append)
    with BUSY:
        ending = threading.Thread(target=end_between)
        ending.start()
        ending.join(0.2)
        assert not ended
    ending.join(5)
    assert ended == [0]


def test_repeats_count_once(tmp_path: Path) -> None:
    """And a search of three settings ends when all are tried."""
    space = Space((), (Dimension("x", 0, ("x",), choices=(1, 2, 3)),))
    shared = Shared.open(open_storage(f"journal:{tmp_path / 'j'}"), "study", space, 0)
    tried: list[Settings] = []

    class Three:
        clock, best, goal = Clock(1e12), 1.0, Goal("packed", (), 1.0)

        def try_out(self, settings: Settings) -> Outcome:
            tried.append(settings)
            return Outcome(0.5, {}, True, 0.0, 1, True)

    bench = Three()
    bench.space = space  # type: ignore[attr-defined]
    Loop(bench, shared, {}, 0).run()  # type: ignore[arg-type]
    assert len(shared.finished()) == 3
    assert len(tried) < 60


def test_the_winner_of_a_training_can_be_made_again(tmp_path: Path) -> None:
    """Its time is kept before the first training, whose length is not known yet."""
    space = Space(parse_calls("retrain", "p"), (Dimension("retrain.rate", 0, ("rate",), choices=(0.1, 0.2)),))
    shared = Shared.open(open_storage(f"journal:{tmp_path / 'j'}"), "study", space, 0)
    left: list[float] = []

    class Trains:
        clock, best, goal = Clock(time.time() + 90_000), 1.0, Goal("packed", (), 1.0)

        def try_out(self, settings: Settings) -> Outcome:
            left.append(self.clock.left)
            return Outcome(0.5, {}, True, 0.0, 1, True)

    bench = Trains()
    bench.space = space  # type: ignore[attr-defined]
    Loop(bench, shared, {}, 0).run()  # type: ignore[arg-type]
    assert left[0] <= 30_000 < left[1]


@pytest.mark.parametrize("seconds, begun", [(40_000.0, 0), (10_000.0, 1)])
def test_a_training_that_would_not_end_in_time_is_not_begun(
    seconds: float, begun: int, tmp_path: Path
) -> None:
    """By the longest of earlier ones, of other processes too; most trials ended after a look without training."""
    space = Space(parse_calls("retrain", "p"), (Dimension("retrain.rate", 0, ("rate",), low=0.1, high=0.2),))
    shared = Shared.open(open_storage(f"journal:{tmp_path / 'j'}"), "study", space, 0)
    for number in range(12):
        trial, _ = shared.ask()
        stopped = "" if number == 4 else RULED_OUT
        passed = not stopped
        shared.tell(trial, Outcome(0.5, {}, passed, 0.0, 1, passed, (), stopped, seconds if passed else 0.1))
    tried: list[Settings] = []

    class Trains:
        clock, best, goal = Clock(time.time() + 90_000), 1.0, Goal("packed", (), 1.0)

        def try_out(self, settings: Settings) -> Outcome:
            tried.append(settings)
            return Outcome(0.5, {}, True, 0.0, 1, True, seconds=seconds)

    bench = Trains()
    bench.space = space  # type: ignore[attr-defined]
    Loop(bench, shared, {}, 0, most=13).run()  # type: ignore[arg-type]
    assert len(tried) == begun


def test_a_database_that_is_not_there_is_told_without_the_password() -> None:
    pytest.importorskip("psycopg2")
    with pytest.raises(UsageError) as refused:
        open_storage("postgresql://me:secret@127.0.0.1:1/none")
    assert "cannot be opened" in str(refused.value)
    assert "secret" not in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_process_that_is_done_before_its_caller_ends_in_peace() -> None:
    """While another of its threads waits for the caller's end of the pipe to close."""
    code = (
        "import pickle, sys, threading, time\n"
        "from onnx_lathe.optimizer.search import worker\n"
        "pickle.load(sys.stdin.buffer)\n"
        "threading.Thread(target=worker._end_with_caller, daemon=True).start()\n"
        "time.sleep(0.3)\n"
    )
    with processes.running(
        [sys.executable, "-c", code], processes.environment(), stderr=subprocess.PIPE
    ) as child:
        assert child.process.stdin is not None
        assert child.process.stderr is not None
        pickle.dump("request", child.process.stdin)
        child.process.stdin.flush()
        assert child.process.wait(60) == 0
        assert child.process.stderr.read() == b""
