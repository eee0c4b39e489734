"""Unsigned integers in groups of seven bits, lowest first, as protobuf has them."""

import numpy as np

from onnx_lathe.errors import ModelError


def write(value: int) -> bytes:
    out = bytearray()
    while value > 127:
        out.append(value & 127 | 128)
        value >>= 7
    out.append(value)
    return bytes(out)


def write_all(values: np.ndarray) -> bytes:
    """Many, int64 [n], one after the other."""
    groups = max(1, -(-int(values.max(initial=0)).bit_length() // 7))
    parts = values[:, None] >> 7 * np.arange(groups)
    more = parts > 127
    there = np.concatenate([np.ones((values.size, 1), bool), more[:, :-1]], axis=1)
    return ((parts & 127) | more << 7).astype(np.uint8)[there].tobytes()


class Reader:
    """Goes through bytes and never past their end."""

    def __init__(self, content: bytes | memoryview, at: int = 0, end: int | None = None) -> None:
        self.content, self.at, self.end = content, at, len(content) if end is None else end

    def varint(self) -> int:
        value = shift = 0
        while True:
            byte = self.byte()
            value |= (byte & 127) << shift
            if byte < 128:
                return value
            shift += 7
            if shift > 63:
                raise ModelError("is damaged: a number in it is too long; copy it again")

    def byte(self) -> int:
        if self.at >= self.end:
            raise ModelError("is truncated; copy it again")
        self.at += 1
        return self.content[self.at - 1]

    def take(self, size: int) -> memoryview:
        if size > self.end - self.at:
            raise ModelError("is truncated; copy it again")
        self.at += size
        return memoryview(self.content)[self.at - size : self.at]
