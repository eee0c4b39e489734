"""torchrun, for as long as there is the process that started it: `python -m
onnx_lathe.runtime.training.parallel.torchrun FOLDER ARGUMENTS`.

While torchrun waits for other machines it has no worker that would see its parent die. And where the machine
on which they meet falls silent, it waits for an answer for as long as the kernel repeats the question, a
quarter of an hour: its workers are told by lifelines of their own, and torchrun itself by one to that machine.
"""

import contextlib
import os
import shutil
import signal
import socket
import sys
import threading
import time
from collections.abc import Sequence

from torch.distributed.elastic.rendezvous.utils import parse_rendezvous_endpoint
from torch.distributed.run import get_args_parser, main

from onnx_lathe.runtime.training.parallel import lifeline

GRACE_S = 5.0
"""How long torchrun has to end its workers; they see for themselves that their input is closed."""

AGAIN_S = 0.5
"""Until the next attempt to reach the machine where torchrun meets."""


def watch(folder: str) -> None:
    """Waits until standard input is closed, then ends this process and removes the folder."""
    while os.read(0, 1):
        pass
    shutil.rmtree(folder, ignore_errors=True)
    _end()


def meeting(arguments: Sequence[str]) -> tuple[str, int] | None:
    """(host, port) where several machines meet; None where there is one, or another service keeps the store."""
    options = get_args_parser().parse_args(arguments)
    if options.standalone or options.nnodes.rpartition(":")[2] == "1":
        return None
    if options.rdzv_backend == "static" and not options.rdzv_endpoint:
        return options.master_addr, options.master_port
    if options.rdzv_backend not in ("static", "c10d"):
        return None
    found = parse_rendezvous_endpoint(options.rdzv_endpoint, default_port=29400)
    return found if found[1] > 0 else None


def hold(host: str, port: int) -> None:
    """Ends this process once that machine is silent: nobody could meet there again."""
    why = ""
    while not why:
        time.sleep(AGAIN_S)
        with contextlib.suppress(OSError), socket.create_connection((host, port), lifeline.CONNECT_S) as line:
            _, why = lifeline.heard(line)
    time.sleep(lifeline.IDLE_S)  # by then the workers have noticed, too, and name it by their ranks
    os.write(2, f"{lifeline.UNMET}{host}:{port}, {why}\n".encode())
    _end()


def _end() -> None:
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(GRACE_S)
    os._exit(1)


if __name__ == "__main__":
    threading.Thread(target=watch, args=(sys.argv[1],), daemon=True).start()
    where = meeting(sys.argv[2:])
    if where is not None:
        lifeline.in_thread(hold, *where)
    main(sys.argv[2:])
