"""Reads one ONNX file into a model that can be believed; a refusal says what the file is and what to do."""

import difflib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError, Message
from onnx import ModelProto, TensorProto

from onnx_lathe.errors import ModelError
from onnx_lathe.runtime.files.proportion import check_proportion
from onnx_lathe.runtime.files.tensors import without_big

OPSETS = (11, 24)
"""What passes and targets know."""
OLDEST = 7
"""What a user may give: passes/loading makes it newer. ONNX Runtime runs no older one."""


PROTOBUF_LIMIT_BYTES = 2**31 - 1


_NOT_TEXT = "is damaged, a name in it is not text; export or copy it again"


_RUN = "run it with: optimize run FILE; other commands take the .onnx file that it was made from"
_NOT_ONNX = {
    (
        0,
        b"PK\x03\x04",
    ): "a zip archive (a PyTorch checkpoint or .npz?); export the model with torch.onnx.export",
    (0, b"version https://git-lfs"): "a Git LFS pointer; fetch the file itself with: git lfs pull",
    (0, b"\x1f\x8b"): "gzip-compressed; unpack it first",
    (0, b"\x89HDF"): "an HDF5 file (Keras?); export the model with tf2onnx",
    (0, b"7767517\n"): f"a network of ncnn; {_RUN}",
    (0, b"ftrt"): f"an engine of TensorRT; {_RUN}",
    (0, b"vtrt"): f"an engine of TensorRT-RTX; {_RUN}",
    (4, b"TFL3"): f"a model of LiteRT (TensorFlow Lite); {_RUN}",
    (4, b"ORTM"): f"an ORT-format model; {_RUN}",
}
"""(offset, what stands there) -> what the file is, and what to do with it."""
_CORE_ML = (".mlpackage", ".mlmodelc")


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Puts the file's name before the reason."""
    try:
        yield
    except UnicodeDecodeError as error:
        raise ModelError(f"{path}: {_NOT_TEXT}") from error
    except ModelError as error:
        raise ModelError(f"{path}: {error}") from error.__cause__


@contextmanager
def explaining(what: str) -> Iterator[None]:
    """Turns what the operating system says into a ModelError: `what` could not be read, and why."""
    try:
        yield
    except FileNotFoundError as error:
        raise ModelError(f"{what}no such file; check the name, or copy it there") from error
    except OSError as error:
        raise ModelError(f"{what}cannot be read: {error.strerror or error}") from error


def content_of(path: Path) -> bytes:
    """The bytes of a file that can be one protobuf message."""
    if path.is_dir() and path.suffix.lower() in _CORE_ML:
        raise ModelError(
            "is not an ONNX model but one of Core ML, which macOS alone runs; give the .onnx file that it was made from"
        )
    if path.is_dir():
        raise ModelError("is a folder; name the .onnx file in it")
    if not path.exists() and (advice := beside(path)):
        raise ModelError(f"no such file{advice}")
    with explaining(""):
        if path.stat().st_size > PROTOBUF_LIMIT_BYTES:
            raise ModelError(
                "is larger than 2 GB, so not one ONNX file; "
                "save the weights as external data, or if it is packed, run optimize unpack"
            )
        return path.read_bytes()


def beside(path: Path) -> str:
    """ "; did you mean 'build/model.ort.onnx'?", of the files in its folder that end alike, or nothing."""
    try:
        stems = [one.stem for one in path.parent.iterdir() if one.suffix == path.suffix and one.is_file()]
    except OSError:
        return ""
    close = difflib.get_close_matches(path.stem, sorted(stems), n=1, cutoff=0.5)
    return f"; did you mean '{path.with_name(close[0] + path.suffix)}'?" if close else ""


def parse(content: bytes) -> ModelProto:
    """The model in these bytes, if they are one."""
    if not content:
        raise ModelError("is empty; export the model again")
    known = (what for (offset, magic), what in _NOT_ONNX.items() if content.startswith(magic, offset))
    if kind := next(known, None):
        raise ModelError(f"is not an ONNX model but {kind}")
    check_proportion(content)
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


def check_opset(model: ModelProto, oldest: int) -> None:
    """Refuses a model whose version of the standard operators Lathe does not know."""
    versions = {entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")}
    if len(versions) > 1:
        raise ModelError("names two versions of the standard operators (opset); export it again")
    version = max(
        (entry.version for entry in model.opset_import if entry.domain in ("", "ai.onnx")), default=None
    )
    high = OPSETS[1]
    if version is None:
        raise ModelError("names no version of the standard operators (opset); export it again")
    if version < oldest:
        raise ModelError(
            f"opset {version} is older than {oldest}; export the model again with opset_version=17"
        )
    if version > high:
        raise ModelError(f"opset {version} is newer than {high}; export the model with opset_version=21")


Mend = Callable[[ModelProto], object]
"""Changes a model in place."""


def as_it_is(model: ModelProto) -> None:
    """Mends nothing."""


def check_structure(model: ModelProto, mend: Mend) -> None:
    """Lets onnx.checker look at a copy without the big initializers, mended."""
    inputs = {value.name for value in model.graph.input}

    def as_input(graph: onnx.GraphProto, tensor: TensorProto) -> None:
        if tensor.name not in inputs:
            graph.input.append(
                onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, list(tensor.dims))
            )

    light = without_big(model, as_input)
    # before IR version 4 every initializer had to be an input too; converters leave that out, runtimes ignore it
    light.ir_version = max(light.ir_version, 4)
    _check_text(light)
    mend(light)
    try:
        onnx.checker.check_model(light)
    except onnx.checker.ValidationError as error:
        reason = _unshaped(light.graph) or f"the ONNX checker refuses it: {' '.join(str(error).split())}"
        raise ModelError(reason) from error


def _unshaped(graph: onnx.GraphProto) -> str:
    """Names the first input or output without a shape, which the checker does not; empty if all have one."""
    for role, values in (("input", graph.input), ("output", graph.output)):
        for value in values:
            if value.type.HasField("tensor_type") and not value.type.tensor_type.HasField("shape"):
                return (
                    f"its {role} '{value.name}' declares no shape, not even one of open sizes; save what "
                    "onnx.shape_inference.infer_shapes makes of the model, or export it again"
                )
    return ""


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
