"""What belongs to an engine beside its bytes: the weights of a stripped one, kept times, its hash, and what is said of
its options.
"""

import dataclasses
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import onnx

from onnx_lathe import metadata
from onnx_lathe.errors import LatheError, TargetError
from onnx_lathe.runtime.files import model_file
from onnx_lathe.runtime.files.writing import replacing


def sparse_flags(model: onnx.ModelProto, wanted: str) -> list[str]:
    """SPARSE_WEIGHTS lets TensorRT choose kernels for weights with 2 zeros in each 4, where such a kernel
    is faster.
    """
    found = "2:4" in metadata.read_sparse(model.metadata_props).values()
    return ["SPARSE_WEIGHTS"] if wanted == "yes" or (wanted == "auto" and found) else []


def keep_weights(model: Path, scratch: Path, engine: Path) -> list[Path]:
    """Writes into `scratch` the model that a stripped engine gets its weights from. Returns the files, which belong
    beside the engine.
    """
    kept = scratch / f"{engine.name}.onnx"
    model_file.save(model_file.load(model), kept)
    return sorted(scratch.glob(f"{kept.name}*"))


def keep_times(written: Path, wanted: str | None) -> None:
    if wanted is None:
        return
    try:
        with replacing(Path(wanted)) as file:
            file.write(written.read_bytes())
    except LatheError as error:
        raise TargetError(f"option timing_cache: {error}") from error


def named_options(options: Any) -> dict[str, Any]:
    """Of the options that decide where and how an engine can be loaded, those that are not at their default."""
    names = ("refit", "strip", "compatible", "weight_streaming", "portable", "same_compute", "dla")
    fields = {field.name: field.default for field in dataclasses.fields(options)}
    return {
        name: getattr(options, name)
        for name in names
        if name in fields and getattr(options, name) != fields[name]
    }


def notes_of(options: Any, version: str, weights: Sequence[Path]) -> tuple[str, ...]:
    found = []
    if weights:
        found.append(
            f"the engine holds no weights: it computes nothing right before it is refitted from {weights[0].name}"
        )
    if options.refit == "any" and version.startswith("11.3."):
        found.append(
            "TensorRT 11.3 may drop the bias of a matrix product in an engine for refit=any, as its release notes "
            "say; compare its outputs, or give refit=same"
        )
    return tuple(found)


def sha256(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
