"""Trains under torchrun: processes on this machine, and with the same command on others, share the batches.

    python -m onnx_lathe.runtime.training.parallel.torchrun FOLDER ARGUMENTS -m onnx_lathe.runtime.training.parallel.worker FOLDER

The folder holds what a worker needs, and in the end what the parent takes over: model.onnx, teacher.onnx,
job.json, and objects.pickle (data, shaping, tiles); result.json with result.npz, or error.json with
traceback.log. The workers' standard output carries progress; their standard input, and torchrun's, is a
pipe from the parent, and when it closes they end: so a parent that dies leaves none behind.
"""

import contextlib
import io
import json
import os
import pickle
import re
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from onnx_lathe.errors import LatheError, PassError
from onnx_lathe.protocols import Shaping
from onnx_lathe.runtime.files import model_file
from onnx_lathe.runtime.processes import environment, running
from onnx_lathe.runtime.training.parallel import lifeline
from onnx_lathe.runtime.training.parallel.request import Launch
from onnx_lathe.runtime.training.setup import TrainingSetup
from onnx_lathe.runtime.user_code import search_path
from onnx_lathe.tiles import Tiles

MARK = "\x1e"
"""What stands before a line of progress on a worker's standard output; anything else there is a hook's own."""

AFTER_S, ENDING_S = 10.0, 5.0
"""How long torchrun may go on once a server has left the result, and how long after it was asked to end."""

GRACE_S = 15.0
"""How long interrupted workers have to end."""


def train_launched(
    setup: TrainingSetup,
    launch: Launch,
    model: onnx.ModelProto,
    settings: Mapping[str, Any],
    shaping: Shaping | None,
    tiles: Mapping[str, Tiles] | None,
) -> tuple[dict[str, np.ndarray], dict[str, float], list[str]]:
    """(values of the trained initializers, metrics), as runtime/training/session.py, and what the user should know;
    `shaping` is restored to where it ended.

    Raises what a worker raised, as if it had been raised here; PassError if the workers could not be
    started or were killed.
    """
    place = None if setup.log is None else setup.log.parent
    if place is not None:
        place.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="retrain-", dir=place, ignore_cleanup_errors=True) as name:
        folder = Path(name)
        _write_job(folder, setup, model, settings, shaping, tiles)
        setup.progress(f"starting {launch.local} workers" if launch.local > 1 else "starting 1 worker")
        code = _run(folder, launch, setup)
        if (folder / "error.json").exists():
            raise _error(folder, setup)
        # With a server, what matters is that it ended well; torchrun may go on waiting for a machine that is lost.
        if not (folder / "result.json").exists() or (code != 0 and not _serves(setup)):
            raise killed(folder, setup)
        return _read_result(folder, shaping)


def _write_job(
    folder: Path,
    setup: TrainingSetup,
    model: onnx.ModelProto,
    settings: Mapping[str, Any],
    shaping: Shaping | None,
    tiles: Mapping[str, Tiles] | None,
) -> None:
    model_file.save(model, folder / "model.onnx")
    if setup.teacher is not None:
        model_file.save(setup.teacher, folder / "teacher.onnx")
    job = {
        "settings": dict(settings),
        "step": setup.step,
        "hook": setup.hook,
        "device": setup.device,
        "memory": setup.memory,
        "parallel": None if setup.parallel is None else setup.parallel.text,
        "path": search_path(),
    }
    job |= {
        name: None if path is None else str(path.absolute())
        for name, path in (("state", setup.state), ("log", setup.log))
    }
    (folder / "job.json").write_text(json.dumps(job), encoding="utf-8")
    try:
        with open(folder / "objects.pickle", "wb") as file:
            objects = setup.data, setup.validation, shaping, tiles
            pickle.dump(objects, file, protocol=pickle.HIGHEST_PROTOCOL)
    except (pickle.PicklingError, TypeError, AttributeError) as error:
        raise PassError(
            f"the data or the pass cannot be handed to other processes ({error}); leave --launch out"
        ) from error


