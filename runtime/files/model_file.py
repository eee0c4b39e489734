"""Loads and saves ONNX files safely: checked before they are believed, external data included, written whole
or not at all.

reading.py refuses what is no good model, external_data.py finds the bytes beside it, tensors.py knows what a
model stores.
"""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx
from google.protobuf.message import EncodeError
from onnx import ModelProto, TensorProto

from onnx_lathe import held
from onnx_lathe.errors import ModelError, first_few
from onnx_lathe.runtime.files import hashing
from onnx_lathe.runtime.files.declared import check_counts, check_declared
from onnx_lathe.runtime.files.external_data import Reader, external_path, externalized, opened
from onnx_lathe.runtime.files.functions import check_functions
from onnx_lathe.runtime.files.pieces import PIECED_BYTES, pieces
from onnx_lathe.runtime.files.reading import (
    OPSETS,
    PROTOBUF_LIMIT_BYTES,
    Mend,
    as_it_is,
    check_opset,
    check_structure,
    content_of,
    explaining,
    naming,
    parse,
)
from onnx_lathe.runtime.files.tensors import BIG_BYTES, all_nodes, all_tensors, data_size, inline_size
from onnx_lathe.runtime.files.writing import replacing
from onnx_lathe.runtime.pack import is_packed, unpack

INLINE_LIMIT_BYTES = 1_900_000_000
"""A larger model is saved with external data, some way before protobuf's own limit of 2 GiB."""

_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class FileFacts:
    """Bytes on disk and SHA-256 of the content; external data files are part of both, in the order of their
    names.
    """

    size_bytes: int
    sha256: str


def load(path: str | Path, oldest: int = OPSETS[0], mend: Mend = as_it_is) -> ModelProto:
    """The model, external data read into it, checked by onnx.checker. The file may be packed (runtime/pack).
    `mend`: what a caller will do to it that makes it one that the checker takes. Within `held.area`, big external data
    of initializers is held instead: mapped, not read.

    Raises ModelError: unreadable or not ONNX, opset outside `oldest`..24, invalid structure, external data
    missing, too short or elsewhere.
    """
    path = Path(path)
    reader, area = Reader(path), held.open_area()
    if area is None:
        return _loaded(path, lambda model, tensor: reader.read(tensor), oldest, mend)

    def hold_big(model: ModelProto, tensor: TensorProto) -> None:
        if data_size(tensor) < held.LEAST_BYTES or not in_main(model, tensor):
            reader.read(tensor)
        else:
            area.hold(tensor, reader.mapped(tensor))

    in_main = _Main()
    return _loaded(path, hold_big, oldest, mend)


class _Main:
    """Whether a tensor is an initializer of the main graph."""

    def __init__(self) -> None:
        self._known: dict[int, TensorProto] = {}

    def __call__(self, model: ModelProto, tensor: TensorProto) -> bool:
        if not self._known:
            self._known = {id(one): one for one in model.graph.initializer}
        return id(tensor) in self._known


def load_without_data(path: str | Path, oldest: int = OPSETS[0], mend: Mend = as_it_is) -> ModelProto:
    """As `load`, but the initializers of the main graph of 1 kB or more whose data is in another file stay without it:
    they say their type and shape. That file is not opened, and need not be there. Smaller ones, on which shapes may
    depend, are read.
    """
    path = Path(path)
    in_main, reader = _Main(), Reader(path)

    def read_small(model: ModelProto, tensor: TensorProto) -> None:
        if not in_main(model, tensor) or data_size(tensor) < BIG_BYTES:
            reader.read(tensor)

    return _loaded(path, read_small, oldest, mend)


def _loaded(
    path: Path, external: Callable[[ModelProto, TensorProto], None], oldest: int, mend: Mend
) -> ModelProto:
    with naming(path):
        content = content_of(path)
        model = parse(unpack(content, PROTOBUF_LIMIT_BYTES) if is_packed(content) else content)
        del content
        _check(model, lambda tensor: external(model, tensor), oldest, mend)
    _name_standard_opset(model)
    return model


def _name_standard_opset(model: ModelProto) -> None:
    """ "ai.onnx" is the empty domain by another name, under which onnx-graphsurgeon writes bodies of opset 1."""
    other = [entry for entry in model.opset_import if entry.domain == "ai.onnx"]
    named = any(entry.domain == "" for entry in model.opset_import)
    for entry in other:
        if named:
            model.opset_import.remove(entry)
        else:
            entry.domain, named = "", True


def checked(model: ModelProto, oldest: int = OPSETS[0], mend: Mend = as_it_is) -> ModelProto:
    """The very model, one that a caller has in memory. Raises ModelError for what `load` would not take."""

    def refuse(tensor: TensorProto) -> None:
        raise ModelError(
            f"the data of tensor '{tensor.name}' is in another file; load it with onnx.load, or give the model's path"
        )

    _check(model, refuse, oldest, mend)
    return model


