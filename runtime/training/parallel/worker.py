"""One worker of a training that `launch` started: `python -m onnx_lathe.runtime.training.parallel.worker
FOLDER`, under torchrun.

A mistake of the user or a failing hook ends all workers for good, on every machine: torchrun would start
them again, only to fail alike. What torchrun should mend by starting anew, such as a worker that was
killed, ends this process with an error that it sees.
"""

import contextlib
import json
import os
import pickle
import shutil
import signal
import sys
import threading
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from onnx_lathe.errors import LatheError, UsageError
from onnx_lathe.runtime.files import model_file
from onnx_lathe.runtime.files.writing import replacing
from onnx_lathe.runtime.training.parallel import lifeline
from onnx_lathe.runtime.training.parallel.automatic import AutoParallel
from onnx_lathe.runtime.training.parallel.grid import Grid, Pipeline, parse_parallel
from onnx_lathe.runtime.training.parallel.grid_parallel import GridParallel
from onnx_lathe.runtime.training.parallel.launch import MARK
from onnx_lathe.runtime.training.parallel.strategy import DataParallel
from onnx_lathe.runtime.training.parallel.workers import LaunchedGroup
from onnx_lathe.runtime.training.session import train
from onnx_lathe.runtime.training.setup import TrainingSetup

_LOST = ("gloo", "NCCL", "Connection closed", "Connection reset", "Broken pipe", "Timed out waiting")
"""Words of the plain RuntimeError for a worker that is not there any more."""


def main(folder: Path) -> None:
    """Trains; what it raises is in error.json, unless torchrun should start anew, and ends the process."""
    threading.Thread(target=_watch, args=(folder, os.getppid()), daemon=True).start()
    job = json.loads((folder / "job.json").read_text(encoding="utf-8"))
    sys.path[:] = job["path"]  # a hook finds here what it finds without --launch
    log = None if job["log"] is None else folder / f"traceback{os.environ['RANK']}.log"
    failed = folder / "error.json"
    try:
        # What a hook prints is passed on; what torchrun and the libraries below say is kept apart.
        with contextlib.redirect_stderr(sys.stdout):
            group = LaunchedGroup(_takes_cuda(job["device"]), _lost)
            workers = _strategy(group, job)
            earlier = next(
                (text for text in group.gathered(failed.read_bytes() if failed.exists() else b"") if text),
                None,
            )
            if earlier is None:
                _train(folder, job, log, workers)
            else:
                _write_once(failed, earlier)
    except Exception as error:
        if not _is_lost(error):
            _write_once(failed, json.dumps(_described(error, job["log"], log)).encode())
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
    if isinstance(layout, Grid):
        strategy = AutoParallel if layout.split == "auto" else GridParallel
        return strategy(group, job["settings"], layout)
    raise UsageError(
        f"--parallel '{job['parallel']}': this version shares out samples, layers and stages; give data=, height=, width=, "
        "filter=, channel=, auto or pipeline="
    )


def _train(folder: Path, job: dict[str, Any], log: Path | None, workers: DataParallel) -> None:
    with open(folder / "objects.pickle", "rb") as file:
        data, validation, shaping, tiles = pickle.load(file)
    teacher = folder / "teacher.onnx"
    is_first_here = workers.group.local == 0
    setup = TrainingSetup(
        data,
        model_file.load(teacher) if teacher.exists() else None,
        hook=job["hook"],
        validation=validation,
        log=log,
        progress=_report if is_first_here else lambda message: None,
        device=job["device"],
        memory=job["memory"],
        step=job["step"],
        state=None if job["state"] is None else Path(job["state"]),
    )
    model = model_file.load(folder / "model.onnx")
    values, metrics = train(setup, model, job["settings"], shaping, workers, tiles)
    if is_first_here:
        _write_result(
            folder, {"values": values, "shaping": {} if shaping is None else shaping.state()}, metrics
        )


def _write_result(
    folder: Path, kinds: Mapping[str, Mapping[str, np.ndarray]], metrics: Mapping[str, float]
) -> None:
    """result.json comes last. It names each array of result.npz, as [name, key there, type], because names
    are not always file names.
    """
    listed: dict[str, list[tuple[str, str, str]]] = {}
    arrays: dict[str, Any] = {}
    for kind, named in kinds.items():
        listed[kind] = [
            (name, f"{kind}{number}", str(array.dtype)) for number, (name, array) in enumerate(named.items())
        ]
        arrays |= {f"{kind}{number}": array for number, array in enumerate(named.values())}
    with replacing(folder / "result.npz") as file:
        np.savez(file, **arrays)
    with replacing(folder / "result.json") as file:
        file.write(json.dumps(listed | {"metrics": dict(metrics)}).encode())


def _described(error: Exception, place: str | None, log: Path | None) -> dict[str, str]:
    """Type, message, and the traceback that a failing hook left, in whose place the user finds it."""
    if not isinstance(error, LatheError):
        return {"kind": "", "message": "".join(traceback.format_exception(error)), "logged": ""}
    logged = log.read_text(encoding="utf-8") if log is not None and log.exists() else ""
    return {
        "kind": type(error).__name__,
        "message": str(error).replace(str(log), str(place)),
        "logged": logged,
    }


def _write_once(path: Path, content: bytes) -> None:
    """The first error is the one that tells: the other workers fail because of it."""
    with contextlib.suppress(FileExistsError), open(path, "xb") as file:
        file.write(content)


def _is_lost(error: BaseException | None) -> bool:
    """Whether it came of a worker that is not there any more."""
    while error is not None:
        if isinstance(error, dist.DistError) or (
            isinstance(error, RuntimeError) and any(word in str(error) for word in _LOST)
        ):
            return True
        error = error.__cause__
    return False


def _takes_cuda(device: str) -> bool:
    return device.startswith("cuda") or (device == "auto" and torch.cuda.is_available())


def _lost(lost: lifeline.Lost) -> None:
    """Ends this worker; torchrun does the rest, and may have to wait."""
    done, most = (
        int(os.environ.get(f"TORCHELASTIC_{name}", "0")) for name in ("RESTART_COUNT", "MAX_RESTARTS")
    )
    if done < most and os.environ["LOCAL_RANK"] == "0":
        _report(f"lost {lost}; torchrun starts anew once there are as many machines as --nnodes asks for")
    lifeline.end(lost)


def _report(text: str) -> None:
    os.write(sys.stdout.fileno(), f"{MARK}{text}\n".encode())


def _watch(folder: Path, launcher: int) -> None:
    """Waits until the process that wants the result is gone, then ends everything that it has started."""
    while os.read(0, 1):
        pass
    shutil.rmtree(folder, ignore_errors=True)
    if os.getppid() == launcher:
        os.kill(launcher, signal.SIGTERM)
    os._exit(1)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
