"""Weights in the form that the model has them in, as Core ML's constant expressions, which its compiler decodes.

    Gather(codebook, indices)      constexpr_lut_to_dense, indices of 1 to 8 bits
    zeros                          constexpr_sparse_to_dense, a bit for each value and those that are not 0
    a codebook with many zeros     constexpr_lut_to_sparse, then sparse_to_dense (iOS 18)
    DequantizeLinear(INT8)         constexpr_affine_dequantize; from iOS 18 on blockwise_shift_scale, INT4 and blocks too
    anything else                  const

The smallest form that holds the same values is taken. Source: coremltools, converters/mil/mil/ops/defs/iOS16
/constexpr_ops.py and iOS18/compression.py.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from math import gcd
from typing import Any, NamedTuple, Protocol

import numpy as np
import onnx

from onnx_lathe.runtime.targets.coreml.form import Form
from onnx_lathe.runtime.targets.coreml.sub_byte import packed, sub_byte

LARGEST_TABLE = 256
BITS = {False: (1, 2, 4, 6, 8), True: (1, 2, 3, 4, 6, 8)}
"""Widths of indices, before iOS 18 and since."""
WORTH = 0.75
"""Zeros that nobody asked for are left out where that makes the weight so much smaller: leaving them out costs a pass
over it when the model is loaded.
"""
Plan = tuple[str, dict[str, Any]]
Sized = tuple[float, Plan]
"""Bytes that a form takes, and the form."""
NONE: Sized = (float("inf"), ("", {}))
DECODED = (
    "constexpr_affine_dequantize",
    "constexpr_blockwise_shift_scale",
    "constexpr_sparse_blockwise_shift_scale",
)


class Known(Protocol):
    """What is known of a model: the node that writes each tensor, and values of constants."""

    nodes: Mapping[str, onnx.NodeProto]

    def value(self, tensor: str) -> np.ndarray | None: ...


class Kept(NamedTuple):
    """A constant of the program. `name`: its variable's; `kind`: the operation that gives `values`."""

    name: str
    kind: str
    values: np.ndarray


@dataclass(frozen=True)
class Stored:
    """`values`: float32, as ONNX Runtime computes them. `codes`: integers of the same shape, which point into the
    `table`, or are decoded by (codes - zeros) * scales; `scales` and `zeros` have as many dimensions, of a size that
    divides the weight's. `bits`: of a code, as the model stores it.
    """

    values: np.ndarray
    codes: np.ndarray | None = None
    table: np.ndarray | None = None
    scales: np.ndarray | None = None
    zeros: np.ndarray | None = None
    bits: int = 32

    def moved(self, move: Callable[[np.ndarray], np.ndarray]) -> "Stored":
        """With `move` done to all values: one that changes places, or takes some of them."""
        values = np.ascontiguousarray(move(self.values))
        if self.codes is None:
            return replace(self, values=values)
        codes = np.ascontiguousarray(move(self.codes))
        if self.scales is None:
            return replace(self, values=values, codes=codes)
        scales, zeros = (
            None if one is None else _contracted(move(_spread(one, self.codes.shape)))
            for one in (self.scales, self.zeros)
        )
        return replace(self, values=values, codes=codes, scales=scales, zeros=zeros)


def stored_weight(net: Known, tensor: str, values: np.ndarray) -> Stored:
    """The constant tensor with these values, as the model stores it."""
    made = net.nodes.get(tensor)
    floats = np.asarray(values, np.float32) if values.dtype.kind == "f" else values
    found = None
    if made is not None and not made.domain and values.dtype.kind == "f" and values.ndim:
        found = {"Gather": _codebook, "DequantizeLinear": _quantized}.get(made.op_type, _nothing)(net, made)
    return replace(found, values=floats) if found is not None else Stored(floats)


def _nothing(net: Known, made: onnx.NodeProto) -> Stored | None:
    return None


def _codebook(net: Known, made: onnx.NodeProto) -> Stored | None:
    behind = net.nodes.get(made.input[1])
    indices = net.value(behind.input[0] if behind is not None and behind.op_type == "Cast" else made.input[1])
    table = net.value(made.input[0])
    if table is None or indices is None or table.ndim != 1 or not 1 <= table.size <= LARGEST_TABLE:
        return None
    whole = indices.astype(np.int64)
    codes = np.where(whole < 0, whole + table.size, whole).astype(np.uint8)
    return Stored(codes, codes, table.astype(np.float32))


