"""What supervisors and the server of a training say to each other, and how other machines get the result."""

import json
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

torch = pytest.importorskip("torch")
from torch._C._distributed_c10d import TCPStore  # noqa: E402

from onnx_lathe.errors import UsageError  # noqa: E402
from onnx_lathe.runtime.training.parallel import launch  # noqa: E402
from onnx_lathe.runtime.training.parallel.lifeline import Lost  # noqa: E402
from onnx_lathe.runtime.training.parallel.meeting import Meeting  # noqa: E402
from onnx_lathe.runtime.training.parallel.messages import Line  # noqa: E402
from onnx_lathe.runtime.training.parallel.server_parallel import OneOf  # noqa: E402
from onnx_lathe.runtime.training.parallel.server_worker import KEPT_BACK, Reception  # noqa: E402
from onnx_lathe.runtime.training.parallel.supervisor import failed_before, main, receive_result  # noqa: E402

LIMIT_S = 20.0


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> TCPStore:
    made = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", str(made.port))
    return made


def test_events_are_heard_once_and_in_order(store: TCPStore) -> None:
    server, one, other, stranger = Meeting("a"), Meeting("a"), Meeting("a"), Meeting("b")
    assert server.heard() == []
    one.say(starts=1, rank=1)
    other.say(starts=2, rank=2)
    stranger.say(starts=3, rank=3)
    one.say(gone=1, why="was ended by signal 9")
    assert server.heard() == [
        {"starts": 1, "rank": 1},
        {"starts": 2, "rank": 2},
        {"gone": 1, "why": "was ended by signal 9"},
    ]
    assert server.heard() == []
    assert one.ended() == ""
    server.end("well")
    assert (one.ended(), stranger.ended()) == ("well", "")


def test_an_event_that_never_comes_is_passed_over(store: TCPStore, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever announced it may have died in between."""
    monkeypatch.setattr("onnx_lathe.runtime.training.parallel.meeting._LATE_S", 0.05)
    server, one = Meeting("a"), Meeting("a")
    one.events.add("events", 1)
    one.say(starts=1, rank=1)
    found, until = server.heard(), time.monotonic() + LIMIT_S
    assert found == []
    while not found and time.monotonic() < until:
        time.sleep(0.02)
        found = server.heard()
    assert found == [{"starts": 1, "rank": 1}]


def test_the_result_goes_to_the_machines_that_are_left(store: TCPStore, tmp_path: Path) -> None:
    here, there = tmp_path / "here", tmp_path / "there"
    for folder in (here, there):
        folder.mkdir()
    (here / "result.npz").write_bytes(bytes(range(256)) * 40)
    (here / KEPT_BACK).write_text(json.dumps({"metrics": {}}))
    reception = Reception(Meeting("a"), here)
    reception.receivers += [2, 4]
    reception.lose(Lost(4, 2, "m2", "silent for 30 s"))

    def receive() -> None:
        time.sleep(0.2)
        assert not (here / "result.json").exists(), "launch would end torchrun"
        receive_result(there, Line(Meeting("a").store(), "result2", 1))

    receiver = threading.Thread(target=receive, daemon=True)
    receiver.start()
    started = time.monotonic()
    reception.hand_out()
    receiver.join(LIMIT_S)
    assert time.monotonic() - started < LIMIT_S, "the machine that is lost was waited for"
    assert (there / "result.json").exists()
    for name in ("result.npz", "result.json"):
        assert (there / name).read_bytes() == (here / name).read_bytes()


def test_torchrun_is_ended_where_it_waits_for_a_lost_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its call to the store does not return for a signal."""
    for name in ("AFTER_S", "ENDING_S"):
        monkeypatch.setattr(launch, name, 0.1)
    (tmp_path / "result.json").write_text("{}")
    deaf = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); print(flush=True); signal.pause()"
    with subprocess.Popen([sys.executable, "-c", deaf], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        ending = threading.Thread(target=launch._end_with_result, args=(tmp_path, process), daemon=True)
        ending.start()
        ending.join(LIMIT_S)
        try:
            assert process.wait(LIMIT_S) == -signal.SIGKILL
        finally:
            process.kill()


@pytest.mark.parametrize("failed", [True, False])
def test_after_a_mistake_on_one_machine_no_other_begins(
    store: TCPStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failed: bool
) -> None:
    monkeypatch.setenv("LOCAL_RANK", "0")
    folders, told = [tmp_path / str(rank) for rank in range(3)], dict[int, bool]()
    for folder in folders:
        folder.mkdir()
    if failed:
        (folders[1] / "error.json").write_text("the disk is gone")

    def look(rank: int) -> None:
        told[rank] = failed_before(folders[rank], Meeting("a").store(), rank, 3)

    threads = [threading.Thread(target=look, args=(rank,), daemon=True) for rank in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(LIMIT_S)
    assert told == dict.fromkeys(range(3), failed)
    for folder in folders:
        assert [path.read_text() for path in folder.iterdir()] == ["the disk is gone"] * failed


def test_a_mistake_is_not_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As torchrun would with --max-restarts."""
    monkeypatch.setattr(
        "onnx_lathe.runtime.training.parallel.supervisor.end_with_caller", lambda folder: None
    )
    for name in ("MASTER_ADDR", "GROUP_WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "error.json").write_text("{}")
    main(tmp_path)
    (tmp_path / "error.json").unlink()
    with pytest.raises(ValueError, match="rendezvous"):
        main(tmp_path)


def test_workers_take_gpus_that_are_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    # on the server's machine: rank is the number there, and rank 0 needs none
    assert [OneOf(rank, rank, 3, True).device("auto") for rank in (1, 2)] == ["cuda:0", "cuda:1"]
    assert [OneOf(rank, rank - 3, 2, True).device("cuda") for rank in (3, 4)] == ["cuda:0", "cuda:1"]
    assert OneOf(5, 1, 2, False).device("cpu") == "cpu"
    with pytest.raises(UsageError, match="3 workers, but this machine has 2 GPUs"):
        OneOf(3, 3, 4, True)
