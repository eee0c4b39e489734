"""onnx2tf, in an environment of its own (phone_peers.txt), converts one network: float and INT8, by either of its backends."""

import os
import re
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

BACKENDS = ("flatbuffer_direct", "tf_converter")
"""Its default, and the way through TensorFlow that it keeps for what the default does not convert."""
ENDS = {"float": "_float32.tflite", "int8": "_integer_quant.tflite"}
"""Both take and give floats."""
LIMIT_S = 900.0
COLOURS = (1, 3)
REASON_LENGTH = 200
RAISED = re.compile(r"[\w.]*(Error|Exception): ")
"""Begins the line that says what went wrong; of several, the first is the cause of the others."""


@dataclass
class Converted:
    """`files`: form -> file. `message`: why a form is missing."""

    files: dict[str, Path] = field(default_factory=dict)
    message: str = ""


def version(python: Path) -> str:
    """Ends the benchmark if that environment has no onnx2tf."""
    ask = "from importlib.metadata import version as of; print(of('onnx2tf'), of('tensorflow'))"
    try:
        ran = subprocess.run(
            [str(python), "-c", ask], capture_output=True, text=True, check=False, env=_environment()
        )
    except OSError as error:
        raise SystemExit(f"--onnx2tf {python}: {error.strerror}") from error
    if ran.returncode:
        raise SystemExit(
            f"--onnx2tf {python}: no onnx2tf with TensorFlow there; see benchmarks/phone_peers.txt"
        )
    found, tensorflow = ran.stdout.split()
    return f"onnx2tf {found} (TensorFlow {tensorflow})"


def converted(
    python: Path, model: Path, samples: Mapping[str, np.ndarray], backend: str, place: Path
) -> Converted:
    """`samples`: input -> calibration, [samples, ...] in the model's layout.

    Images are left to have their channels last, as onnx2tf advises; every other input keeps its axes, which onnx2tf would
    else take for an image's. Sizes are those of the data, with a batch of 1, and onnxsim has computed what follows from them:
    without, onnx2tf refuses some networks, and writes others longer. Two commands, since the one with INT8 may end before
    it has written the float file; each on a copy of the model, since onnx2tf writes into the file that it is given.
    """
    found = Converted()
    sizes = [f"{name}:{','.join(map(str, (1, *values.shape[1:])))}" for name, values in samples.items()]
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    fixed = place / model.name
    _run([str(python), "-m", "onnxsim", str(model), str(fixed), "--overwrite-input-shape", *sizes], place)
    for form in ENDS:
        folder = place / form
        folder.mkdir()
        copy = Path(shutil.copy(fixed if fixed.exists() else model, folder / model.name))
        arguments = _arguments(copy, samples, sizes, backend, folder)
        if form == "int8":
            arguments += _calibration(samples, folder)
        message = _run([str(python), "-m", "onnx2tf", *arguments], folder)
        path = folder / f"{model.stem}{ENDS[form]}"
        if not path.exists():
            found.message = f"{form}: {message or 'no file'}"
            break
        found.files[form] = path
        _tidy(folder, path)
    return found


def _arguments(
    model: Path, samples: Mapping[str, np.ndarray], sizes: Sequence[str], backend: str, folder: Path
) -> list[str]:
    kept = [name for name, values in samples.items() if not _is_image(values)]
    arguments = ["-i", str(model), "-o", str(folder), "-tb", backend, "-n", "-coion", "-ois", *sizes]
    return [*arguments, "-kat", *kept] if kept else arguments


def _calibration(samples: Mapping[str, np.ndarray], folder: Path) -> list[str]:
    """Per channel, without a shift or scale of its own: the samples are what the network takes."""
    arguments = ["-oiqt", "-qt", "per-channel"]
    for place, (name, values) in enumerate(samples.items()):
        path = folder / f"calibration{place}.npy"
        np.save(path, np.moveaxis(values, 1, -1) if _is_image(values) else values)
        arguments += ["-cind", name, str(path), "[0.0]", "[1.0]"]
    return arguments


def _is_image(values: np.ndarray) -> bool:
    return values.ndim == 4 and values.shape[1] in COLOURS


def _run(command: Sequence[str], folder: Path) -> str:
    """Why it failed, in one line; empty if it did not."""
    log = folder.with_suffix(".log")
    try:
        ran = subprocess.run(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            check=False,
            cwd=folder,
            env=_environment(),
            timeout=LIMIT_S,
        )
    except subprocess.TimeoutExpired:
        return f"not done after {LIMIT_S:.0f} s"
    log.write_text(ran.stdout)
    if ran.returncode == 0:
        return ""
    lines = [line.strip() for line in ran.stdout.splitlines() if line.strip()]
    causes = [line for line in lines if RAISED.match(line)]
    return (*causes, *lines[-1:], f"exit {ran.returncode}")[0][:REASON_LENGTH]


def _environment() -> dict[str, str]:
    """Its own modules, without TensorFlow's remarks."""
    kept = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return {**kept, "TF_CPP_MIN_LOG_LEVEL": "3", "CUDA_VISIBLE_DEVICES": ""}


def _tidy(folder: Path, path: Path) -> None:
    """What else it wrote takes many times the file's own place."""
    for other in folder.iterdir():
        if other != path:
            shutil.rmtree(other) if other.is_dir() else other.unlink()
