"""One worker of a training that `launch` started: `python -m onnx_lathe.runtime.training.parallel.worker
FOLDER`, under torchrun.

A mistake of the user or a failing hook ends all workers for good, on every machine: torchrun would start
them again, only to fail alike. What torchrun should mend by starting anew, such as a worker that was
killed, ends this process with an error that it sees.
"""

import contextlib
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch.distributed as dist

from onnx_lathe.errors import UsageError
from onnx_lathe.runtime.processes import end_with_caller
from onnx_lathe.runtime.training.parallel import lifeline
from onnx_lathe.runtime.training.parallel.automatic import AutoParallel
from onnx_lathe.runtime.training.parallel.folder import (
    described,
    is_lost,
    log_of,
    read_given,
    read_job,
    report,
    takes_cuda,
    write_once,
    write_result,
)
from onnx_lathe.runtime.training.parallel.grid import Grid, Pipeline, parse_parallel
from onnx_lathe.runtime.training.parallel.grid_parallel import GridParallel
from onnx_lathe.runtime.training.parallel.strategy import DataParallel
from onnx_lathe.runtime.training.parallel.workers import LaunchedGroup
from onnx_lathe.runtime.training.session import train


def main(folder: Path) -> None:
    """Trains; what it raises is in error.json, unless torchrun should start anew, and ends the process."""
    end_with_caller(folder)
    job = read_job(folder)
    failed = folder / "error.json"
    try:
        # What a hook prints is passed on; what torchrun and the libraries below say is kept apart.
        with contextlib.redirect_stderr(sys.stdout):
            group = LaunchedGroup(takes_cuda(job["device"]), _lost)
            workers = _strategy(group, job)
            earlier = next(
                (text for text in group.gathered(failed.read_bytes() if failed.exists() else b"") if text),
                None,
            )
            if earlier is None:
                _train(folder, job, workers)
            else:
                write_once(failed, earlier)
    except Exception as error:
        if not is_lost(error):
            write_once(failed, described(error, job["log"], log_of(folder, job)))
        raise
    dist.destroy_process_group()


def _strategy(group: LaunchedGroup, job: Mapping[str, Any]) -> DataParallel:
    """As `--parallel` says. Raises UsageError for sizes that do not fit the number of workers."""
    if job["parallel"] is None:
        return DataParallel(group, job["settings"])
    layout = parse_parallel(job["parallel"]).over(group.size)
    if layout == Grid(group.size):
        return DataParallel(group, job["settings"])
    if isinstance(layout, Pipeline):
        # torch.distributed.pipelining takes seconds to import.
        from onnx_lathe.runtime.training.parallel.pipeline import pipeline_parallel

        return pipeline_parallel(group, job, layout)
    if not isinstance(layout, Grid):  # supervisor.py is started for a server
        raise UsageError(f"--parallel '{job['parallel']}': give data=, height=, filter=, auto or pipeline=")
    strategy = AutoParallel if layout.split == "auto" else GridParallel
    return strategy(group, job["settings"], layout)


def _train(folder: Path, job: Mapping[str, Any], workers: DataParallel) -> None:
    is_first_here = workers.group.local == 0
    given = read_given(folder, job, report if is_first_here else lambda message: None)
    values, metrics = train(*given[:4], workers, given.tiles)
    if is_first_here:
        write_result(folder, values, given.shaping, metrics)


def _lost(lost: lifeline.Lost) -> None:
    """Ends this worker; torchrun does the rest, and may have to wait."""
    done, most = (
        int(os.environ.get(f"TORCHELASTIC_{name}", "0")) for name in ("RESTART_COUNT", "MAX_RESTARTS")
    )
    if done < most and os.environ["LOCAL_RANK"] == "0":
        report(f"lost {lost}; torchrun starts anew once there are as many machines as --nnodes asks for")
    lifeline.end(lost)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
