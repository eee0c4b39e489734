"""Machines that fall silent while workers train on them: network namespaces, in which nothing else runs."""

import json
import os
import signal
import socket
import struct
import subprocess
import sys
import time
from queue import Queue

import pytest
import torch.distributed as dist

from onnx_lathe.runtime.training.parallel import lifeline
from onnx_lathe.runtime.training.parallel.lifeline import Lost
from onnx_lathe.runtime.training.parallel.workers import LaunchedGroup
from tests.support import machine_workers
from tests.support.namespaces import knowing, machines

LIMIT_S = 200.0
"""Until a test that waits in vain fails; far more than a machine with much else to do takes."""

RESET = struct.pack("ii", 1, 0)
"""SO_LINGER by which the end of a connection is a reset, as of a machine that knows nothing of it."""


@pytest.mark.slow  # the only one that has PyTorch and machines of its own: 8 s, most of them silence
def test_a_cut_is_noticed_on_all_machines_and_no_busy_worker_is_taken_for_one() -> None:
    with machines(3) as made:
        command = [sys.executable, machine_workers.__file__, *(machine.name for machine in made)]
        with subprocess.Popen(knowing(made, command), stdout=subprocess.PIPE, text=True) as workers:
            try:
                assert workers.stdout is not None
                ready = [workers.stdout.readline().split() for _ in range(4)]
                processes = {int(words[0]): int(words[1]) for words in ready if len(words) == 2}
                assert len(processes) == 3, ready
                # As one that computes without an end, and lets no other thread run, for longer than silence may last.
                os.kill(processes[machine_workers.BUSY], signal.SIGSTOP)
                time.sleep(4)
                os.kill(processes[machine_workers.BUSY], signal.SIGCONT)
                made[2].cut()
                said = json.loads(workers.communicate(timeout=LIMIT_S)[0])
            finally:
                workers.kill()
    first, silent = made[0].name, f"silent for {lifeline.SILENCE_S} s"
    assert [text.splitlines()[-1] for text in said] == [
        f"lost a machine: worker 2 on {made[2].name}, {silent}",
        f"lost a machine: worker 2 on {made[2].name}, {silent}",
        f"lost a machine: worker 0 on {first}, {silent}",
        f"lost where torchrun meets: {first}:{machine_workers.MEETING}, {silent}",
    ]


@pytest.fixture
def first_of_two(monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment of the only worker on the first of two machines; the second does not take part."""
    sizes = {"RANK": 0, "WORLD_SIZE": 1, "LOCAL_RANK": 0, "LOCAL_WORLD_SIZE": 1, "GROUP_WORLD_SIZE": 2}
    for name, value in (sizes | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": 0}).items():
        monkeypatch.setenv(name, str(value))


def joined(hub: lifeline.Hub, count: int) -> None:
    """Waits until the hub has heard of so many: a line that breaks off before that is nobody's."""
    end = time.monotonic() + LIMIT_S
    while len(hub.lines) < count:
        assert time.monotonic() < end, f"{len(hub.lines)} of {count} lines"
        time.sleep(0.01)


def test_workers_hold_their_lines_before_the_first_collective(
    first_of_two: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over the store at which they have met: nothing else has to be given to them."""
    lost, told = Queue[Lost](), Queue[Lost]()
    stores, hubs = list[dist.Store](), list[lifeline.Hub]()
    monkeypatch.setattr(lifeline, "TELL_S", 0.0)
    hold, made = lifeline.hold, lifeline.Hub
    monkeypatch.setattr(lifeline, "hold", lambda store, *more: (stores.append(store), hold(store, *more)))
    monkeypatch.setattr(lifeline, "Hub", lambda *given: hubs.append(made(*given)) or hubs[-1])
    LaunchedGroup(False, lost.put)
    (store,), (hub,) = stores, hubs
    try:
        port, secret, first = json.loads(store.get("lifeline"))
        assert Lost(*first) == Lost(0, 1, socket.gethostname())
        hold(store, 2, told.put)
        joined(hub, 1)
        with socket.create_connection(("127.0.0.1", port)) as line:
            line.sendall(f"{json.dumps([secret, [3, 2, 'm3']])}\n".encode())
            joined(hub, 2)
            line.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
    finally:
        dist.destroy_process_group()
    gone = Lost(3, 2, "m3", "which broke the connection off")
    assert lost.get(timeout=LIMIT_S) == told.get(timeout=LIMIT_S) == gone
