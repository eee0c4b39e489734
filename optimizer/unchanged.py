"""A step that changed nothing: its checkpoint is a copy of the file before it, and its figures are known."""

import os
import shutil
from pathlib import Path

from onnx_lathe.errors import ModelError
from onnx_lathe.optimizer.checkpoint import file_hash
from onnx_lathe.optimizer.run import Run
from onnx_lathe.passes.core.report import PassReport
from onnx_lathe.runtime.files import model_file
from onnx_lathe.runtime.files.writing import replacing
from onnx_lathe.runtime.pack import is_packed
from onnx_lathe.runtime.running import ort
from onnx_lathe.runtime.running.evaluate import Quality, Reference

TIMES = ("latency", "base_latency")
_PIECE_BYTES = 16 << 20


def copied(run: Run, path: Path, where: str, report: PassReport) -> dict[str, float] | None:
    """Makes the checkpoint of a step that changed nothing a copy of the file before it, and returns its metrics: they
    are known, and so is that the file loads and runs, because this very run has done both with it. None where it has
    not, or where the model is other than that file: prepared in any way, packed, or with data beside it.

    Raises ModelError for a file that is another now than the one judged.
    """
    first = not run.record.steps
    if not run.as_given if first else run.record.steps[-1] in run.done:
        return None
    # _measured warns, and who takes the step after all warns again
    if not _is_whole(run.file) or (known := _measured(run, where)) is None:
        return None
    judged = str(run.record.model["sha256"]) if first else run.checkpoints.done[-1][1]
    if first or not _linked(run.file, path):
        with replacing(path) as copy, run.file.open("rb") as source:
            shutil.copyfileobj(source, copy, _PIECE_BYTES)
    if file_hash(path) != judged:
        path.unlink()
        raise ModelError(f"{where}: {run.file} was changed while the command ran; run it again")
    if first and run.helped:
        report.warnings.append(ort.HELPED)
    return known


def _measured(run: Run, where: str) -> dict[str, float] | None:
    """What was measured of the model before this step; None if this run did not."""
    if run.original is not None:
        if not run.record.steps:
            run.sampled = run.original.sampled
            note_uncompared(run, where, run.original)
        elif run.sampled is None:
            return None
    return {name: value for name, value in run.record.final().items() if name not in TIMES}


def _is_whole(path: Path) -> bool:
    with path.open("rb") as file:
        packed = is_packed(file.read(16))
    return not packed and model_file.facts(path).size_bytes == path.stat().st_size


def _linked(source: Path, path: Path) -> bool:
    """Whether one checkpoint could be made another name of the one before."""
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        temporary.unlink(missing_ok=True)
        os.link(source, temporary)
        os.replace(temporary, path)
    except OSError:
        return False
    return True


def note_uncompared(run: Run, where: str, quality: Quality | Reference) -> None:
    """Warns of each output whose distance to the original's has no number."""
    for output, reason in quality.reasons.items():
        run.record.warnings.append(f"{where}: output '{output}' could not be compared: {reason}")
        run.ui.note(f"warning: {run.record.warnings[-1]}")
