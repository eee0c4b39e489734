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
    if wanted.dtype.kind != "f" or found.dtype.kind != "f":
        differing = int((wanted.astype(found.dtype) != found).sum())
        print(f"{name}: {differing:,} of {found.size:,} values differ")
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
    """What a session opened on the written file gives: the difference from what was expected, as dB and in words, or
    its refusal.
    """

    closeness: float | None = None
    figure: str = ""
    refusal: str = ""


def check_folder(out: Path) -> None:
    """Raises UsageError for a place that holds something, before anything is computed."""
    try:
        taken = out.exists() and (not out.is_dir() or any(out.iterdir()))
    except OSError as error:
        raise _unusable(out, error) from error
    if taken:
        raise UsageError(f"{out}: is there already and is not an empty folder; name another with --out")


@contextlib.contextmanager
def new_folder(out: Path) -> Iterator[Path]:
    """A folder whose files come to `out` when the block ends well, and vanish otherwise. An empty `out` stays the same
    folder, which somebody may be working in. Raises LatheError for what the disk refuses.
    """
    try:
        place = out.resolve()
        filled = place.exists()
        if not filled:
            place.parent.mkdir(parents=True, exist_ok=True)
        prefix, around = (".lathe.", place) if filled else (f".{place.name}.", place.parent)
        temporary = Path(tempfile.mkdtemp(prefix=prefix, dir=around))
    except OSError as error:
        raise _unusable(out, error) from error
    try:
        yield temporary
        if filled:
            for one in list(temporary.iterdir()):
                one.rename(place / one.name)
            temporary.rmdir()
        else:
            temporary.chmod(0o755)
            temporary.rename(place)
    except BaseException as error:
        shutil.rmtree(temporary, ignore_errors=True)
        if isinstance(error, OSError):
            raise _unusable(out, error) from error
        raise


def _unusable(out: Path, error: OSError) -> LatheError:
    return LatheError(f"{out}: cannot be written: {error.strerror or error}; choose another place")


def write_part(
    folder: Path, part: Part, inputs: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray], what: str
) -> Written:
    """Writes the four files and runs the model from the disk. `expected`: by the part's output names; empty for a
    part that fails. `what`: sentences for the README.
    """
    arrays = {f"input/{name}": value for name, value in inputs.items()}
    arrays |= {f"expected/{name}": value for name, value in expected.items()}
    arrays = {
        name: value.astype(np.str_) if value.dtype == object else value for name, value in arrays.items()
    }
    model_file.save(part.model, folder / MODEL)
    write_arrays(folder / INPUT, arrays)
    found = _run(folder / MODEL, inputs, expected)
    for name, text in ((SCRIPT, RUN), (README, _readme(part.model, what))):
        with replacing(folder / name) as file:
            file.write(text.encode(errors="replace"))
    return found


def _run(model: Path, inputs: Mapping[str, np.ndarray], expected: Mapping[str, np.ndarray]) -> Written:
    try:
        outputs = ort.run(ort.as_opened(model), inputs)
    except ModelError as error:
        return Written(refusal=str(error).replace(f"{model.parent}{os.sep}", ""))
    found = []
    for name, wanted in expected.items():
        one = Difference()
        found.append((one.add(wanted, outputs[name]), one))
    if not found:
        return Written()
    worst, difference = min(found, key=lambda pair: pair[0])
    differing = f"{difference.differing:,} of {difference.values:,} values that differ"
    return Written(worst, f"{worst:.1f} dB" if difference.numeric else differing)


def _readme(model: onnx.ModelProto, what: str) -> str:
    count = len(model.graph.node)
    return (
        f"# A failing part: {count} node{'' if count == 1 else 's'}\n\n{what}\n\n"
        f"`{MODEL}` is the part, `{INPUT}` holds what it is fed (`input/NAME`) and what is expected (`expected/NAME`).\n"
        f"Run it with ONNX Runtime alone (`pip install onnxruntime`):\n\n    python {SCRIPT}\n"
    )