def _quantized(net: Known, made: onnx.NodeProto) -> Stored | None:
    codes, scale = net.value(made.input[0]), net.value(made.input[1])
    given = len(made.input) > 2 and made.input[2]
    zero = net.value(made.input[2]) if given else None
    if codes is None or scale is None or (given and zero is None):
        return None
    bits = {"int4": 4, "uint4": 4, "int8": 8, "uint8": 8}.get(codes.dtype.name, 0)
    if not bits:
        return None
    attributes = {item.name: item.i for item in made.attribute}
    axis = attributes.get("axis", 1) % max(codes.ndim, 1)
    signed = not codes.dtype.name.startswith("u")
    plain = np.int8 if signed else np.uint8
    zeros = None if zero is None or not np.any(zero) else _aligned(zero.astype(plain), codes.ndim, axis)
    scales = _aligned(scale.astype(np.float32), codes.ndim, axis)
    if any(
        size % one.shape[place]
        for one in (scales, zeros)
        if one is not None
        for place, size in enumerate(codes.shape)
    ):
        return None  # the last block is shorter
    return Stored(codes, codes.astype(plain), None, scales, zeros, bits)


def _aligned(values: np.ndarray, rank: int, axis: int) -> np.ndarray:
    """With the weight's number of dimensions."""
    if values.ndim == rank and rank != 1:
        return values
    return values.reshape([-1 if place == axis else 1 for place in range(rank)])


