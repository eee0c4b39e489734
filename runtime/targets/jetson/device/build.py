#!/usr/bin/env python3
"""Builds model.engine of the bundle that this file lies in: python3 build.py --help

This file alone has to be readable for any Python 3, to say what is missing.
"""

import os
import sys


def stop(reason):  # type: ignore[no-untyped-def]
    """Ends the command with one line and the exit code of what is not available."""
    sys.stderr.write("build.py: " + reason + "\n")
    sys.exit(4)


if sys.version_info < (3, 10):  # noqa: UP036 the Python of a device may be older
    stop("Python 3.10 or newer is needed (JetPack 6 has it); ./build.sh needs none")
try:
    import numpy  # noqa: F401
except ImportError:
    stop(
        "numpy is not installed for "
        + sys.executable
        + ": sudo apt install python3-numpy; ./build.sh needs no Python"
    )

sys.dont_write_bytecode = True  # the folder stays as it was written
sys.path.insert(0, os.path.dirname(os.path.realpath(__file__)))  # python -P leaves it out

from pathlib import Path  # noqa: E402

from onnx_lathe.runtime.targets.jetson.device.command import main  # noqa: E402

if __name__ == "__main__":
    sys.exit(main(Path(__file__).resolve().parent))