def _check(model: ModelProto, external: Callable[[TensorProto], None], oldest: int, mend: Mend) -> None:
    """`external` gets each tensor whose data is in another file."""
    check_opset(model, oldest)
    if not model.graph.output:
        raise ModelError("has no output, so it computes nothing; export it again")
    for tensor in all_tensors(model):
        if tensor.data_location == TensorProto.EXTERNAL:
            external(tensor)
        elif tensor.HasField("raw_data") and len(tensor.raw_data) != data_size(tensor):
            raise ModelError(
                f"the data of tensor '{tensor.name}' does not have the size that its shape asks for; "
                "export it again"
            )
    check_declared(model)
    check_counts(model)
    check_functions(model)
    check_structure(model, mend)


def inspect_file(path: str | Path) -> FileFacts:
    """Size and hash of a model file with its external data. Raises ModelError as `load` does."""
    path = Path(path)
    with naming(path):
        content = content_of(path)
        digest, size = hashlib.sha256(content), len(content)
        if is_packed(content):
            return FileFacts(size, digest.hexdigest())
        model = parse(content)
        del content
        external = [tensor for tensor in all_tensors(model) if tensor.data_location == TensorProto.EXTERNAL]
        files = {external_path(path, tensor): tensor for tensor in external}
        for file in sorted(files):
            with opened(path, files[file]) as stream:
                while chunk := stream.read(_CHUNK_BYTES):
                    size += len(chunk)
                    digest.update(chunk)
    return FileFacts(size, digest.hexdigest())


def facts(path: str | Path) -> FileFacts:
    """As `inspect_file`, of a file that has been loaded or written before: what is stored in one file is not looked into
    again, and is read once for as long as it stays the same. Raises ModelError for a file that cannot be read.
    """
    with naming(Path(path)), explaining(""):
        found = hashing.content(path)
    if found.locates and not is_packed(found.head):
        return inspect_file(path)
    return FileFacts(found.size_bytes, found.sha256)


def externals(path: str | Path) -> tuple[ModelProto, list[tuple[TensorProto, np.ndarray]]]:
    """The model without its external data, and for each tensor that has some: the tensor and its bytes, mapped
    from the file, not read.

    Raises ModelError as `load` does, but for the opset and structure, which are not looked at.
    """
    path = Path(path)
    with naming(path):
        model = parse(content_of(path))
        outside = [tensor for tensor in all_tensors(model) if tensor.data_location == TensorProto.EXTERNAL]
        reader = Reader(path)
        return model, [(tensor, reader.mapped(tensor)) for tensor in outside]


def warnings(model: ModelProto) -> list[str]:
    """What Lathe will not look into: one line per operator outside the ONNX standard, with the nodes that
    use it.
    """
    standard = {"", "ai.onnx", "ai.onnx.ml"}
    functions = {(function.domain, function.name) for function in model.functions}
    users: dict[tuple[str, str], list[str]] = {}
    for node in all_nodes(model):
        if (node.domain, node.op_type) in functions or node.domain not in standard:
            users.setdefault((node.domain, node.op_type), []).append(
                node.name or f"writes {node.output[0] if node.output else 'nothing'}"
            )
    lines = []
    for (domain, op), names in users.items():
        what = (
            "a function of the model" if (domain, op) in functions else "not an operator of the ONNX standard"
        )
        shown = first_few([f"'{name}'" for name in names])
        lines.append(
            f"{domain}.{op} is {what}: passes leave it alone and a target may refuse it (node {shown})"
        )
    return lines


def size_bytes(model: ModelProto) -> int:
    """Bytes that `save` would write, external data included."""
    size = inline_size(model)
    if size <= INLINE_LIMIT_BYTES:
        return size
    light, blobs = externalized(model, "model.onnx.data")
    return light.ByteSize() + max((offset + data_size(tensor) for offset, tensor in blobs), default=0)


def hold_saved(model: ModelProto, path: str | Path) -> None:
    """Of a model that has just been saved there: what it holds is held in the file that `save` wrote beside it."""
    if not any(map(held.is_held, model.graph.initializer)) or not Path(f"{path}.data").is_file():
        return
    _, outside = externals(path)
    saved = {tensor.name: data for tensor, data in outside}
    for tensor in model.graph.initializer:
        if tensor.name in saved and held.is_held(tensor):
            held.hold_again(tensor, saved[tensor.name])


def save(model: ModelProto, path: str | Path) -> None:
    """Writes `path`, and `<name>.data` beside it above 1.9 GB. Files appear whole or not at all; `model` is
    left as it is.

    Raises LatheError with the reason when the folder is missing, read-only or full.
    """
    path = Path(path)
    try:
        if (size := inline_size(model)) <= INLINE_LIMIT_BYTES:
            with replacing(path) as file:
                pieced = size > PIECED_BYTES or any(map(held.is_held, model.graph.initializer))
                file.writelines(pieces(model) if pieced else (model.SerializeToString(),))
            return
        data_path = path.with_name(path.name + ".data")
        light, blobs = externalized(model, data_path.name)
        with (
            replacing(path) as file,
            replacing(data_path) as data,
        ):  # left in the other order: the data is in place first
            file.write(light.SerializeToString())
            for offset, tensor in blobs:
                data.write(b"\0" * (offset - data.tell()))
                data.write(
                    held.data_of(tensor).data
                    if held.is_held(tensor)
                    else tensor.raw_data
                    or onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor)).raw_data
                )
    except EncodeError as error:
        raise ModelError(
            f"{path}: more than 2 GB outside the initializers cannot be saved; "
            "turn constants into initializers"
        ) from error
