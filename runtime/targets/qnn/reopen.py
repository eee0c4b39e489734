"""Opens a context file that was built earlier, in the simulator: its files are checked first."""

from pathlib import Path
from typing import Any

import onnx

from onnx_lathe.errors import ModelError, TargetError
from onnx_lathe.runtime.targets.bundle.description import digest, read
from onnx_lathe.runtime.targets.bundle.ports import ports_from_json
from onnx_lathe.runtime.targets.core.base import Reopened
from onnx_lathe.runtime.targets.qnn import library
from onnx_lathe.runtime.targets.qnn.chips import CHIPS, Chip
from onnx_lathe.runtime.targets.qnn.context import binaries, models_of
from onnx_lathe.runtime.targets.qnn.session import SIMULATED, SimulatedSession


def reopen(context: Path) -> Reopened:
    """Raises ModelError for files that are not what the target wrote, TargetError where they cannot be simulated."""
    said = read(context.with_suffix(".json"), context.name, "qnn")
    files = _check_files(context, said)
    if reason := library.unavailable():
        raise TargetError(f"{context}: {reason}")
    if not library.simulates():
        raise TargetError(f"{context}: the simulator is in the package for Linux on x86-64 alone")
    chip = _chip(context)
    inputs, outputs = ports_from_json(said)
    session = SimulatedSession(context, inputs, outputs, chip)
    return Reopened(
        session,
        library.installed(),
        sum(path.stat().st_size for path in files),
        f"{chip.name}: {SIMULATED}",
    )


def _chip(context: Path) -> Chip:
    """The one that the file itself says it is for."""
    numbers = models_of(onnx.load(context, load_external_data=False))
    by_number = {chip.soc_model: chip for chip in CHIPS.values()}
    known = [by_number[number] for number in numbers if number in by_number]
    if len(numbers) > 1:
        names = ", ".join(chip.name for chip in known)
        raise TargetError(
            f"{context}: is for {names}, and the simulator takes a file for one chip: build for one of them"
        )
    if not known:
        raise ModelError(f"{context}: does not say for which chip it is, or for one that is not known here")
    return known[0]


def _check_files(context: Path, said: dict[str, Any]) -> list[Path]:
    """The files that belong together. A binary of another model may load, and compute something else."""
    try:
        names = binaries(onnx.load(context, load_external_data=False))
    except Exception as error:
        raise ModelError(f"{context}: cannot be read as ONNX: {error}") from error
    files = [context, *(context.parent / name for name in names)]
    for path in files[1:]:
        if path.resolve().parent != context.resolve().parent:
            raise ModelError(f"{context}: names a file in another folder, '{path}'")
    for path in files:
        wanted = said["files"].get(path.name) if path is not context else said["files"].get(said["file"])
        try:
            found = digest(path)
        except OSError as error:
            raise ModelError(
                f"{path}: {error.strerror}; it belongs to {context.name}: copy all files together"
            ) from error
        if wanted != found:
            raise ModelError(
                f"{path}: was not written with {context.with_suffix('.json').name}, or not copied whole; copy the files "
                "again, together"
            )
    return files
