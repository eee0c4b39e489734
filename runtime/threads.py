"""How many threads a run may use: ONNX Runtime's sessions, PyTorch, NumPy, and all of it in child processes.

The limit lives in environment variables, which children inherit; those of the libraries are read when they are
first imported, so the command sets it before anything else.
"""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

VARIABLE = "LATHE_THREADS"
_LIBRARIES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "VECLIB_MAXIMUM_THREADS")


def limit() -> int:
    """Threads of this process, 0 without a limit: then one per core."""
    given = os.environ.get(VARIABLE, "")
    return int(given) if given.isdecimal() else 0


@contextmanager
def limited(threads: int) -> Iterator[None]:
    """Within the block every session, PyTorch and every child process has at most so many threads; 0: no limit."""
    if not threads:
        yield
        return
    names = (VARIABLE, *_LIBRARIES)
    before = {name: os.environ.get(name) for name in names}
    torch = sys.modules.get("torch")
    torch_before = None if torch is None else torch.get_num_threads()
    os.environ.update(dict.fromkeys(names, str(threads)))
    if torch is not None:
        torch.set_num_threads(threads)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        if torch is not None and torch_before is not None:
            torch.set_num_threads(torch_before)
