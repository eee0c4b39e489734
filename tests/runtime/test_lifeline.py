"""Whether another machine that has fallen silent is noticed, and one that is only busy is not."""

import contextlib
import os
import queue
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from onnx_lathe.runtime.training import TrainingSetup
from onnx_lathe.runtime.training.parallel import lifeline
from onnx_lathe.runtime.training.parallel.launch import killed
from tests.support.distributed import digits
from tests.support.namespaces import machines

HUB = """
import signal, sys
import lifeline
lifeline._OPTIONS.update(TCP_KEEPIDLE=1, TCP_KEEPINTVL=1, TCP_KEEPCNT=2)
print(lifeline.listen(lifeline._end), flush=True)
signal.pause()
"""

OTHER = """
import signal, sys
import lifeline
lifeline._OPTIONS.update(TCP_KEEPIDLE=1, TCP_KEEPINTVL=1, TCP_KEEPCNT=2)
lifeline.connect(sys.argv[1], int(sys.argv[2]), 1, lifeline._end)
print("connected", flush=True)
signal.pause()
"""


def test_an_orderly_end_is_no_loss() -> None:
    lost = queue.Queue[str]()
    port = lifeline.listen(lost.put)
    with socket.create_connection(("127.0.0.1", port)) as line:
        line.sendall(b"3\n")
    with pytest.raises(queue.Empty):
        lost.get(timeout=0.3)


def test_a_machine_that_started_anew_is_lost() -> None:
    """It answers with a reset to a connection that it does not know."""
    lost = queue.Queue[str]()
    port = lifeline.listen(lost.put)
    with socket.create_connection(("127.0.0.1", port)) as line:
        line.sendall(b"3\n")
        time.sleep(0.3)
        line.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    assert lost.get(timeout=10) == "worker 3 on 127.0.0.1 (connection reset by peer)"


@pytest.mark.parametrize("said", [b"", b"\n", b"GET / HTTP/1.1\r\n\r\n", b"1" * 40])
def test_a_stranger_is_sent_away(said: bytes) -> None:
    lost = queue.Queue[str]()
    port = lifeline.listen(lost.put)
    with socket.create_connection(("127.0.0.1", port), 10) as line:
        line.sendall(said)
        line.shutdown(socket.SHUT_WR)
        with contextlib.suppress(ConnectionResetError):
            assert line.recv(1) == b""
    assert lost.empty()


def test_a_worker_zero_out_of_reach_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as closed:
        port = closed.getsockname()[1]
    with pytest.raises(RuntimeError, match=rf"worker 1 cannot reach worker 0 at 127.0.0.1:{port} \("):
        lifeline.connect("127.0.0.1", port, 1, lambda who: None)


def test_a_lost_machine_is_told_in_one_line(tmp_path: Path) -> None:
    """Though torchrun's own report, which names the worker that noticed, comes after it."""
    (tmp_path / "torchrun.log").write_text(
        f"{lifeline.LOST}worker 8 on 10.0.0.2 (connection timed out)\n"
        "torch.distributed.elastic.multiprocessing.errors.ChildFailedError: \n"
        "Root Cause (first observed failure):\n[0]:\n  exitcode  : 1 (pid: 7)\n"
    )
    assert (
        str(killed(tmp_path, TrainingSetup(digits(2))))
        == "lost worker 8 on 10.0.0.2 (connection timed out); the model is left as it was; "
        "--resume goes on after the last whole epoch"
    )


def test_silence_is_noticed_within_a_minute() -> None:
    assert 20 <= lifeline.SILENCE_S <= 45


@pytest.mark.slow
def test_both_sides_notice_a_cut_and_neither_takes_a_busy_worker_for_one() -> None:
    python = [sys.executable, "-c"]
    # The module by itself: nothing else has to be imported, which would take seconds.
    alone = {**os.environ, "PYTHONPATH": str(Path(lifeline.__file__).parent)}
    pipes: dict[str, Any] = {"env": alone, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with machines(2) as (one, other):
        hub = one.start([*python, HUB], **pipes)
        assert hub.stdout is not None
        port = hub.stdout.readline().strip()
        busy = other.start([*python, OTHER, one.name, port], **pipes)
        assert busy.stdout is not None
        assert busy.stdout.readline() == "connected\n"
        # As one that computes without an end, and lets no other thread run.
        busy.send_signal(signal.SIGSTOP)
        time.sleep(5)
        busy.send_signal(signal.SIGCONT)
        assert hub.poll() is None
        assert busy.poll() is None
        other.cut()
        said = hub.communicate(timeout=20)[1], busy.communicate(timeout=20)[1]
    assert hub.returncode == busy.returncode == 1
    assert said[0].strip() == f"lost a machine: worker 1 on {other.address} (connection timed out)"
    assert said[1].strip() == f"lost a machine: worker 0 on {one.name} (connection timed out)"
