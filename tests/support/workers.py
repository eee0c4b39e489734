"""Processes that train together. PyTorch is imported once for all of them, in a process that they are forked from: by
itself each would take seconds.
"""

import multiprocessing
import time
from collections.abc import Callable
from typing import Any

import pytest
import torch.multiprocessing

FORKED = "forkserver" in multiprocessing.get_all_start_methods()
METHOD = "forkserver" if FORKED else "spawn"

if FORKED:
    multiprocessing.set_forkserver_preload(
        [
            "pytest",
            "torch.distributed.pipelining",
            "torch.nn.parallel",
            "onnx_lathe.optimizer.cli",
            "onnx_lathe.runtime.training.parallel.worker",
            "onnx_lathe.runtime.running.ort",
        ]
    )


def together(function: Callable[..., None], count: int, *arguments: Any, limit_s: float) -> None:
    """Calls function(rank, *arguments) in so many processes. Raises what one raised; fails if they take longer."""
    context = torch.multiprocessing.start_processes(
        function, arguments, nprocs=count, join=False, start_method=METHOD
    )
    end = time.monotonic() + limit_s
    while not context.join(timeout=max(end - time.monotonic(), 0.1)):
        if time.monotonic() > end:
            for process in context.processes:
                process.kill()
            pytest.fail(f"workers wait for each other, or are slower than {limit_s:.0f} s")
