"""Floats of few mantissa bits: the same exponent, fewer digits, so that they pack in fewer bytes."""

import numpy as np

MANTISSA_BITS = 23


def mantissa_bits(values: np.ndarray) -> int:
    """How many explicit bits of mantissa float32 values need, 0 (powers of two) to 23."""
    raw = np.ascontiguousarray(values, np.float32).view(np.uint32) & np.uint32((1 << MANTISSA_BITS) - 1)
    used = int(np.bitwise_or.reduce(raw, axis=None))
    return MANTISSA_BITS + 1 - (used & -used).bit_length() if used else 0


def round_mantissa(values: np.ndarray, bits: int | None) -> np.ndarray:
    """The nearest float32 values (finite) with so many explicit bits of mantissa, ties to even; 7 are
    bfloat16, None leaves all 23.

    Signs and zeros stay: what would round to zero becomes the smallest value that there is, what would
    overflow is cut off.
    """
    if bits is None or bits >= MANTISSA_BITS:
        return values
    dropped = MANTISSA_BITS - bits
    raw = np.ascontiguousarray(values, np.float32).view(np.uint32)
    magnitude, sign = raw & np.uint32(0x7FFFFFFF), raw & np.uint32(0x80000000)
    unit = np.uint32(1 << dropped)
    even = (magnitude >> np.uint32(dropped)) & np.uint32(1)
    rounded = (magnitude + (unit >> np.uint32(1)) - np.uint32(1) + even) & ~(unit - np.uint32(1))
    rounded = np.where(rounded >= 0x7F800000, magnitude & ~(unit - np.uint32(1)), rounded)
    rounded = np.where((rounded == 0) & (magnitude > 0), unit, rounded)
    return (rounded | sign).astype(np.uint32).view(np.float32).reshape(values.shape)
