"""Notices a machine that has fallen silent. One that is cut off or has lost power closes no connection, and the
others would wait for it in their next collective for as long as `workers.PATIENCE`.

Every worker keeps an idle TCP connection to worker 0, over which the kernels ask each other whether they are
still there (keepalive, RFC 1122, 4.2.3.6); worker 0 tells the others whom it lost. It is the kernel that
answers: a worker that computes for an hour between two collectives, or holds Python's lock, is not taken for
dead. Bounds on the connections of the process group would do that: TCP_USER_TIMEOUT also counts the time in which the
other side does not read, and a time-out of a collective the time until it begins.
"""

import contextlib
import errno
import json
import os
import re
import secrets
import socket
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from torch._C._distributed_c10d import Store

IDLE_S, INTERVAL_S, PROBES = 10, 5, 4
"""Seconds without a word until the first question, between questions, and how many stay without an answer."""

SILENCE_S = IDLE_S + INTERVAL_S * PROBES
"""How long a machine is silent until it is lost."""

CONNECT_S = 30.0
"""How long a connection may take to be made, and to say who it is."""

TELL_S = 0.5
"""Between telling the others who is lost and the own end, of which their process groups would say something else."""

LOST, UNMET = "lost a machine: ", "lost where torchrun meets: "
"""What stands before the line that a worker, or torchrun, leaves on its standard error."""

_LONGEST = 1000
"""Bytes of a line that is read."""

_OPTIONS = {
    "TCP_KEEPIDLE": IDLE_S,
    "TCP_KEEPALIVE": IDLE_S,
    "TCP_KEEPINTVL": INTERVAL_S,
    "TCP_KEEPCNT": PROBES,
}
"""TCP_KEEPALIVE is macOS's name for Linux's TCP_KEEPIDLE; neither knows the other's."""


class Lost(NamedTuple):
    """A machine with so many `workers`, the first of them `rank`, and why it is thought to be lost, if it is."""

    rank: int
    workers: int
    host: str
    why: str = ""

    def __str__(self) -> str:
        last = self.rank + self.workers - 1
        who = f"worker {self.rank}" if self.workers == 1 else f"workers {self.rank} to {last}"
        return f"{who} on {self.host}, {self.why}"


Told = Callable[[Lost], None]


def end(lost: Lost) -> None:
    """Says so and ends this process, which torchrun sees as it sees any worker that dies. The main thread may be
    inside a collective, which nothing else interrupts.
    """
    os.write(2, f"{LOST}{lost}\n".encode())
    os._exit(1)


def told(log: str) -> str:
    """What `end` said last in a log, or else torchrun.py; empty if neither did."""
    for mark in (LOST, UNMET):
        if found := re.findall(rf"^{mark}(.*)$", log, re.MULTILINE):
            return str(found[-1])
    return ""


def hold(store: "Store", rank: int, lost: Told = end, spreads: bool = True) -> None:
    """Watches over the other machines from threads, for as long as this process lives; one call in every
    worker, which torchrun started. `store` is what they share; `lost` is called in a thread. `spreads`: whether
    the others cannot go on without a machine that worker 0 has lost, and hear of it.

    Raises RuntimeError if worker 0 cannot be reached.
    """
    there = os.environ
    if int(there.get("GROUP_WORLD_SIZE", "1")) == 1:
        return
    own = Lost(rank - int(there["LOCAL_RANK"]), int(there["LOCAL_WORLD_SIZE"]), socket.gethostname())
    if rank == 0:
        hub = Hub(lost, spreads)
        store.set("lifeline", json.dumps([hub.port, hub.secret, own]))
    else:
        port, secret, first = json.loads(store.get("lifeline"))
        connect((there["MASTER_ADDR"], port), (secret, own), Lost(*first), lost)


class Hub:
    """Worker 0's ends of all lines, as many as come. Once one is lost, all others are told, if it `spreads`, and then
    `lost` is, for each line by itself.
    """

    def __init__(self, lost: Told, spreads: bool = True) -> None:
        self.lost, self.spreads, self.secret = lost, spreads, secrets.token_hex(8)
        self.lines: list[socket.socket] = []
        self.server = (
            socket.create_server(("", 0), family=socket.AF_INET6, dualstack_ipv6=True)
            if socket.has_dualstack_ipv6()
            else socket.create_server(("", 0))
        )
        self.port = int(self.server.getsockname()[1])
        in_thread(self._accept)

    def _accept(self) -> None:
        while True:
            line, _ = self.server.accept()
            in_thread(self._greeted, line)

    def _greeted(self, line: socket.socket) -> None:
        """Waits on whoever knows the secret; anything else that connects is sent away."""
        line.settimeout(CONNECT_S)
        with contextlib.closing(line):
            try:
                with line.makefile("rb") as file:
                    secret, machine = json.loads(file.readline(_LONGEST))
            except (OSError, ValueError, TypeError):
                return
            if secret != self.secret:
                return
            self.lines.append(line)
            _, why = heard(line)
            self.lines.remove(line)
        if why:
            self._tell(Lost(*machine)._replace(why=why))

    def _tell(self, lost: Lost) -> None:
        if self.spreads:
            for line in list(self.lines):
                with contextlib.suppress(OSError):
                    line.sendall(f"{json.dumps(lost)}\n".encode())
            time.sleep(TELL_S)
        self.lost(lost)


def connect(address: tuple[str, int], greeting: tuple[str, Lost], first: Lost, lost: Told) -> None:
    """Holds on to worker 0, whose machine is `first`; `greeting` is the hub's secret and the own machine. Raises
    RuntimeError if it cannot be reached.
    """
    try:
        line = socket.create_connection(address, CONNECT_S)
        line.sendall(f"{json.dumps(greeting)}\n".encode())
    except OSError as error:
        raise RuntimeError(
            f"worker {greeting[1].rank} cannot reach worker 0 at {address[0]}:{address[1]} ({error}); "
            "machines have to reach each other at any port"
        ) from error

    def wait() -> None:
        said, why = heard(line)
        if why:
            lost(first._replace(why=why))
        elif said:
            lost(Lost(*json.loads(said)))

    in_thread(wait)


def heard(line: socket.socket) -> tuple[bytes, str]:
    """(what the other side says, why it is lost). Both are empty if it ends in order, which its process group sees
    for itself.
    """
    line.settimeout(None)
    line.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in _OPTIONS.items():
        if hasattr(socket, name):
            line.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
    try:
        with line.makefile("rb") as file:
            return file.readline(_LONGEST), ""
    except OSError as error:
        # A machine that started anew knows nothing of the connection and says so.
        anew = error.errno in (errno.ECONNRESET, errno.EPIPE)
        return b"", "which broke the connection off" if anew else f"silent for {SILENCE_S} s"


def in_thread(target: Callable[..., None], *arguments: object) -> None:
    threading.Thread(target=target, args=arguments, daemon=True, name="lifeline").start()