def _spread(values: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Of the weight's shape."""
    for axis, size in enumerate(shape):
        values = np.repeat(values, size // values.shape[axis], axis)
    return values


def _contracted(values: np.ndarray) -> np.ndarray:
    """One value for each block of equal ones."""
    for axis, size in enumerate(values.shape):
        lines = np.moveaxis(values, axis, 0).reshape(size, -1)
        changes = np.flatnonzero(np.any(lines[1:] != lines[:-1], axis=1)) + 1
        values = np.take(values, np.arange(0, size, gcd(size, *changes.tolist())), axis)
    return values


def best(weight: Stored, values: np.ndarray, form: Form, sparse: bool) -> Plan | None:
    """The operation that holds the weight in the fewest bytes, with its inputs; None for a plain constant. `values`: in
    the program's precision; `sparse`: the model says that zeros are meant.
    """
    if values.dtype.kind != "f" or not values.ndim or not values.size:
        return None
    own, without_zeros = _plans(weight, values, form)
    worth = 1.0 if sparse else WORTH
    found: list[tuple[float, Plan | None]] = [(values.nbytes, None), *own]
    found += [(size / worth, plan) for size, plan in without_zeros]
    return min(found, key=lambda one: one[0])[1]


def _plans(weight: Stored, values: np.ndarray, form: Form) -> tuple[list[Sized], list[Sized]]:
    """(as the model has it, with zeros left out)."""
    own: list[Sized] = []
    without_zeros = [_zeros_left_out(values, form)]
    if weight.codes is not None and weight.table is not None:
        bits = next(one for one in BITS[form.blocks] if 2**one >= weight.table.size)
        own.append(_lookup(weight.codes, weight.table, bits, form))
        if form.blocks:
            without_zeros.append(_sparse_lookup(weight.codes, weight.table, values, bits, form))
    elif weight.codes is not None and weight.scales is not None and form.blocks:
        own.append(_blocks(weight, weight.codes, weight.scales.astype(form.dtype)))
        without_zeros.append(_sparse_blocks(weight, weight.codes, weight.scales.astype(form.dtype)))
    elif weight.codes is not None and weight.scales is not None:
        own.append(_channels(weight, weight.codes, weight.scales.astype(form.dtype)))
    return own, without_zeros


def _lookup(codes: np.ndarray, table: np.ndarray, bits: int, form: Form) -> Sized:
    size = codes.size * bits / 8 + 2**bits * form.dtype.itemsize
    lut = _padded(table, bits, form)
    if form.blocks:
        indices = codes.astype(sub_byte(bits))
        return size, (
            "constexpr_lut_to_dense",
            {"indices": indices, "lut": lut.reshape(*[1] * codes.ndim, -1, 1)},
        )
    inputs = {"indices": packed(codes, bits), "lut": lut, "shape": np.array(codes.shape, np.uint32)}
    return size, ("constexpr_lut_to_dense", inputs)


def _sparse_lookup(codes: np.ndarray, table: np.ndarray, values: np.ndarray, bits: int, form: Form) -> Sized:
    mask = _bits_of(values) != 0
    inner = codes[mask]
    size = codes.size / 8 + inner.size * bits / 8 + 2**bits * form.dtype.itemsize
    inputs = {
        "indices_mask": mask.astype(sub_byte(1)),
        "indices_nonzero_data": inner.astype(sub_byte(bits)),
        "lut": _padded(table, bits, form).reshape(*[1] * codes.ndim, -1, 1),
    }
    return (size, ("constexpr_lut_to_sparse", inputs)) if inner.size else NONE


def _padded(table: np.ndarray, bits: int, form: Form) -> np.ndarray:
    return np.pad(table, (0, 2**bits - table.size)).astype(form.dtype)


def _channels(weight: Stored, codes: np.ndarray, scales: np.ndarray) -> Sized:
    """One scale, or one for each index along an axis; 4 bits take a byte."""
    axes = [axis for axis, size in enumerate(scales.shape) if size > 1]
    if len(axes) > 1 or any(scales.shape[axis] != codes.shape[axis] for axis in axes):
        return NONE
    flat = scales.reshape(-1) if axes else scales.reshape(())
    zeros = np.zeros((), codes.dtype) if weight.zeros is None else weight.zeros
    inputs = {
        "quantized_data": codes,
        "scale": flat,
        "zero_point": np.broadcast_to(zeros, scales.shape).reshape(flat.shape).copy(),
        "axis": np.int32(axes[0] if axes else 0),
    }
    return codes.size + 2 * scales.nbytes, ("constexpr_affine_dequantize", inputs)


def _blocks(weight: Stored, codes: np.ndarray, scales: np.ndarray) -> Sized:
    kind = _integer_type(weight, codes)
    inputs = {"data": codes.astype(kind), "scale": scales}
    if weight.zeros is not None:
        inputs["offset"] = np.broadcast_to(weight.zeros, scales.shape).astype(kind)
    return codes.size * weight.bits / 8 + 2 * scales.nbytes, ("constexpr_blockwise_shift_scale", inputs)


def _sparse_blocks(weight: Stored, codes: np.ndarray, scales: np.ndarray) -> Sized:
    """Where a code of 0 is a value of 0."""
    mask = codes != 0
    if weight.zeros is not None or not mask.any():
        return NONE
    inner = codes[mask].astype(_integer_type(weight, codes))
    inputs = {"data_mask": mask.astype(sub_byte(1)), "nonzero_data": inner, "scale": scales}
    size = codes.size / 8 + inner.size * weight.bits / 8 + 2 * scales.nbytes
    return size, ("constexpr_sparse_blockwise_shift_scale", inputs)


def _integer_type(weight: Stored, codes: np.ndarray) -> Any:
    return codes.dtype if weight.bits == 8 else sub_byte(weight.bits, signed=codes.dtype == np.int8)


def _zeros_left_out(values: np.ndarray, form: Form) -> Sized:
    mask = _bits_of(values) != 0
    data = values[mask]
    if not data.size:
        return NONE
    if form.blocks:
        inputs = {"nonzero_data": data, "mask": mask.astype(sub_byte(1))}
    else:
        shape = np.array(values.shape, np.uint32)
        inputs = {"nonzero_data": data, "mask": packed(mask.astype(np.uint8), 1), "shape": shape}
    return values.size / 8 + data.nbytes, ("constexpr_sparse_to_dense", inputs)


def _bits_of(values: np.ndarray) -> np.ndarray:
    """As unsigned integers: -0.0 is none of the zeros that may be left out."""
    return np.ascontiguousarray(values).view({2: np.uint16, 4: np.uint32}[values.dtype.itemsize])


def expected(weight: Stored, values: np.ndarray, kind: str) -> np.ndarray:
    """What the operation must give, bit for bit: the model's values; of integers in float16, the product there."""
    if weight.scales is None or weight.codes is None or kind not in DECODED or values.dtype == np.float32:
        return values
    zeros = 0 if weight.zeros is None else _spread(weight.zeros, weight.codes.shape).astype(np.int32)
    steps = (weight.codes.astype(np.int32) - zeros).astype(values.dtype)
    return steps * _spread(weight.scales, weight.codes.shape).astype(values.dtype)
