"""Reads and writes ONNX files safely: external data, size limits, atomic replacement.

What is read is checked before it is believed: sizes come from the shapes, and external data must lie in the
model's own folder. Big initializers are never copied for a check, so that a model of half a gigabyte needs
little more than its own size.
"""

import hashlib
import math
import re
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError, EncodeError, Message
from onnx import ModelProto, TensorProto

from onnx_lathe.errors import ModelError
from onnx_lathe.runtime.files.writing import replacing
from onnx_lathe.runtime.pack import is_packed, unpack

OPSETS = (11, 24)
PROTOBUF_LIMIT_BYTES = 2**31 - 1
INLINE_LIMIT_BYTES = 1_900_000_000
"""A larger model is saved with external data, some way before protobuf's own limit of 2 GiB."""
ALIGNMENT = 4096
"""Of a tensor in external data. Page size: ONNX Runtime maps data that begins on a page."""
BIG_BYTES = 1024
"""An initializer from this size on is kept out of copies, and goes into external data if there is any."""

_CHUNK_BYTES = 1 << 20
_NOT_TEXT = "is damaged, a name in it is not text; export or copy it again"
_VALUES = (
    "raw_data",
    "float_data",
    "int32_data",
    "int64_data",
    "double_data",
    "uint64_data",
    "data_location",
    "external_data",
)
_NOT_ONNX = {
    b"PK\x03\x04": "a zip archive (a PyTorch checkpoint or .npz?); export the model with torch.onnx.export",
    b"version https://git-lfs": "a Git LFS pointer; fetch the file itself with: git lfs pull",
    b"\x1f\x8b": "gzip-compressed; unpack it first",
    b"\x89HDF": "an HDF5 file (Keras?); export the model with tf2onnx",
}


@dataclass(frozen=True)
class FileFacts:
    """Bytes on disk and SHA-256 of the content; external data files are part of both, in the order of their
    names.
    """

    size_bytes: int
    sha256: str


def load(path: str | Path) -> ModelProto:
    """The model, external data read into it, checked by onnx.checker. The file may be packed (runtime/pack).

    Raises ModelError: unreadable or not ONNX, opset outside 11..24, invalid structure, external data
    missing, too short or elsewhere.
    """
    path = Path(path)
    with _naming(path):
        content = _content(path)
        model = _parse(unpack(content, PROTOBUF_LIMIT_BYTES) if is_packed(content) else content)
        del content
        _check_opset(model)
        for tensor in _tensors(model):
            if tensor.data_location == TensorProto.EXTERNAL:
                _read_external(path.parent, tensor)
            elif tensor.HasField("raw_data") and len(tensor.raw_data) != _data_size(tensor):
                raise ModelError(
                    f"the data of tensor '{tensor.name}' does not have the size that its shape asks for; export it again"
                )
        _check_structure(model)
    return model


def inspect_file(path: str | Path) -> FileFacts:
    """Size and hash of a model file with its external data. Raises ModelError as `load` does."""
    path = Path(path)
    with _naming(path):
        content = _content(path)
        digest, size = hashlib.sha256(content), len(content)
        if is_packed(content):
            return FileFacts(size, digest.hexdigest())
        model = _parse(content)
        del content
        external = [tensor for tensor in _tensors(model) if tensor.data_location == TensorProto.EXTERNAL]
        for file in sorted({_external_path(path.parent, tensor) for tensor in external}):
            with _reading(f"external data {file}: "), open(file, "rb") as stream:
                while chunk := stream.read(_CHUNK_BYTES):
                    size += len(chunk)
                    digest.update(chunk)
    return FileFacts(size, digest.hexdigest())


def externals(path: str | Path) -> tuple[ModelProto, list[tuple[TensorProto, Path, int, int]]]:
    """The model without its external data, and for each tensor that has some: the tensor, file, offset and
    size, all checked.

    Raises ModelError as `load` does, but for the opset and structure, which are not looked at.
    """
    path = Path(path)
    with _naming(path):
        model = _parse(_content(path))
        outside = [tensor for tensor in _tensors(model) if tensor.data_location == TensorProto.EXTERNAL]
        return model, [(tensor, *_locate(path.parent, tensor)) for tensor in outside]


