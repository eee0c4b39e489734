"""What goes between a process and its child through a pipe: a line of JSON, and the bytes of the arrays it names."""

import json
from collections.abc import Mapping
from typing import Any, BinaryIO

import numpy as np

KEY = "arrays"


def send(
    stream: BinaryIO, message: Mapping[str, Any], arrays: Mapping[str, np.ndarray] | None = None
) -> None:
    values = {
        name: np.ascontiguousarray(array).reshape(np.shape(array)) for name, array in (arrays or {}).items()
    }
    described = [[name, array.dtype.str, list(array.shape)] for name, array in values.items()]
    stream.write(json.dumps({**message, KEY: described}).encode() + b"\n")
    for array in values.values():
        stream.write(array.tobytes())
    stream.flush()


def receive(stream: BinaryIO) -> tuple[dict[str, Any], dict[str, np.ndarray]] | None:
    """(message, arrays by name); None at the end, also one in the middle of a message."""
    line = stream.readline()
    if not line.endswith(b"\n"):
        return None
    message = json.loads(line)
    arrays = {}
    for name, dtype, shape in message.pop(KEY):
        size = int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize
        data = stream.read(size)
        if len(data) < size:
            return None
        arrays[name] = np.frombuffer(data, dtype).reshape(shape)
    return message, arrays
