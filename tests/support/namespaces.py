"""Machines of their own within this one: network namespaces on a bridge, each with its address and host name.

    with machines(2) as (one, other):
        one.start(["python", ...])
        other.cut()

`cut` takes a machine's port out of the bridge: its link stays up and no packet passes, as when a switch
fails. No connection is closed by that. Needs iproute2 and the right to make namespaces; skips without.
"""

import contextlib
import itertools
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

ETC = Path("/etc/netns")
"""What `ip netns exec` puts in place of /etc, by a namespace's name."""

LARGEST = 65000
"""Bytes of a frame, where a link takes larger ones than Ethernet's."""

CHECKSUMS = """
import array, fcntl, socket, struct
off = array.array("I", [0x17, 0])  # ETHTOOL_STXCSUM
request = struct.pack("16sP", b"eth0", off.buffer_info()[0])
fcntl.ioctl(socket.socket(), 0x8946, request)  # SIOCETHTOOL
"""

_NUMBERS = itertools.count()


class Machine:
    """One namespace: its `name` and `address`; its interface is called eth0."""

    def __init__(self, name: str, bridge: str, port: str, address: str) -> None:
        self.name, self.bridge, self.port, self.address = name, bridge, port, address

    def start(self, command: Sequence[str], **more: Any) -> subprocess.Popen[str]:
        """Runs a command in it, under its own host name: torchrun and gloo go by that."""
        named = ["unshare", "--uts", "sh", "-c", 'hostname "$0" && exec "$@"', self.name]
        return subprocess.Popen(["ip", "netns", "exec", self.name, *named, *command], text=True, **more)

    def cut(self) -> None:
        """Silently: packets are dropped, on the way there and from there."""
        _ip("link", "set", self.port, "nomaster")

    def mend(self) -> None:
        """Joins it to the others again after `cut`."""
        _ip("link", "set", self.port, "master", self.bridge)

    def shape(self, megabits_per_s: float) -> None:
        """Bounds the rate of what it sends (tc, token bucket)."""
        rate = ["rate", f"{megabits_per_s}mbit", "burst", "128kb", "latency", "400ms"]
        self._run("tc", "qdisc", "replace", "dev", "eth0", "root", "tbf", *rate)

    def large_frames(self) -> None:
        """Lets frames be as large as they can, with checksums that are complete when they leave: few enough for
        `delayed`. The addresses have to be known already.
        """
        _ip("link", "set", self.port, "mtu", str(LARGEST))
        self._run("ip", "link", "set", "eth0", "mtu", str(LARGEST))
        self._run(sys.executable, "-c", CHECKSUMS)

    def _run(self, *command: str) -> None:
        _run("ip", "netns", "exec", self.name, *command)


def knowing(made: Sequence[Machine], command: Sequence[str]) -> list[str]:
    """The command, outside of all machines, where their names are known: for a process that moves into them."""
    bound = 'mount --bind "$0" /etc/hosts && exec "$@"'
    return ["unshare", "--mount", "sh", "-c", bound, str(ETC / made[0].name / "hosts"), *command]


@contextlib.contextmanager
def delayed(one: Machine, other: Machine, milliseconds: float) -> Iterator[None]:
    """Within, two machines are joined by a link on which everything takes so long, each way, in place of the bridge."""
    for machine in (one, other):
        machine.large_frames()
        machine.cut()
    command = [
        sys.executable,
        str(Path(__file__).with_name("relay.py")),
        one.port,
        other.port,
        str(milliseconds),
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as relay:
        try:
            if relay.stdout is None or relay.stdout.readline() != "ready\n":
                raise OSError("frames cannot be passed on here")
            yield
        finally:
            relay.kill()
            for machine in (one, other):
                machine.mend()


@contextlib.contextmanager
def machines(count: int) -> Iterator[list[Machine]]:
    """Two to four machines that reach each other. Skips the test where they cannot be made."""
    if shutil.which("ip") is None:
        pytest.skip("iproute2 is not installed")
    # An interface's name has at most 15 characters.
    mark = f"l{os.getpid():x}{next(_NUMBERS):x}"
    # The same addresses in every process: each bridge is a network of its own.
    made = [Machine(f"{mark}n{i}", f"{mark}b", f"{mark}p{i}", f"10.77.0.{i + 1}") for i in range(count)]
    try:
        try:
            _make(made)
        except (subprocess.CalledProcessError, OSError) as error:
            why = getattr(error, "stderr", None) or str(error)
            pytest.skip(f"network namespaces cannot be made here: {why.strip()}")
        yield made
    finally:
        for machine in made:
            _end_all(machine.name)
            _ip("netns", "del", machine.name, check=False)
            _ip("link", "del", machine.port, check=False)
            shutil.rmtree(ETC / machine.name, ignore_errors=True)
        _ip("link", "del", f"{mark}b", check=False)


def _make(made: Sequence[Machine]) -> None:
    bridge = made[0].bridge
    _ip("link", "add", bridge, "type", "bridge")
    _ip("link", "set", bridge, "up")
    hosts = "127.0.0.1 localhost\n" + "".join(f"{machine.address} {machine.name}\n" for machine in made)
    for machine in made:
        (ETC / machine.name).mkdir(parents=True)
        (ETC / machine.name / "hosts").write_text(hosts)
        _ip("netns", "add", machine.name)
        _ip("link", "add", machine.port, "type", "veth", "peer", "name", "eth0", "netns", machine.name)
        _ip("link", "set", machine.port, "master", bridge, "up")
        _ip("-n", machine.name, "addr", "add", f"{machine.address}/24", "dev", "eth0")
        _ip("-n", machine.name, "link", "set", "eth0", "up")
        _ip("-n", machine.name, "link", "set", "lo", "up")


def _end_all(name: str) -> None:
    """Ends what still runs in a namespace, which lives as long as that does."""
    listed = subprocess.run(["ip", "netns", "pids", name], check=False, capture_output=True, text=True)
    for number in listed.stdout.split():
        with contextlib.suppress(ProcessLookupError):
            os.kill(int(number), signal.SIGKILL)


def _ip(*arguments: str, check: bool = True) -> None:
    _run("ip", *arguments, check=check)


def _run(*command: str, check: bool = True) -> None:
    subprocess.run(command, check=check, capture_output=True, text=True)