def warnings(model: ModelProto) -> list[str]:
    """What Lathe will not look into: one line per operator outside the ONNX standard, with the nodes that
    use it.
    """
    standard = {"", "ai.onnx", "ai.onnx.ml"}
    functions = {(function.domain, function.name) for function in model.functions}
    users: dict[tuple[str, str], list[str]] = {}
    for node in _nodes(model):
        if (node.domain, node.op_type) in functions or node.domain not in standard:
            users.setdefault((node.domain, node.op_type), []).append(
                node.name or f"writes {node.output[0] if node.output else 'nothing'}"
            )
    lines = []
    for (domain, op), names in users.items():
        what = (
            "a function of the model" if (domain, op) in functions else "not an operator of the ONNX standard"
        )
        shown = ", ".join(f"'{name}'" for name in names[:3]) + (
            f" and {len(names) - 3} more" if len(names) > 3 else ""
        )
        lines.append(
            f"{domain}.{op} is {what}: passes leave it alone and a target may refuse it (node {shown})"
        )
    return lines


def size_bytes(model: ModelProto) -> int:
    """Bytes that `save` would write, external data included."""
    size = _inline_size(model)
    if size <= INLINE_LIMIT_BYTES:
        return size
    light, blobs = _externalized(model, "model.onnx.data")
    return light.ByteSize() + max((offset + _data_size(tensor) for offset, tensor in blobs), default=0)


def save(model: ModelProto, path: str | Path) -> None:
    """Writes `path`, and `<name>.data` beside it above 1.9 GB. Files appear whole or not at all; `model` is
    left as it is.

    Raises LatheError with the reason when the folder is missing, read-only or full.
    """
    path = Path(path)
    try:
        if _inline_size(model) <= INLINE_LIMIT_BYTES:
            with replacing(path) as file:
                file.write(model.SerializeToString())
            return
        data_path = path.with_name(path.name + ".data")
        light, blobs = _externalized(model, data_path.name)
        with (
            replacing(path) as file,
            replacing(data_path) as data,
        ):  # left in the other order: the data is in place first
            file.write(light.SerializeToString())
            for offset, tensor in blobs:
                data.write(b"\0" * (offset - data.tell()))
                data.write(
                    tensor.raw_data
                    or onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor)).raw_data
                )
    except EncodeError as error:
        raise ModelError(
            f"{path}: more than 2 GB outside the initializers cannot be saved; turn constants into initializers"
        ) from error


@contextmanager
def _naming(path: Path) -> Iterator[None]:
    """Puts the file's name before the reason."""
    try:
        yield
    except UnicodeDecodeError as error:
        raise ModelError(f"{path}: {_NOT_TEXT}") from error
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from error.__cause__


@contextmanager
def _reading(what: str) -> Iterator[None]:
    try:
        yield
    except FileNotFoundError as error:
        raise ModelError(f"{what}no such file; check the name, or copy it there") from error
    except OSError as error:
        raise ModelError(f"{what}cannot be read: {error.strerror or error}") from error


def _content(path: Path) -> bytes:
    if path.is_dir():
        raise ModelError("is a folder; name the .onnx file in it")
    with _reading(""):
        if path.stat().st_size > PROTOBUF_LIMIT_BYTES:
            raise ModelError(
                "is larger than 2 GB, so not one ONNX file; save the weights as external data, or if it is packed, run optimize unpack"
            )
        return path.read_bytes()


def _parse(content: bytes) -> ModelProto:
    if not content:
        raise ModelError("is empty; export the model again")
    kind = next((what for magic, what in _NOT_ONNX.items() if content.startswith(magic)), None)
    if (
        kind := "an ORT-format model; give the .onnx file that it was made from"
        if content[4:8] == b"ORTM"
        else kind
    ):
        raise ModelError(f"is not an ONNX model but {kind}")
    model = ModelProto()
    try:
        model.ParseFromString(content)
    except DecodeError as error:
        raise ModelError("is not an ONNX model, or is truncated; export or copy it again") from error
    found = {
        "version": model.ir_version > 0,
        "graph": model.HasField("graph"),
        "opset": len(model.opset_import) > 0,
    }
    if missing := [name for name, there in found.items() if not there]:
        raise ModelError(
            f"is not an ONNX model, or is truncated: it has no {missing[0]}; export or copy it again"
        )
    return model


