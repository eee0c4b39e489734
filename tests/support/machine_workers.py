"""Workers of a training, each on a machine of its own, of which none computes anything: `python
machine_workers.py NAME ...`, of tests/support/namespaces.py.

PyTorch is imported once, and every worker is a fork that moves into its machine. Each prints its number and its process
on one line once all have met, and waits for the others in a collective, into which one never comes. On the last machine
there is torchrun's own line to the first, too, which prints "meeting". What all say at their end is printed as JSON.
"""

import contextlib
import ctypes
import json
import os
import signal
import socket
import sys
from collections.abc import Callable

from onnx_lathe.runtime.training.parallel import lifeline, torchrun, worker
from onnx_lathe.runtime.training.parallel.workers import LaunchedGroup

CLONE_NEWUTS, CLONE_NEWNET = 0x04000000, 0x40000000
PORT, MEETING = 29400, 29401
"""Where the store is, and where torchrun would meet: any is free in a machine that is new."""

BUSY = 1
"""The worker that the others wait for."""


def enter(name: str) -> None:
    """Moves this process into a machine, under its host name."""
    libc = ctypes.CDLL(None, use_errno=True)
    with open(f"/run/netns/{name}") as file:
        if libc.setns(file.fileno(), CLONE_NEWNET) or libc.unshare(CLONE_NEWUTS):
            raise OSError(ctypes.get_errno(), "a machine cannot be entered")
    socket.sethostname(name)


def work(rank: int, machines: list[str]) -> None:
    os.environ |= {
        "RANK": str(rank),
        "WORLD_SIZE": str(len(machines)),
        "LOCAL_RANK": "0",
        "LOCAL_WORLD_SIZE": "1",
        "GROUP_WORLD_SIZE": str(len(machines)),
        "MASTER_ADDR": machines[0],
        "MASTER_PORT": str(PORT),
    }
    meeting = socket.create_server(("", MEETING)) if rank == 0 else None
    group = LaunchedGroup(False, worker._lost)
    group.total(1.0)
    say(f"{rank} {os.getpid()}")
    with contextlib.suppress(RuntimeError):  # gloo's word for another that has ended because of the loss
        if rank != BUSY:
            group.total(1.0)
    signal.pause()
    del meeting


def meet(first: str) -> None:
    heard = lifeline.heard

    def connected(line: socket.socket) -> tuple[bytes, str]:
        say("meeting")
        return heard(line)

    lifeline.heard = connected
    torchrun.hold(first, MEETING)


def say(line: str) -> None:
    os.write(1, f"{line}\n".encode())


def forked(name: str, target: Callable[[], None]) -> tuple[int, int]:
    """(process, where it says what is wrong)."""
    reading, writing = os.pipe()
    process = os.fork()
    if process == 0:
        try:
            os.dup2(writing, 2)
            enter(name)
            target()
        finally:
            os._exit(9)
    os.close(writing)
    return process, reading


def main(machines: list[str]) -> None:
    # Seconds in place of half a minute.
    lifeline._OPTIONS.update(TCP_KEEPIDLE=1, TCP_KEEPINTVL=1, TCP_KEEPCNT=2)
    lifeline.IDLE_S = 0
    started = [forked(name, lambda rank=rank: work(rank, machines)) for rank, name in enumerate(machines)]
    started.append(forked(machines[-1], lambda: meet(machines[0])))
    said = []
    for process, reading in started:
        with open(reading, encoding="utf-8") as file:
            said.append(file.read())
        os.waitpid(process, 0)
    say(json.dumps(said))


if __name__ == "__main__":
    main(sys.argv[1:])