def _run(folder: Path, launch: Launch, setup: TrainingSetup) -> int:
    """torchrun's exit code. Its standard error goes to the folder: it repeats what error.json says."""
    command = [sys.executable, "-m", "onnx_lathe.runtime.training.parallel.torchrun", str(folder)]
    module = "supervisor" if _serves(setup) else "worker"
    command += [*launch.arguments, "-m", f"onnx_lathe.runtime.training.parallel.{module}", str(folder)]
    with (
        open(folder / "torchrun.log", "wb") as log,
        running(
            command, workers_environment(launch), grace_s=GRACE_S, stderr=log, start_new_session=True
        ) as child,
    ):
        if child.process.stdout is None:
            raise PassError("the workers' output cannot be read")
        if _serves(setup):
            threading.Thread(target=_end_with_result, args=(folder, child.process), daemon=True).start()
        for line in io.TextIOWrapper(child.process.stdout, encoding="utf-8", errors="replace"):
            own, mark, text = line.partition(MARK)
            if mark:
                setup.progress(text.rstrip("\n"))
            if own:
                sys.stdout.write(own)
        return child.process.wait()


def _serves(setup: TrainingSetup) -> bool:
    return setup.parallel is not None and setup.parallel.serves


def _end_with_result(folder: Path, process: subprocess.Popen[bytes]) -> None:
    """Ends torchrun some time after the result is there: it would wait 300 s for a machine that is lost, in a call to the
    store that does not return for a signal either.
    """
    while process.poll() is None and not (folder / "result.json").exists():
        time.sleep(0.5)
    for wait_s, then in ((AFTER_S, process.terminate), (ENDING_S, process.kill)):
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(wait_s)
        if process.poll() is None:
            then()


def workers_environment(launch: Launch) -> dict[str, str]:
    """What torchrun is started in: workers share the processor's cores."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    extra = {"OMP_NUM_THREADS": str(max(1, cores // launch.local))}
    if launch.processes != launch.local:
        # torchrun 2.13 keeps the store of the first start: if the machine that has it is lost, the others would
        # ask it for ever.
        extra["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
    return environment(**extra)


def _read_result(
    folder: Path, shaping: Shaping | None
) -> tuple[dict[str, np.ndarray], dict[str, float], list[str]]:
    result = json.loads((folder / "result.json").read_text(encoding="utf-8"))
    with np.load(folder / "result.npz") as stored:
        arrays = {
            kind: {name: _typed(stored[key], dtype) for name, key, dtype in result[kind]}
            for kind in ("values", "shaping")
        }
    if shaping is not None:
        shaping.restore(arrays["shaping"])
    return arrays["values"], result["metrics"], result["warnings"]


def _typed(array: np.ndarray, dtype: str) -> np.ndarray:
    """NumPy's files do not know the types of ml_dtypes."""
    return array if array.dtype == np.dtype(dtype) else array.view(np.dtype(dtype))


def _error(folder: Path, setup: TrainingSetup) -> Exception:
    """What a worker raised; its traceback goes to the log."""
    found = json.loads((folder / "error.json").read_text(encoding="utf-8"))
    kind = _kinds(LatheError).get(found["kind"])
    if kind is None:  # a defect, which would have left a traceback without --launch, too
        return RuntimeError(f"a worker failed: {found['message']}")
    if found["logged"] and setup.log is not None:
        setup.log.write_text(found["logged"], encoding="utf-8")
    return kind(found["message"])


def killed(folder: Path, setup: TrainingSetup) -> PassError:
    """What torchrun's log says of workers that ended without a word of their own; it goes to the log."""
    text = (folder / "torchrun.log").read_text(encoding="utf-8", errors="replace")
    see = ""
    if setup.log is not None:
        setup.log.write_text(text, encoding="utf-8")
        see = f"; what torchrun says is in {setup.log}"
    if silent := lifeline.told(text):
        return PassError(
            f"lost {silent}; the model is left as it was; --resume goes on after the last whole epoch{see}"
        )
    # The worker that failed first: torchrun ends the others by a signal because of it.
    cause = re.search(r"exitcode\s*:\s*(-?\d+)", text.rpartition("Root Cause")[2])
    code = 0 if cause is None else int(cause[1])
    if code < 0:
        why = ", as the system does when memory runs out" if code == -9 else ""
        return PassError(f"a worker was ended by signal {-code}{why}; the model is left as it was{see}")
    if code > 1:
        return PassError(f"a worker ended by itself with exit code {code}; the model is left as it was{see}")
    last = next(
        (line for line in reversed(text.splitlines()) if re.match(r"[\w.]*(Error|Exception)\b", line)), ""
    )
    return PassError(
        f"the workers could not be started or lost each other{': ' + last[:300] if last else ''}{see}"
    )


def _kinds(root: type[LatheError]) -> dict[str, type[LatheError]]:
    found = {root.__name__: root}
    for kind in root.__subclasses__():
        found |= _kinds(kind)
    return found