def _check_opset(model: ModelProto) -> None:
    version = max(
        (entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), default=None
    )
    low, high = OPSETS
    if version is None:
        raise ModelError("names no version of the standard operators (opset); export it again")
    if version < low:
        raise ModelError(
            f"opset {version} is older than {low}; convert it with onnx.version_converter.convert_version(model, 17)"
        )
    if version > high:
        raise ModelError(f"opset {version} is newer than {high}; export the model with opset_version=21")


def _check_structure(model: ModelProto) -> None:
    inputs = {value.name for value in model.graph.input}

    def as_input(graph: onnx.GraphProto, tensor: TensorProto) -> None:
        if tensor.name not in inputs:
            graph.input.append(
                onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims))
            )

    light = _without_big(model, as_input)
    _check_text(light)
    try:
        onnx.checker.check_model(light)
    except onnx.checker.ValidationError as error:
        raise ModelError(f"the ONNX checker refuses it: {' '.join(str(error).split())}") from error


def _check_text(message: Message) -> None:
    """Raises ModelError for a string that is not UTF-8: protobuf hands it out as bytes, and only when it is
    read.
    """
    for field, value in message.ListFields():
        if field.type not in (field.TYPE_STRING, field.TYPE_MESSAGE):
            continue
        for one in value if hasattr(value, "extend") else (value,):
            if isinstance(one, Message):
                _check_text(one)
            elif isinstance(one, bytes):
                raise ModelError(_NOT_TEXT)


def _main_graphs(model: ModelProto) -> list[onnx.GraphProto]:
    """The graph, and those that train it."""
    return [
        model.graph,
        *(
            graph
            for training in model.training_info
            for graph in (training.initialization, training.algorithm)
        ),
    ]


def _nodes(model: ModelProto) -> Iterator[onnx.NodeProto]:
    """Every node, those of subgraphs and functions too."""
    pending = [node for part in (*_main_graphs(model), *model.functions) for node in part.node]
    for node in pending:
        yield node
        for attribute in node.attribute:
            for graph in (*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])):
                pending.extend(graph.node)


def _tensors(model: ModelProto) -> Iterator[TensorProto]:
    """Every stored tensor: initializers of the graph and of subgraphs, sparse ones, and attributes."""
    graphs = _main_graphs(model)
    for node in _nodes(model):
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors
            for sparse in (
                *attribute.sparse_tensors,
                *([attribute.sparse_tensor] if attribute.HasField("sparse_tensor") else []),
            ):
                yield sparse.values
                yield sparse.indices
            graphs.extend(attribute.graphs)
            if attribute.HasField("g"):
                graphs.append(attribute.g)
    for graph in graphs:
        yield from graph.initializer
        for sparse in graph.sparse_initializer:
            yield sparse.values
            yield sparse.indices


@cache
def _bits(data_type: int) -> int | None:
    """Bits of an element; None for strings and unknown types."""
    try:
        narrow = re.fullmatch(r"(?:U?INT|FLOAT)([24])(?:E\dM\d)?", TensorProto.DataType.Name(data_type))
        return int(narrow[1]) if narrow else 8 * onnx.helper.tensor_dtype_to_np_dtype(data_type).itemsize
    except (KeyError, ValueError):
        return None


def _data_size(tensor: TensorProto) -> int:
    """Bytes of raw data that the shape asks for. Raises ModelError for a negative dimension, or a type
    without a fixed size.
    """
    bits = _bits(tensor.data_type)
    if bits is None or min(tensor.dims, default=0) < 0:
        raise ModelError(
            f"tensor '{tensor.name}' has an unknown type or a negative dimension; export the model again"
        )
    return (math.prod(tensor.dims) * bits + 7) // 8


def _external_path(folder: Path, tensor: TensorProto) -> Path:
    location = next((entry.value for entry in tensor.external_data if entry.key == "location"), "")
    named = f"external data '{location}' of tensor '{tensor.name}'"
    if not location:
        raise ModelError(
            f"tensor '{tensor.name}' has external data without a location; export the model again"
        )
    try:
        folder = folder.resolve()
        file = (folder / location).resolve()
    except (OSError, RuntimeError, ValueError) as error:  # a loop of symbolic links, or a NUL in the name
        raise ModelError(f"{named} is not a usable path; export the model again") from error
    if not file.is_relative_to(folder):
        raise ModelError(
            f"{named} is outside the model's folder; copy the file itself, not a link, beside the model"
        )
    return file


