#!/usr/bin/env python3
"""Builds model.engine of the bundle that this file lies in: python3 build.py --help

This file alone has to be readable for Python 3.6 and later, to say what is missing, and does without the others until it has
compared them with SHA256SUMS.
"""

import hashlib
import os
import signal
import sys

SUMS = "SHA256SUMS"
LISTED = ["bundle.json", "model.onnx", "build.py", "build.sh"]
UNAVAILABLE, WRONG_USE, INTERRUPTED = 4, 2, 130
SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]


def stop(reason, code=UNAVAILABLE):  # type: ignore[no-untyped-def]
    """Ends the command with one line and an exit code."""
    sys.stderr.write(f"build.py: {reason}\n")
    sys.exit(code)


def end(number, frame):  # type: ignore[no-untyped-def]
    """Before the command itself takes signals there is nothing to take away, and an import may turn an exception into
    another one.
    """
    os.write(2, b"build.py: interrupted; nothing was written\n")
    os._exit(INTERRUPTED)


def check(folder):  # type: ignore[no-untyped-def]
    """Stops where a file is missing or changed, naming all such, or where SHA256SUMS leaves out one that is used."""
    path = os.path.join(folder, SUMS)
    again = "; copy the folder again"
    try:
        with open(path, encoding="utf-8") as file:
            pairs = [line.split("  ", 1) for line in file.read().splitlines() if "  " in line]
        parts = [name for name in sorted(os.listdir(os.path.join(folder, "parts"))) if name != "__pycache__"]
    except OSError as error:
        stop(f"{error.filename}: {error.strerror}{again}", WRONG_USE)
    except ValueError:
        stop(path + ": is not text" + again, WRONG_USE)
    expected = {name: wanted for wanted, name in pairs}
    if not expected:
        stop(path + ": lists no file" + again, WRONG_USE)
    left_out = [name for name in LISTED + ["parts/" + name for name in parts] if name not in expected]
    if left_out:
        stop(f"{path}: does not list {', '.join(left_out)}{again}", WRONG_USE)
    wrong = [said for said in (difference(folder, *pair) for pair in sorted(expected.items())) if said]
    if wrong:
        stop(f"{folder}: {', '.join(wrong)}{again}", WRONG_USE)


def difference(folder, name, wanted):  # type: ignore[no-untyped-def]
    """What is wrong with a file; empty if nothing is."""
    found = hashlib.sha256()
    try:
        with open(os.path.join(folder, name), "rb") as file:
            for piece in iter(lambda: file.read(1 << 20), b""):
                found.update(piece)
    except OSError as error:
        return f"{name} cannot be read ({error.strerror})"
    except ValueError:  # a name with a null byte
        return f"{name!r} cannot be a file's name"
    return "" if found.hexdigest() == wanted else name + " is not as it was written"


def run():  # type: ignore[no-untyped-def]
    """Returns the exit code."""
    for number in SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:  # as nohup has it
            signal.signal(number, end)
    if sys.version_info < (3, 10):  # noqa: UP036 the Python of a device may be older
        stop("Python 3.10 or newer is needed (JetPack 6 has it); ./build.sh needs none")
    folder = os.path.dirname(os.path.realpath(__file__))
    check(folder)
    try:
        import numpy  # noqa: F401
    except ImportError:
        stop(
            "numpy is not installed for "
            + sys.executable
            + ": sudo apt install python3-numpy; ./build.sh needs no Python"
        )
    sys.dont_write_bytecode = True  # the folder stays as it was written
    sys.path.insert(0, folder)  # python -P leaves it out
    from pathlib import Path

    try:
        from onnx_lathe.runtime.targets.jetson.device.command import main
    except ImportError as error:
        stop(f"{folder}: {error}; copy the folder again", WRONG_USE)
    return main(Path(folder))


if __name__ == "__main__":
    sys.exit(run())
