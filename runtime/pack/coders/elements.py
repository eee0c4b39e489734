"""Tensor bytes as unsigned integers, one per element, and back."""

from dataclasses import dataclass
from math import prod

import numpy as np
from onnx import TensorProto

from onnx_lathe.errors import ModelError

# Numbers that older releases of onnx have no name for; the format does not depend on the one that is
# installed.
_FLOAT8E8M0, _UINT2, _INT2 = 24, 25, 26
_NARROW: dict[int, int] = {
    TensorProto.UINT4: 4,
    TensorProto.INT4: 4,
    TensorProto.FLOAT4E2M1: 4,
    _UINT2: 2,
    _INT2: 2,
}
_BYTES: dict[int, int] = {
    TensorProto.FLOAT: 4, TensorProto.DOUBLE: 8, TensorProto.FLOAT16: 2, TensorProto.BFLOAT16: 2, TensorProto.COMPLEX64: 8,
    TensorProto.COMPLEX128: 16, TensorProto.INT8: 1, TensorProto.UINT8: 1, TensorProto.BOOL: 1, TensorProto.INT16: 2, TensorProto.UINT16: 2,
    TensorProto.INT32: 4, TensorProto.UINT32: 4, TensorProto.INT64: 8, TensorProto.UINT64: 8, TensorProto.FLOAT8E4M3FN: 1,
    TensorProto.FLOAT8E4M3FNUZ: 1, TensorProto.FLOAT8E5M2: 1, TensorProto.FLOAT8E5M2FNUZ: 1, _FLOAT8E8M0: 1,
}  # fmt: skip
_EXPONENT_BITS: dict[int, int] = {
    TensorProto.FLOAT: 8, TensorProto.COMPLEX64: 8, TensorProto.DOUBLE: 11, TensorProto.COMPLEX128: 11, TensorProto.FLOAT16: 5,
    TensorProto.BFLOAT16: 8,
}  # fmt: skip
_COMPLEX = (TensorProto.COMPLEX64, TensorProto.COMPLEX128)
_SIGNED = (TensorProto.INT8,)
MOST_DIMS = 64
"""More are read as bytes: their product could be a number without end."""


@dataclass(frozen=True)
class Form:
    """How the bytes of a tensor are read: `count` elements of `width` bits (2, 4, 8, 16, 32 or 64);
    `exponent_bits` 0 for integers.

    `shape` has `count` elements, or is (count,). `flip` is xored to a symbol, so that signed integers are
    in the order of their values.
    """

    count: int
    width: int
    exponent_bits: int
    shape: tuple[int, ...]
    flip: int = 0

    @property
    def size_bytes(self) -> int:
        return (self.count * self.width + 7) // 8


def as_bytes(size: int) -> Form:
    """Of data whose type says nothing."""
    return Form(size, 8, 0, (size,))


def form_of(data_type: int, dims: tuple[int, ...]) -> Form | None:
    """Of raw data of this type and shape; None without a fixed width, with a negative dimension or with
    more than MOST_DIMS of them.
    """
    if min(dims, default=0) < 0 or len(dims) > MOST_DIMS:
        return None
    count = prod(dims)
    if data_type in _NARROW:
        return Form(count, _NARROW[data_type], 0, dims)
    if data_type not in _BYTES:
        return None
    if data_type in _COMPLEX:
        return Form(2 * count, 4 * _BYTES[data_type], _EXPONENT_BITS[data_type], (*dims, 2))
    return Form(
        count,
        8 * _BYTES[data_type],
        _EXPONENT_BITS.get(data_type, 0),
        dims,
        128 if data_type in _SIGNED else 0,
    )


def fits(form: Form, content: np.ndarray) -> bool:
    """Whether the bytes have that form and nothing in the bits that fill up the last byte."""
    spare = -form.count * form.width % 8
    return content.size == form.size_bytes and (
        not spare or not content.size or not int(content[-1]) >> (8 - spare)
    )


def read(form: Form, content: np.ndarray) -> np.ndarray:
    """Elements of `content` (uint8): uint8, uint16, uint32 or uint64 [count]; a view where an element is
    whole bytes.
    """
    if form.width >= 8:
        return content.view(f"<u{form.width // 8}")
    per_byte = 8 // form.width
    split = np.empty((content.size, per_byte), np.uint8)
    for place in range(per_byte):
        split[:, place] = content >> (place * form.width) & ((1 << form.width) - 1)
    return split.reshape(-1)[: form.count]


def write(form: Form, elements: np.ndarray, out: np.ndarray, first: int = 0) -> None:
    """Writes elements from number `first` on into `out` (uint8, the whole tensor); narrow ones begin at a
    whole byte.
    """
    if form.width >= 8:
        out.view(f"<u{form.width // 8}")[first : first + elements.size] = elements
        return
    per_byte = 8 // form.width
    if first % per_byte:
        raise ModelError("is damaged: a part of a tensor begins inside a byte; copy it again")
    padded = np.zeros(-(-elements.size // per_byte) * per_byte, np.uint8)
    padded[: elements.size] = elements
    split = padded.reshape(-1, per_byte)
    packed = split[:, 0].copy()
    for place in range(1, per_byte):
        packed |= split[:, place] << np.uint8(place * form.width)
    out[first // per_byte : first // per_byte + packed.size] = packed
