"""Child processes of Lathe's own modules: what they import, how long they may take, and that they end with
their caller.
"""

import os
import shutil
import signal
import site
import subprocess
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onnx_lathe import errors


@dataclass
class Child:
    """A running process; `overdue` says that its time limit ended it."""

    process: subprocess.Popen[bytes]
    overdue: bool = False


def environment(**extra: str) -> dict[str, str]:
    """The caller's environment, in which a child finds this very package.

    Its folder comes last on PYTHONPATH, and neither the child's working directory nor a script's folder
    before it, so that nothing there takes the place of a user's module, or the other way round. What else
    the caller imports from it hands on itself (`user_code.search_path`): on PYTHONPATH that would reach
    interpreters of other versions too. `extra` holds for names that are not set.
    """
    root = str(Path(errors.__file__).resolve().parents[1])
    paths = [os.path.abspath(path) for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
    if root not in map(os.path.realpath, [*site.getsitepackages(), site.getusersitepackages()]):
        paths.append(root)
    return (
        extra
        | os.environ
        | {"PYTHONPATH": os.pathsep.join(paths), "PYTHONSAFEPATH": "1", "PYTHONIOENCODING": "utf-8"}
    )


@contextmanager
def running(
    command: Sequence[str],
    environment: Mapping[str, str],
    limit_s: float | None = None,
    grace_s: float = 0.0,
    stdout: int | None = subprocess.PIPE,
    **options: Any,
) -> Iterator[Child]:
    """The process with pipes for standard input and, unless `stdout` is None, output; however the block ends,
    the process ends with it.

    After `limit_s` seconds it is killed. At the end it is asked to go if `grace_s` says how long it has for
    that; its standard input closes, by which its own children can tell. `options` go to subprocess.Popen.
    Raises OSError if it cannot be started.
    """
    child = Child(
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=stdout, env=dict(environment), **options)
    )

    def end_it() -> None:
        child.overdue = True
        child.process.kill()

    timer = None if limit_s is None else threading.Timer(limit_s, end_it)
    try:
        if timer is not None:
            timer.daemon = True
            timer.start()
        yield child
    finally:
        if timer is not None:
            timer.cancel()
        _end(child.process, grace_s)


def end_with_caller(folder: Path | None = None) -> None:
    """Ends this process once its standard input is closed: whoever started it is gone, or wants its result no more.
    With a `folder`, which then goes, the process above is ended too: all are there for that result.
    """
    above = os.getppid()

    def wait() -> None:
        while os.read(0, 1):
            pass
        if folder is not None:
            shutil.rmtree(folder, ignore_errors=True)
            if os.getppid() == above:
                os.kill(above, signal.SIGTERM)
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def _end(process: subprocess.Popen[bytes], grace_s: float) -> None:
    try:
        if grace_s and process.poll() is None:
            process.terminate()
            process.wait(grace_s)
    except subprocess.TimeoutExpired:
        pass
    finally:
        process.kill()
        for stream in (process.stdin, process.stdout):
            if stream is not None:
                with suppress(OSError):  # a request that nobody reads any more
                    stream.close()
        process.wait()
