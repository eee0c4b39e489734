"""Integers of less than a byte, as coremltools takes them."""

from functools import cache
from typing import Any

import numpy as np

from onnx_lathe.runtime.targets.coreml.package import library


@cache
def sub_byte(bits: int, signed: bool = False) -> Any:
    """The NumPy type that coremltools stores with so many bits a value."""
    library()
    from coremltools.converters.mil.mil import types

    return types.nptype_from_builtin(types.string_to_builtin(f"{'int' if signed else 'uint'}{bits}"))


def packed(codes: np.ndarray, bits: int) -> np.ndarray:
    """The codes, uint8, in row-major order, the lowest bits first, without gaps: as iOS 16's operations read them."""
    single = np.unpackbits(codes.reshape(-1, 1), axis=1, count=bits, bitorder="little")
    return np.packbits(single, bitorder="little")
