"""What the processes of a training that `launch` started find in its folder, and leave there."""

import contextlib
import json
import os
import pickle
import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import torch
import torch.distributed as dist

from onnx_lathe.errors import LatheError
from onnx_lathe.protocols import Shaping
from onnx_lathe.runtime.files import model_file
from onnx_lathe.runtime.files.writing import replacing
from onnx_lathe.runtime.training.parallel.launch import MARK
from onnx_lathe.runtime.training.setup import TrainingSetup
from onnx_lathe.tiles import Tiles

_LOST = ("gloo", "NCCL", "Connection closed", "Connection reset", "Broken pipe", "Timed out waiting")
"""Words of the plain RuntimeError for a worker that is not there any more."""


class Given(NamedTuple):
    """What `launch` gave to all processes."""

    setup: TrainingSetup
    model: onnx.ModelProto
    settings: Mapping[str, Any]
    shaping: Shaping | None
    tiles: Mapping[str, Tiles] | None


def read_job(folder: Path) -> dict[str, Any]:
    """What job.json says. From now on a hook finds here what it finds without --launch."""
    job: dict[str, Any] = json.loads((folder / "job.json").read_text(encoding="utf-8"))
    sys.path[:] = job["path"]
    return job


def log_of(folder: Path, job: Mapping[str, Any]) -> Path | None:
    """Where this process leaves the traceback of a failing hook."""
    return None if job["log"] is None else folder / f"traceback{os.environ['RANK']}.log"


def read_given(folder: Path, job: Mapping[str, Any], progress: Callable[[str], None]) -> Given:
    with open(folder / "objects.pickle", "rb") as file:
        data, validation, shaping, tiles = pickle.load(file)
    teacher = folder / "teacher.onnx"
    setup = TrainingSetup(
        data,
        model_file.load(teacher) if teacher.exists() else None,
        hook=job["hook"],
        validation=validation,
        log=log_of(folder, job),
        progress=progress,
        device=job["device"],
        memory=job["memory"],
        step=job["step"],
        state=None if job["state"] is None else Path(job["state"]),
    )
    return Given(setup, model_file.load(folder / "model.onnx"), job["settings"], shaping, tiles)


def write_result(
    folder: Path,
    values: Mapping[str, np.ndarray],
    shaping: Shaping | None,
    metrics: Mapping[str, float],
    warnings: Sequence[str] = (),
    table: str = "result.json",
) -> None:
    """`table` comes last. It names each array of result.npz, as [name, key there, type], because names
    are not always file names.
    """
    kinds = {"values": values, "shaping": {} if shaping is None else shaping.state()}
    listed: dict[str, list[tuple[str, str, str]]] = {}
    arrays: dict[str, Any] = {}
    for kind, named in kinds.items():
        listed[kind] = [
            (name, f"{kind}{number}", str(array.dtype)) for number, (name, array) in enumerate(named.items())
        ]
        arrays |= {f"{kind}{number}": array for number, array in enumerate(named.values())}
    with replacing(folder / "result.npz") as file:
        np.savez(file, **arrays)
    with replacing(folder / table) as file:
        file.write(json.dumps(listed | {"metrics": dict(metrics), "warnings": list(warnings)}).encode())


def described(error: Exception, place: str | None, log: Path | None) -> bytes:
    """Type, message, and the traceback that a failing hook left, in whose place the user finds it."""
    if not isinstance(error, LatheError):
        told = {"kind": "", "message": "".join(traceback.format_exception(error)), "logged": ""}
        return json.dumps(told).encode()
    logged = log.read_text(encoding="utf-8") if log is not None and log.exists() else ""
    message = str(error).replace(str(log), str(place))
    return json.dumps({"kind": type(error).__name__, "message": message, "logged": logged}).encode()


def write_once(path: Path, content: bytes) -> None:
    """The first error is the one that tells: the other workers fail because of it."""
    with contextlib.suppress(FileExistsError), open(path, "xb") as file:
        file.write(content)


def is_lost(error: BaseException | None) -> bool:
    """Whether it came of a worker that is not there any more."""
    while error is not None:
        if isinstance(error, dist.DistError) or (
            isinstance(error, RuntimeError) and any(word in str(error) for word in _LOST)
        ):
            return True
        error = error.__cause__
    return False


def takes_cuda(device: str) -> bool:
    return device.startswith("cuda") or (device == "auto" and torch.cuda.is_available())


def report(text: str) -> None:
    """A line of progress, for whom this training is."""
    os.write(sys.stdout.fileno(), f"{MARK}{text}\n".encode())
