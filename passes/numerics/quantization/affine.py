"""Symmetric INT8 quantization: level = round(value / scale), value = level * scale, zero-point 0. And the
scale of asymmetric UINT8.

The arithmetic is that of ONNX QuantizeLinear and DequantizeLinear: float32 division, rounding half to even,
saturation.
Source: Jacob et al., "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only
Inference", CVPR 2018, section 2.1, with the zero-point fixed at 0.
"""

import math
from collections.abc import Sequence

import numpy as np

LEVELS = 127
"""Largest level of a scale's own range. -128 is left to saturation, so that the range is symmetric."""

WIDE_BITS = 16
WIDE_LEVELS = 32767
"""Largest level of INT16."""

UNSIGNED_LEVELS = 255
"""Largest level of UINT8."""

SMALLEST_SCALE = np.float32(1e-8)
"""A channel of zeros gets this scale: TensorRT refuses a scale of zero."""

CHUNK = 1 << 20
"""Values that are in memory as float64 at a time."""

SLAB = 1 << 22
"""Values of a weight that are quantized at a time: what that takes is several times as large."""


def range_scale(low: float, high: float, bits: int = 8) -> np.float32:
    """Scale at which the wider side of low..high is level 127, or 32767 of 16 bits."""
    levels = WIDE_LEVELS if bits == WIDE_BITS else LEVELS
    return np.maximum(np.float32(max(abs(low), abs(high)) / levels), SMALLEST_SCALE)


def trained_range(scale: np.float32, low: float, high: float, bits: int = 8) -> tuple[float, float]:
    """The range low..high, as much wider or narrower as training has made `scale`, which was its scale."""
    trained = float(scale / range_scale(low, high, bits))
    return trained * low, trained * high


def channel_scale(weight: np.ndarray, axis: int, largest_level: int = LEVELS) -> np.ndarray:
    """Scale per channel, float32 [weight.shape[axis]]: the channel's largest magnitude is the largest level."""
    others = tuple(i for i in range(weight.ndim) if i != axis % weight.ndim)
    largest = np.maximum(weight.max(axis=others), -weight.min(axis=others)).astype(np.float32)
    return np.maximum(largest / np.float32(largest_level), SMALLEST_SCALE)


def unsigned_scale(low: float, high: float) -> tuple[np.float32, np.uint8]:
    """(scale, zero-point) at which low..high, widened to hold 0, are the levels 0 to 255; 0 is a level
    exactly.
    """
    low, high = min(low, 0.0), max(high, 0.0)
    scale = np.maximum(np.float32((high - low) / UNSIGNED_LEVELS), SMALLEST_SCALE)
    return scale, np.uint8(np.clip(np.rint(-low / scale), 0, UNSIGNED_LEVELS))


def asymmetric_scale(low: float, high: float) -> tuple[np.float32, np.int8]:
    """(scale, zero-point) at which low..high, widened to hold 0, are the levels -128 to 127; 0 is a level exactly."""
    scale, middle = unsigned_scale(low, high)
    return scale, np.int8(int(middle) - LEVELS - 1)


def quantize(
    values: np.ndarray,
    scale: np.ndarray | np.float32,
    axis: int | None = None,
    largest_level: int | None = None,
) -> np.ndarray:
    """INT8 levels of `values`, same shape. `scale` is one number, or [values.shape[axis]] with `axis`. With
    `largest_level` they are within its two signs.
    """
    low, high = (-LEVELS - 1, LEVELS) if largest_level is None else (-largest_level, largest_level)
    levels = np.asarray(values.astype(np.float32, copy=False) / _along(scale, axis, values.ndim))
    np.rint(levels, out=levels)
    return np.clip(levels, low, high, out=levels).astype(np.int8)


def dequantize(levels: np.ndarray, scale: np.ndarray | np.float32, axis: int | None = None) -> np.ndarray:
    """Float32 values of INT8 levels, same shape."""
    return np.asarray(np.multiply(levels, _along(scale, axis, levels.ndim), dtype=np.float32))


def signal_to_noise_db(reference: np.ndarray, approximation: np.ndarray) -> float:
    """10 log10 of the reference's energy over the error's energy, in dB; infinity if they are equal."""
    return decibels(*energies(reference, approximation))


def energies(reference: np.ndarray, approximation: np.ndarray) -> tuple[float, float]:
    """Sums of squares of the reference, and of the error."""
    wanted, found, signal, noise = reference.reshape(-1), approximation.reshape(-1), 0.0, 0.0
    for start in range(0, wanted.size, CHUNK):
        part = wanted[start : start + CHUNK].astype(np.float64)
        signal += float(np.square(part).sum())
        noise += float(np.square(part - found[start : start + CHUNK]).sum())
    return signal, noise


def decibels(signal: float, noise: float) -> float:
    """Of an energy over that of its error; infinity without one."""
    with np.errstate(divide="ignore"):
        return float(10 * np.log10(signal / noise)) if noise else float("inf")


def slabs(shape: Sequence[int], axis: int) -> list[tuple[slice, ...]]:
    """Places of parts of an array of at most SLAB values each, or of one step along `axis`, which they are cut along."""
    length = shape[axis]
    step = max(1, SLAB * length // max(1, math.prod(shape)))
    before = (slice(None),) * (axis % len(shape))
    return [(*before, slice(start, start + step)) for start in range(0, max(1, length), step)]


def _along(scale: np.ndarray | np.float32, axis: int | None, rank: int) -> np.ndarray | np.float32:
    if axis is None:
        return scale
    shape = [1] * rank
    shape[axis] = -1
    return np.reshape(scale, shape)
