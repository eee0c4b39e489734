"""Finished models as they run on this machine: an ONNX file of any kind, or what a target wrote."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np
import onnx

from onnx_lathe.errors import ModelError, UsageError, nearest
from onnx_lathe.optimizer.fixed_inputs import OPTION
from onnx_lathe.optimizer.opening import open_file
from onnx_lathe.passes.graph.skeleton import runtime_inputs
from onnx_lathe.passes.loading.fixing import fix_inputs
from onnx_lathe.runtime.data import InputSpec, model_classes, model_inputs
from onnx_lathe.runtime.files import model_file
from onnx_lathe.runtime.files.reading import explaining, naming
from onnx_lathe.runtime.running import ort
from onnx_lathe.runtime.running.fed import fed
from onnx_lathe.runtime.targets.core.base import Target
from onnx_lathe.runtime.targets.core.registry import targets

ORT_FORMAT = ".ort"
"""ONNX Runtime's own format: it holds no ONNX model, and runs as one."""


@dataclass(frozen=True)
class Finished:
    """`model` is None for a file that holds no ONNX model. `library`: what runs it, with its version."""

    path: Path
    session: Any
    library: str
    size_bytes: int
    inputs: list[InputSpec]
    classes: int | None
    model: onnx.ModelProto | None = None
    device: str = ""
    """What it runs on, if not this processor."""
    fixed: Mapping[str, np.ndarray] = field(default_factory=dict)
    """Inputs that the session feeds itself; they are none of `inputs`."""


def untimed(session: Any) -> str:
    """Why times of the session are none to report or to judge; empty if they are (Target.open)."""
    return str(getattr(session, "simulated", ""))


def is_written(path: Path) -> bool:
    """Whether the file is no plain ONNX model, but what a target wrote."""
    return path.suffix.lower() == ORT_FORMAT or _written_by(path) is not None


def open_together(
    paths: Sequence[Path], threads: int = 0, values: Mapping[str, Any] = MappingProxyType({})
) -> list[Finished]:
    """As `open_finished`, of models that are to compute the same: an input that `values` names is fed so in each that
    has it. Raises UsageError for one that none has.
    """
    found = [open_finished(path, threads, values) for path in paths]
    taken = {name for one in found for name in one.fixed}
    if left := [name for name in values if name not in taken]:
        there = {spec.name: None for one in found for spec in one.inputs}
        names = ", ".join(f"'{name}'" for name in [*taken, *there])
        raise UsageError(
            f"{OPTION} {left[0]}: no ONNX model here has this input{nearest(left[0], there)}; their inputs are {names}"
        )
    return found


def open_finished(path: Path, threads: int = 0, values: Mapping[str, Any] = MappingProxyType({})) -> Finished:
    """The file in a session of so many threads, 0: one per core. It has survived a process of its own.

    values: of inputs, by name, that the session feeds itself, if an ONNX model has them.

    Raises ModelError for a file that is not a model or does not run, TargetError where a package is missing.
    """
    if target := _written_by(path):
        opened = target.reopen(path, threads or os.cpu_count() or 1)
        return _of_session(path, opened.session, opened.library, opened.size_bytes, opened.device)
    library = f"ONNX Runtime {ort.VERSION}"
    if path.suffix.lower() == ORT_FORMAT:
        return _of_session(path, _open_ort(path, threads), library, path.stat().st_size)
    model = open_file(path).model
    here = {value.name for value in runtime_inputs(model)} & values.keys()
    with naming(path):
        fixed = fix_inputs(model, {name: values[name] for name in here})
    return Finished(
        path,
        fed(ort.as_opened(path, threads), fixed),
        library,
        model_file.facts(path).size_bytes,
        model_inputs(model),
        model_classes(model),
        model,
        fixed=fixed,
    )


def _open_ort(path: Path, threads: int) -> Any:
    """Raises ModelError for a file that cannot be read, or that ONNX Runtime does not load."""
    if path.is_dir():
        raise ModelError(f"{path}: is a folder; name the .ort file in it")
    with naming(path), explaining(""), path.open("rb"):
        pass
    try:
        return ort.as_opened(path, threads)
    except ModelError as error:
        raise ModelError(
            f"{path}: is no ORT-format model, or truncated; copy or build it again ({error})"
        ) from error


def _written_by(path: Path) -> Target | None:
    """The target that opens this file again."""
    return next((target for kind in targets().values() if (target := kind()).wrote(path)), None)


def _of_session(path: Path, session: Any, library: str, size_bytes: int, device: str = "") -> Finished:
    inputs = [_spec(path, value) for value in session.get_inputs()]
    outputs = [value.shape for value in session.get_outputs() if value.type == "tensor(float)"]
    classes = [shape[1] for shape in outputs if len(shape) == 2]
    known = bool(classes) and all(isinstance(count, int) for count in classes) and max(classes) > 1
    return Finished(
        path, session, library, size_bytes, inputs, max(classes) if known else None, device=device
    )


def _spec(path: Path, value: Any) -> InputSpec:
    if value.type not in ort.DTYPES:
        raise ModelError(f"{path}: its input '{value.name}' is {value.type}, which cannot be fed")
    shape = tuple(size if isinstance(size, int) and size > 0 else None for size in value.shape or ())
    return InputSpec(value.name, np.dtype(ort.DTYPES[value.type]), shape)
