"""Writes a program as an `.mlpackage`, which is a folder, and reads it back to compare every weight."""

import json
import os
import secrets
import shutil
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np

from onnx_lathe.errors import LatheError, TargetError
from onnx_lathe.runtime.targets.coreml.convert import Conversion, Port
from onnx_lathe.runtime.targets.coreml.form import Form
from onnx_lathe.runtime.targets.coreml.image import LAYOUTS, Image
from onnx_lathe.runtime.targets.coreml.network import REFUSED
from onnx_lathe.runtime.targets.coreml.package import library, quiet
from onnx_lathe.runtime.targets.coreml.weights import Kept

NAMESPACE = uuid.UUID("6f1d1f4e-2c0b-4a55-9a0f-0b6a3f1c7d21")
"""Of the names in the manifest: coremltools draws them by chance, so that no two packages would be alike."""


@contextmanager
def replacing_folder(path: Path) -> Iterator[Path]:
    """A new folder that takes `path`'s place when the block ends well and vanishes otherwise. Raises LatheError for
    what the disk refuses, and for a file of that name.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        if path.exists() and not path.is_dir():
            raise LatheError(f"{path}: is a file, not a folder; choose another name")
        temporary.mkdir()
        yield temporary
        if path.exists():
            former = path.with_name(f".{path.name}.{secrets.token_hex(4)}.old")
            os.replace(path, former)
            os.replace(temporary, path)
            shutil.rmtree(former, ignore_errors=True)
        else:
            os.replace(temporary, path)
    except OSError as error:
        raise LatheError(f"{path}: cannot be written: {error.strerror or error}") from error
    finally:
        with suppress(OSError):
            shutil.rmtree(temporary)


def write(
    written: Conversion, form: Form, package: Path, image: Image | None, about: Mapping[str, str]
) -> None:
    """The package, whole or not at all. `about`: what its metadata says. Raises TargetError if coremltools refuses the
    program, or if what it has written holds other weights.
    """
    with replacing_folder(package) as folder:
        inner = folder / "model.mlpackage"
        try:
            with quiet():
                model = library().convert(
                    written.program,
                    inputs=[_input(port, image) for port in written.inputs],
                    minimum_deployment_target=form.target(),
                    compute_precision=library().precision.FLOAT32,
                    pass_pipeline=library().PassPipeline.EMPTY,
                    skip_model_load=True,
                )
                model.user_defined_metadata.update(about)
                model.save(str(inner))
        except REFUSED as error:
            raise TargetError(
                f"coremltools refuses the program: {str(error).strip().splitlines()[0]}"
            ) from error
        _settle(inner)
        check(inner, written)
        for part in inner.iterdir():
            os.replace(part, folder / part.name)
        inner.rmdir()


def _input(port: Port, image: Image | None) -> Any:
    ct = library()
    dims = [
        size if size is not None else ct.RangeDim(low, high, default=low)
        for size, low, high in zip(port.shape, port.least, port.greatest, strict=True)
    ]
    if image is not None and image.input == port.tensor:
        return ct.ImageType(name=port.name, shape=ct.Shape(dims), color_layout=LAYOUTS[image.layout][1])
    kind = np.float32 if port.kind == "float32" else np.int32
    return ct.TensorType(name=port.name, shape=ct.Shape(dims), dtype=kind)


def _settle(package: Path) -> None:
    """Names and an order of entries that do not depend on chance, and files that others may read."""
    manifest = package / "Manifest.json"
    content = json.loads(manifest.read_text())
    entries = sorted(content["itemInfoEntries"].items(), key=lambda item: str(item[1]["path"]))
    renamed = {name: str(uuid.uuid5(NAMESPACE, str(entry["path"]))).upper() for name, entry in entries}
    content["itemInfoEntries"] = {renamed[name]: entry for name, entry in entries}
    content["rootModelIdentifier"] = renamed[content["rootModelIdentifier"]]
    manifest.write_text(json.dumps(content, indent=4) + "\n")
    for path in package.rglob("*.mlmodel"):  # protobuf writes maps in the order of its hash table
        spec = library().proto.Model_pb2.Model.FromString(path.read_bytes())
        path.write_bytes(spec.SerializeToString(deterministic=True))
    for path in package.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)


def files_of(package: Path) -> list[Path]:
    return sorted(path for path in package.rglob("*") if path.is_file())


def read_back(package: Path) -> Any:
    """The program as the package holds it. Raises TargetError for one that coremltools does not read."""
    library()
    from coremltools.converters.mil.frontend.milproto.load import load

    try:
        with quiet():
            model = library().models.MLModel(str(package), skip_model_load=True)
            spec = model.get_spec()
            return load(spec, spec.specificationVersion, file_weights_dir=model.weights_dir)
    except (*REFUSED, OSError) as error:
        raise TargetError(
            f"coremltools does not read back what it wrote: {str(error).strip()[:200]}"
        ) from error


def check(package: Path, written: Conversion) -> None:
    """Raises TargetError if the package holds another weight than was written, bit for bit, another operation, or an
    input or output of another name.
    """
    program = read_back(package)
    function = program.functions["main"]
    names = [*function.inputs, *(one.name for one in function.outputs)]
    if names != [port.name for port in (*written.inputs, *written.outputs)]:
        raise TargetError(
            "the package gives other names to inputs or outputs than were written; nothing is written"
        )
    constants: dict[str, Any] = {}
    kinds: list[str] = []
    for op in function.operations:
        if op.op_type == "const" or op.op_type.startswith("constexpr_"):
            constants.update({variable.name: op for variable in op.outputs})
        else:
            kinds.append(op.op_type)
    ours = [
        op.op_type
        for op in written.program.functions["main"].operations
        if op.op_type != "const" and not op.op_type.startswith("constexpr_")
    ]
    if sorted(kinds) != sorted(ours):
        raise TargetError("the package holds other operations than were written; nothing is written")
    for kept in written.kept:
        _compare(kept, constants.get(kept.name))


def _compare(kept: Kept, op: Any) -> None:
    if op is None or op.op_type != kept.kind:
        raise TargetError(
            f"the package has no {kept.kind} '{kept.name}', which was written; nothing is written"
        )
    with quiet():
        found = op.outputs[0].val if kept.kind == "const" else op.materialized_val_inference()
    values = np.asarray(found)
    same = values.shape == kept.values.shape and values.dtype == kept.values.dtype
    if not same or values.tobytes() != np.ascontiguousarray(kept.values).tobytes():
        raise TargetError(
            f"the package holds another weight '{kept.name}' than was written; nothing is written"
        )


def weight_bytes(package: Path) -> int:
    """Of the file that holds all large constants."""
    path = package / "Data" / "com.apple.CoreML" / "weights" / "weight.bin"
    return path.stat().st_size if path.is_file() else 0


def forms_of(kept: Sequence[Kept]) -> dict[str, int]:
    """How many weights are stored in which form."""
    found: dict[str, int] = {}
    for one in kept:
        if one.values.ndim > 1 or one.kind != "const":
            found[one.kind] = found.get(one.kind, 0) + 1
    return dict(sorted(found.items()))
