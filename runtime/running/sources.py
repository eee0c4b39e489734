"""What ONNX Runtime opens a model from: the content or the path of an ONNX file."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import onnx

from onnx_lathe import held
from onnx_lathe.errors import ModelError, UsageError
from onnx_lathe.runtime.files import model_file
from onnx_lathe.runtime.pack import MAGIC, is_packed, unpack

SERIALIZED_LIMIT_BYTES = 2**31 - 1
"""Of a model that is given as bytes; protobuf's limit."""


@contextmanager
def readable(model: onnx.ModelProto | bytes | str | Path) -> Iterator[bytes | str]:
    """A packed model is decoded in memory. One in memory that is too large to be given as bytes lies in a
    temporary file as long as the block lasts; ONNX Runtime holds what it needs of it longer.

    Raises ModelError for a packed model that is damaged, or unpacks to over 2 GB; UsageError for a path that is not UTF-8.
    """
    if not isinstance(model, onnx.ModelProto):
        yield _given(model)
    elif not _is_held(model) and model_file.size_bytes(model) <= model_file.INLINE_LIMIT_BYTES:
        yield model.SerializeToString()
    else:
        with tempfile.TemporaryDirectory(prefix="lathe-", ignore_cleanup_errors=True) as folder:
            path = Path(folder) / "model.onnx"
            model_file.save(model, path)
            yield str(path)


def _is_held(model: onnx.ModelProto) -> bool:
    return any(map(held.is_held, model.graph.initializer))


def _given(model: bytes | str | Path) -> bytes | str:
    if isinstance(model, bytes):
        return unpack(model, SERIALIZED_LIMIT_BYTES) if is_packed(model) else model
    try:
        with open(model, "rb") as file:
            if file.read(len(MAGIC)) != MAGIC:
                return _name(model)
        return unpack(Path(model).read_bytes(), SERIALIZED_LIMIT_BYTES)
    except OSError:  # ONNX Runtime has the reason
        return _name(model)
    except ModelError as error:
        raise ModelError(f"{model}: {error}") from error


def _name(path: str | Path) -> str:
    try:
        str(path).encode()
    except UnicodeEncodeError as error:
        raise UsageError(f"{path}: ONNX Runtime opens no file whose name is not UTF-8; rename it") from error
    return str(path)