def _locate(folder: Path, tensor: TensorProto) -> tuple[Path, int, int]:
    """File, offset and size of a tensor's external data."""
    file, needed = _external_path(folder, tensor), _data_size(tensor)
    where = {entry.key: entry.value for entry in tensor.external_data}
    named = f"external data of tensor '{tensor.name}'"
    try:
        offset, length = int(where.get("offset", 0)), int(where.get("length", needed))
    except ValueError as error:
        raise ModelError(
            f"{named} has an offset or length that is no number; export the model again"
        ) from error
    if offset < 0 or length != needed:
        raise ModelError(
            f"{named} is {length} bytes at {offset}, but its shape asks for {needed}; export the model again"
        )
    with _reading(f"external data {file}: "):
        held = file.stat().st_size
    if offset + length > held:
        raise ModelError(
            f"{named}: {file.name} is too short, {held} bytes of at least {offset + length}; copy it again"
        )
    return file, offset, length


def _read_external(folder: Path, tensor: TensorProto) -> None:
    """Reads the data into the tensor and makes it an ordinary one."""
    file, offset, length = _locate(folder, tensor)
    with _reading(f"external data {file}: "), open(file, "rb") as stream:
        stream.seek(offset)
        tensor.raw_data = stream.read(length)
    del tensor.external_data[:]
    tensor.ClearField("data_location")


def _without_big(model: ModelProto, big: Callable[[onnx.GraphProto, TensorProto], None]) -> ModelProto:
    """A copy in which `big(graph of the copy, tensor)` stands for each initializer of 1 kB or more (strings
    excepted).
    """
    light = ModelProto()
    _copy(model, light, leave_out=("graph",))
    _copy(model.graph, light.graph, leave_out=("initializer",))
    for tensor in model.graph.initializer:
        if math.prod(tensor.dims) * (_bits(tensor.data_type) or 0) < 8 * BIG_BYTES:
            light.graph.initializer.append(tensor)
        else:
            big(light.graph, tensor)
    return light


def _copy(source: Message, target: Message, leave_out: Collection[str]) -> None:
    for field, value in source.ListFields():
        if field.name in leave_out:
            continue
        if isinstance(value, Message):
            getattr(target, field.name).CopyFrom(value)
        elif hasattr(value, "extend"):
            getattr(target, field.name).extend(value)
        else:
            setattr(target, field.name, value)


def _inline_size(model: ModelProto) -> int:
    """Exact size of one file; the big initializers are added one by one, because protobuf measures by
    serializing.
    """
    added = 0

    def count(graph: onnx.GraphProto, tensor: TensorProto) -> None:
        nonlocal added
        added += _field_size(tensor.ByteSize())

    light = _without_big(model, count)
    graph = light.graph.ByteSize()
    return light.ByteSize() - _field_size(graph) + _field_size(graph + added)


def _field_size(content: int) -> int:
    """Bytes of an embedded protobuf message: a tag of one byte, the length in groups of 7 bits, the
    content.
    """
    return 1 + max(1, (content.bit_length() + 6) // 7) + content


def _externalized(model: ModelProto, location: str) -> tuple[ModelProto, list[tuple[int, TensorProto]]]:
    """The model with its big initializers in the file `location`, and those with their offsets there."""
    blobs: list[tuple[int, TensorProto]] = []
    end = 0

    def refer(graph: onnx.GraphProto, tensor: TensorProto) -> None:
        nonlocal end
        offset, length = -(-end // ALIGNMENT) * ALIGNMENT, _data_size(tensor)
        entry = graph.initializer.add(data_location=TensorProto.EXTERNAL)
        _copy(tensor, entry, leave_out=_VALUES)
        for key, value in (("location", location), ("offset", str(offset)), ("length", str(length))):
            entry.external_data.add(key=key, value=value)
        blobs.append((offset, tensor))
        end = offset + length

    return _without_big(model, refer), blobs
