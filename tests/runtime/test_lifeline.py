"""Whether another machine that has fallen silent is noticed, and one that is only busy is not."""

import contextlib
import json
import queue
import socket
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from onnx_lathe.runtime.training import TrainingSetup
from onnx_lathe.runtime.training.parallel import lifeline
from onnx_lathe.runtime.training.parallel.launch import killed
from onnx_lathe.runtime.training.parallel.lifeline import Hub, Lost
from onnx_lathe.runtime.training.parallel.torchrun import meeting
from tests.support.distributed import digits

RESET = struct.pack("ii", 1, 0)
"""SO_LINGER by which the end of a connection is a reset, as of a machine that knows nothing of it."""


@pytest.fixture
def lost() -> "queue.Queue[Lost]":
    return queue.Queue[Lost]()


@pytest.fixture
def hub(lost: "queue.Queue[Lost]", monkeypatch: pytest.MonkeyPatch) -> Hub:
    monkeypatch.setattr(lifeline, "TELL_S", 0.0)
    return Hub(lost.put)


@contextlib.contextmanager
def joined(hub: Hub, own: Lost) -> Iterator[socket.socket]:
    before = len(hub.lines)
    with socket.create_connection(("127.0.0.1", hub.port)) as line:
        line.sendall(f"{json.dumps([hub.secret, own])}\n".encode())
        deadline = time.monotonic() + 10
        while len(hub.lines) == before and time.monotonic() < deadline:
            time.sleep(0.01)
        yield line


def test_an_orderly_end_is_no_loss(hub: Hub, lost: "queue.Queue[Lost]") -> None:
    with joined(hub, Lost(3, 1, "m1")):
        pass
    with pytest.raises(queue.Empty):
        lost.get(timeout=0.3)
    assert not hub.lines


def test_a_machine_that_started_anew_is_lost_and_the_others_are_told(
    hub: Hub, lost: "queue.Queue[Lost]"
) -> None:
    """It answers with a reset to a connection that it does not know."""
    told = queue.Queue[Lost]()
    lifeline.connect(
        ("127.0.0.1", hub.port), (hub.secret, Lost(2, 1, "m1")), Lost(0, 2, "m0"), lambda one: told.put(one)
    )
    with joined(hub, Lost(3, 2, "m2")) as line:
        line.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    gone = Lost(3, 2, "m2", "which broke the connection off")
    assert lost.get(timeout=10) == told.get(timeout=10) == gone
    assert str(gone) == "workers 3 to 4 on m2, which broke the connection off"
    assert str(Lost(3, 1, "m2", "silent")) == "worker 3 on m2, silent"


def test_others_that_can_do_without_hear_nothing(lost: "queue.Queue[Lost]") -> None:
    hub, told = Hub(lost.put, spreads=False), queue.Queue[Lost]()
    own, first = Lost(2, 1, "m1"), Lost(0, 2, "m0")
    lifeline.connect(("127.0.0.1", hub.port), (hub.secret, own), first, lambda one: told.put(one))
    with joined(hub, Lost(3, 1, "m2")) as line:
        line.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    assert lost.get(timeout=10).rank == 3
    with pytest.raises(queue.Empty):
        told.get(timeout=0.3)


@pytest.mark.parametrize(
    "said",
    [b"", b"\n", b"GET / HTTP/1.1\r\n\r\n", b"1" * 4000, b'["wrong", [3, 1, "m1", ""]]\n', b"[1, 2, 3]\n"],
)
def test_a_stranger_is_sent_away(said: bytes, hub: Hub, lost: "queue.Queue[Lost]") -> None:
    with socket.create_connection(("127.0.0.1", hub.port), 10) as line:
        line.sendall(said)
        line.shutdown(socket.SHUT_WR)
        with contextlib.suppress(ConnectionResetError):
            assert line.recv(1) == b""
    assert lost.empty()
    assert not hub.lines


def test_a_worker_zero_out_of_reach_is_told() -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    with pytest.raises(RuntimeError, match=rf"worker 1 cannot reach worker 0 at 127.0.0.1:{port} \("):
        lifeline.connect(("127.0.0.1", port), ("", Lost(1, 1, "m1")), Lost(0, 1, "m0"), lambda one: None)


@pytest.mark.parametrize(
    ("log", "says"),
    [
        (
            f"{lifeline.LOST}worker 8 on b, silent\n{lifeline.UNMET}a:29400, silent\n",
            "lost worker 8 on b, silent; ",
        ),
        (f"{lifeline.UNMET}a:29400, silent\n", "lost a:29400, silent; "),
        (
            f"{lifeline.LOST}worker 8 on b, silent\n{lifeline.LOST}worker 4 on c, silent\n",
            "lost worker 4 on c",
        ),
    ],
)
def test_a_lost_machine_is_told_in_one_line(log: str, says: str, tmp_path: Path) -> None:
    """Though torchrun's own report, which names the worker that noticed, comes after it."""
    (tmp_path / "torchrun.log").write_text(
        f"{log}torch.distributed.elastic.multiprocessing.errors.ChildFailedError: \n"
        "Root Cause (first observed failure):\n[0]:\n  exitcode  : 1 (pid: 7)\n"
    )
    line = str(killed(tmp_path, TrainingSetup(digits(2))))
    assert line.startswith(says)
    assert line.endswith("; the model is left as it was; --resume goes on after the last whole epoch")


@pytest.mark.parametrize(
    ("arguments", "place"),
    [
        ("--standalone --nproc-per-node=2", None),
        ("--nproc-per-node=2 --rdzv-backend=c10d --rdzv-endpoint=a:1", None),
        ("--nnodes=2 --node-rank=1 --rdzv-endpoint=head:29501", ("head", 29501)),
        ("--nnodes=2 --node-rank=1 --master-addr=head --master-port=29502", ("head", 29502)),
        ("--nnodes=1:2 --rdzv-backend=c10d --rdzv-endpoint=head", ("head", 29400)),
        ("--nnodes=2 --rdzv-backend=c10d --rdzv-endpoint=localhost:0", None),
        ("--nnodes=2 --rdzv-backend=etcd-v2 --rdzv-endpoint=keeper:2379", None),
    ],
)
def test_where_machines_meet(arguments: str, place: tuple[str, int] | None) -> None:
    assert meeting([*arguments.split(), "-m", "worker", "folder"]) == place


def test_silence_is_noticed_within_a_minute() -> None:
    assert 20 <= lifeline.SILENCE_S <= 45
