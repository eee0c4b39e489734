"""A PostgreSQL server for one test module, started from Debian's package where that is installed."""

import os
import shutil
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

FOLDERS = ("/usr/lib/postgresql", "/usr/local/bin", "/usr/bin")
USERS = ("postgres", "nobody")
START_S = 60


def _program(name: str) -> str:
    """Its path, or the reason to skip: Debian keeps it in a folder of the version."""
    found = [path for folder in FOLDERS for path in Path(folder).glob(f"**/bin/{name}")]
    where = shutil.which(name) or (str(sorted(found)[-1]) if found else "")
    if not where:
        pytest.skip("PostgreSQL is not installed (apt-get install postgresql)")
    return where


def _as_user(command: list[str]) -> list[str]:
    """The server refuses to run as root."""
    if os.name == "nt" or os.getuid() != 0:
        return command
    if shutil.which("runuser") is None:
        pytest.skip("PostgreSQL does not run as root, and there is no runuser")
    return ["runuser", "-u", _user(), "--", *command]


def _user() -> str:
    import pwd

    known = {entry.pw_name for entry in pwd.getpwall()}
    return next((user for user in USERS if user in known), "nobody")


@contextmanager
def server() -> Iterator[str]:
    """The URL of an empty database; the server ends with the block."""
    pytest.importorskip("psycopg2", reason="psycopg2 is not installed")
    initdb, postgres = _program("initdb"), _program("postgres")
    with tempfile.TemporaryDirectory(prefix="lathe-postgres-") as folder:
        if os.name != "nt" and os.getuid() == 0:
            shutil.chown(folder, _user())
        data = f"{folder}/data"
        subprocess.run(
            _as_user([initdb, "-D", data, "-U", "lathe", "--auth=trust", "--no-sync"]),
            check=True, stdout=subprocess.DEVNULL, cwd=folder,
        )  # fmt: skip
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        options = [
            "-D",
            data,
            "-p",
            str(port),
            "-k",
            folder,
            "-c",
            "fsync=off",
            "-c",
            "listen_addresses=127.0.0.1",
        ]
        process = subprocess.Popen(
            _as_user([postgres, *options]), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, cwd=folder
        )
        try:
            _wait(port, process)
            yield f"postgresql://lathe@127.0.0.1:{port}/postgres"
        finally:
            process.terminate()
            process.wait(START_S)


def _wait(port: int, process: "subprocess.Popen[bytes]") -> None:
    import psycopg2

    ends = time.monotonic() + START_S
    while True:
        try:
            psycopg2.connect(host="127.0.0.1", port=port, user="lathe", dbname="postgres").close()
            return
        except psycopg2.OperationalError:
            if process.poll() is not None or time.monotonic() > ends:
                raise
            time.sleep(0.1)
