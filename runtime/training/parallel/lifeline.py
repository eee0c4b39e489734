"""Notices a machine that has fallen silent. One that is cut off or has lost power closes no connection, and the
others would wait for it in their next collective for as long as `workers.PATIENCE`.

The first worker of every other machine keeps an idle TCP connection to worker 0, over which the kernels ask
each other whether they are still there (keepalive, RFC 1122, 4.2.3.6). It is the kernel that answers: a worker
that computes for an hour between two collectives, or holds Python's lock, is not taken for dead. Bounds on the
connections of the process group would do that: TCP_USER_TIMEOUT also counts the time in which the
other side does not read, and a time-out of a collective the time until it begins.
"""

import functools
import os
import socket
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store

IDLE_S, INTERVAL_S, PROBES = 10, 5, 4
"""Seconds without a word until the first question, between questions, and how many stay without an answer."""

SILENCE_S = IDLE_S + INTERVAL_S * PROBES
"""How long a machine is silent until it is lost."""

CONNECT_S = 30.0
"""How long a connection may take to be made, and to say who it is."""

LOST = "lost a machine: "
"""What stands before the line that a worker leaves on its standard error."""

_OPTIONS = {
    "TCP_KEEPIDLE": IDLE_S,
    "TCP_KEEPALIVE": IDLE_S,
    "TCP_KEEPINTVL": INTERVAL_S,
    "TCP_KEEPCNT": PROBES,
}
"""TCP_KEEPALIVE is macOS's name for Linux's TCP_KEEPIDLE; neither knows the other's."""


def hold(store: "Store", rank: int, lost: Callable[[str], None] | None = None) -> None:
    """Watches over the other machines from a thread, for as long as this process lives; one call in every
    worker, which torchrun started. `store` is what they share.

    `lost` hears who is silent, in that thread; without it, this process says so and ends, which torchrun sees
    as it sees any worker that dies. Raises RuntimeError if worker 0 cannot be reached.
    """
    told = _end if lost is None else lost
    if int(os.environ["GROUP_WORLD_SIZE"]) == 1:
        return
    if rank == 0:
        store.set("lifeline", str(listen(told)))
    elif int(os.environ["LOCAL_RANK"]) == 0:
        connect(os.environ["MASTER_ADDR"], int(store.get("lifeline")), rank, told)


def listen(lost: Callable[[str], None]) -> int:
    """Takes connections of other machines, as many as come. Returns the port."""
    server = (
        socket.create_server(("", 0), family=socket.AF_INET6, dualstack_ipv6=True)
        if socket.has_dualstack_ipv6()
        else socket.create_server(("", 0))
    )

    def accept() -> None:
        while True:
            line, address = server.accept()
            _in_thread(functools.partial(_greeted, line, address[0], lost))

    _in_thread(accept)
    return int(server.getsockname()[1])


def connect(host: str, port: int, rank: int, lost: Callable[[str], None]) -> None:
    """Holds on to worker 0. Raises RuntimeError if it cannot be reached."""
    try:
        line = socket.create_connection((host, port), CONNECT_S)
        line.sendall(f"{rank}\n".encode())
    except OSError as error:
        raise RuntimeError(
            f"worker {rank} cannot reach worker 0 at {host}:{port} ({error}); machines have to reach each other at any port"
        ) from error
    _in_thread(functools.partial(_wait, line, f"worker 0 on {host}", lost))


def _greeted(line: socket.socket, host: str, lost: Callable[[str], None]) -> None:
    """Waits on whoever says its number; anything else that connects is sent away."""
    line.settimeout(CONNECT_S)
    said = b""
    try:
        while not said.endswith(b"\n") and len(said) < 12:
            one = line.recv(1)
            if not one:
                break
            said += one
    except OSError:
        said = b""
    if said[:-1].isdigit() and said.endswith(b"\n"):
        _wait(line, f"worker {int(said)} on {host.removeprefix('::ffff:')}", lost)
    line.close()


def _wait(line: socket.socket, who: str, lost: Callable[[str], None]) -> None:
    """Until the other side ends in order, which its process group sees for itself. An error is silence, or
    a machine that has started anew and knows nothing of the connection.
    """
    line.settimeout(None)
    line.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _OPTIONS.items():
        if hasattr(socket, name):
            line.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    try:
        while line.recv(1):
            pass
    except OSError as error:
        lost(f"{who} ({os.strerror(error.errno or 0).lower()})")


def _end(who: str) -> None:
    """The main thread may be inside a collective, which nothing but the end of the process interrupts."""
    os.write(2, f"{LOST}{who}\n".encode())
    os._exit(1)


def _in_thread(target: Callable[[], None]) -> None:
    threading.Thread(target=target, daemon=True, name="lifeline").start()
