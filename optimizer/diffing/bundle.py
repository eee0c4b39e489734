"""A failing part in a folder: model, input with expected outputs, and how to run it with ONNX Runtime alone."""

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx

from onnx_lathe.errors import LatheError, ModelError, UsageError
from onnx_lathe.optimizer.observing import write_arrays
from onnx_lathe.passes.extraction.submodel import Part
from onnx_lathe.runtime.files import model_file
from onnx_lathe.runtime.files.writing import replacing
from onnx_lathe.runtime.running import ort
from onnx_lathe.runtime.running.differences import Difference

MODEL, INPUT, SCRIPT, README = "model.onnx", "input.npz", "run.py", "README.md"

RUN = '''"""Runs model.onnx on input.npz with ONNX Runtime, and compares with the outputs that were expected."""

from pathlib import Path

import numpy as np
import onnxruntime

here = Path(__file__).resolve().parent
stored = np.load(here / "input.npz")
feeds = {name[6:]: stored[name] for name in stored.files if name.startswith("input/")}
session = onnxruntime.InferenceSession(here / "model.onnx", providers=["CPUExecutionProvider"])
names = [output.name for output in session.get_outputs()]
for name, found in zip(names, session.run(names, feeds)):
    if f"expected/{name}" not in stored.files:
        print(f"{name}: {found.dtype} {list(found.shape)}")
        continue
    wanted = stored[f"expected/{name}"]
    if wanted.shape != found.shape:
        print(f"{name}: has shape {list(found.shape)}, expected is {list(wanted.shape)}")
        continue
    wanted, found = wanted.astype(np.float64), found.astype(np.float64)
    broken = int((np.isfinite(wanted) != np.isfinite(found)).sum())
    finite = np.isfinite(wanted) & np.isfinite(found)
    error = wanted[finite] - found[finite]
    noise, signal = np.square(error).sum(), np.square(wanted[finite]).sum()
    decibels = 10 * np.log10(max(signal, 1e-12 * max(error.size, 1)) / noise) if noise else float("inf")
    print(f"{name}: {decibels:.1f} dB signal to noise, largest error {np.abs(error).max(initial=0):.4g}, {broken} not finite")
'''


@dataclass(frozen=True)
class Written:
    """What a session opened on the written file gives: the difference from what was expected, or its refusal."""

    folder: str
    closeness: float | None
    refusal: str


def check_folder(out: Path) -> None:
    """Raises UsageError for a place that holds something, before anything is computed."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UsageError(f"{out}: is there already and is not an empty folder; name another with --out")


@contextlib.contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A folder that takes its place when the block ends well, and vanishes otherwise."""
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    except OSError as error:
        raise LatheError(f"{out}: cannot be made: {error.strerror or error}; choose another place") from error
    try:
        yield temporary
        if out.exists():
            out.rmdir()
        temporary.chmod(0o755)
        temporary.rename(out)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise


def write_part(
    folder: Path, part: Part, inputs: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray], what: str
) -> Written:
    """Writes the four files and runs the model from the disk. `expected`: by the part's output names; empty for a
    part that fails. `what`: sentences for the README.
    """
    arrays = {f"input/{name}": value for name, value in inputs.items()}
    arrays |= {f"expected/{name}": value for name, value in expected.items()}
    model_file.save(part.model, folder / MODEL)
    write_arrays(folder / INPUT, arrays)
    found = _run(folder / MODEL, inputs, expected)
    for name, text in ((SCRIPT, RUN), (README, _readme(part.model, what))):
        with replacing(folder / name) as file:
            file.write(text.encode())
    return found


def _run(model: Path, inputs: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray]) -> Written:
    try:
        outputs = ort.run(ort.as_opened(model), inputs)
    except ModelError as error:
        return Written("", None, str(error).replace(f"{model.parent}{os.sep}", ""))
    worst = None
    for name, wanted in expected.items():
        found = Difference().add(wanted, outputs[name])
        worst = found if worst is None else min(worst, found)
    return Written("", worst, "")


def _readme(model: onnx.ModelProto, what: str) -> str:
    count = len(model.graph.node)
    return (
        f"# A failing part: {count} node{'' if count == 1 else 's'}\n\n{what}\n\n"
        f"`{MODEL}` is the part, `{INPUT}` holds what it is fed (`input/NAME`) and what is expected (`expected/NAME`).\n"
        f"Run it with ONNX Runtime alone (`pip install onnxruntime`):\n\n    python {SCRIPT}\n"
    )
