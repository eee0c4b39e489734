"""Core ML's programs evaluated operation by operation in NumPy, by the documentation of coremltools (mil/ops/defs)."""

import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from tests.support import mil_layers

Arrays = Mapping[str, np.ndarray]
Evaluate = Callable[..., Any]
TYPES = {"fp32": np.float32, "fp16": np.float16, "int32": np.int32, "bool": np.bool_}


def evaluate(program: Any, feeds: Arrays) -> dict[str, np.ndarray]:
    """Outputs of the program's function `main`, by name."""
    function = program.functions["main"]
    values: dict[str, Any] = dict(feeds)
    for op in function.operations:
        if op.op_type == "const":
            values[op.outputs[0].name] = op.outputs[0].val
        elif op.op_type.startswith("constexpr_"):
            found = op.materialized_val_inference()
            results = found if isinstance(found, tuple) else (found,)
            values |= {one.name: value for one, value in zip(op.outputs, results, strict=True)}
        else:
            inputs = {key: _given(one, values) for key, one in op.inputs.items() if one is not None}
            with np.errstate(all="ignore"):
                found = OPERATIONS[op.op_type](**inputs)
            results = found if isinstance(found, tuple | list) else (found,)
            for one, value in zip(op.outputs, results, strict=True):
                _check(op, one, np.asarray(value))
                values[one.name] = np.asarray(value)
    return {one.name: values[one.name] for one in function.outputs}


def _given(one: Any, values: Mapping[str, Any]) -> Any:
    if isinstance(one, tuple | list):
        return [_given(each, values) for each in one]
    return values.get(one.name, one.val)


def _check(op: Any, one: Any, value: np.ndarray) -> None:
    """What the evaluation gives is of the type and shape that coremltools infers."""
    from coremltools.converters.mil.mil import types

    assert value.dtype == types.nptype_from_builtin(one.dtype), (op.op_type, op.name, value.dtype)
    assert value.ndim == one.rank, (op.op_type, op.name, value.shape, one.shape)
    known = [size for size in one.shape if isinstance(size, int | np.integer)]
    if len(known) == one.rank:
        assert tuple(known) == value.shape, (op.op_type, op.name, value.shape, one.shape)


def unary(function: Callable[[np.ndarray], Any]) -> Evaluate:
    return lambda x: np.asarray(function(x), np.asarray(x).dtype)


def binary(function: Callable[[Any, Any], Any]) -> Evaluate:
    return lambda x, y: function(np.asarray(x), np.asarray(y))


def reduction(function: Callable[..., Any]) -> Evaluate:
    def reduce(x: np.ndarray, axes: Any = None, keep_dims: Any = False) -> np.ndarray:
        over = None if axes is None else tuple(int(axis) for axis in axes)
        return np.asarray(function(x.astype(np.float64), axis=over, keepdims=bool(keep_dims)), x.dtype)

    return reduce


def argument(function: Callable[..., Any]) -> Evaluate:
    def reduce(x: np.ndarray, axis: Any = -1, keep_dims: Any = False, **other: Any) -> np.ndarray:
        return np.asarray(function(x, axis=int(axis), keepdims=bool(keep_dims)), np.int32)

    return reduce


def erf(x: np.ndarray) -> np.ndarray:
    return np.vectorize(math.erf, otypes=[np.float64])(x) if x.size else x


def gelu(x: np.ndarray, mode: str) -> np.ndarray:
    wide = x.astype(np.float64)
    if mode == "EXACT":
        return (0.5 * wide * (1 + erf(wide / math.sqrt(2)))).astype(x.dtype)
    inner = math.sqrt(2 / math.pi) * (wide + 0.044715 * wide**3)
    return (0.5 * wide * (1 + np.tanh(inner))).astype(x.dtype)


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x.astype(np.float64)))


def softplus(x: np.ndarray) -> np.ndarray:
    return np.logaddexp(0, x.astype(np.float64))


def prelu(x: np.ndarray, alpha: np.ndarray) -> np.ndarray:
    slope = alpha.reshape(-1, *[1] * (x.ndim - 2))
    return np.where(x >= 0, x, slope * x).astype(x.dtype)


def softmax(x: np.ndarray, axis: Any = -1) -> np.ndarray:
    powers = np.exp((x - x.max(axis=int(axis), keepdims=True)).astype(np.float64))
    return (powers / powers.sum(axis=int(axis), keepdims=True)).astype(x.dtype)


def log_sum_exp(x: np.ndarray, axis: Any, keepdims: bool) -> np.ndarray:
    largest = x.max(axis=axis, keepdims=True)
    found = np.log(np.exp(x - largest).sum(axis=axis, keepdims=True)) + largest
    return found if keepdims else found.squeeze(axis)


def quantize(
    input: np.ndarray, scale: Any, output_dtype: str, zero_point: Any = None, axis: Any = None
) -> np.ndarray:
    shape = [1] * input.ndim
    if axis is not None:
        shape[int(axis)] = -1
    steps = np.rint(input / np.reshape(scale, shape)) + (
        0 if zero_point is None else np.reshape(zero_point, shape).astype(np.int32)
    )
    limits = np.iinfo(output_dtype)
    return np.clip(steps, limits.min, limits.max).astype(output_dtype)


def dequantize(input: np.ndarray, scale: Any, zero_point: Any = None, axis: Any = None) -> np.ndarray:
    shape = [1] * input.ndim
    if axis is not None:
        shape[int(axis)] = -1
    zero = 0 if zero_point is None else np.reshape(zero_point, shape).astype(np.int32)
    return (input.astype(np.int32) - zero).astype(np.asarray(scale).dtype) * np.reshape(scale, shape)


def pad(x: np.ndarray, pad: Any, mode: str = "constant", constant_val: Any = 0.0) -> np.ndarray:
    pairs = np.zeros((x.ndim, 2), np.int64)
    given = np.reshape(pad, (-1, 2))
    pairs[x.ndim - len(given) :] = given
    if mode == "constant":
        return np.pad(x, pairs, constant_values=constant_val)
    return np.pad(x, pairs, mode={"reflect": "reflect", "replicate": "edge"}[mode])


def slice_by_index(
    x: np.ndarray,
    begin: Any,
    end: Any,
    stride: Any = None,
    begin_mask: Any = None,
    end_mask: Any = None,
    squeeze_mask: Any = None,
) -> np.ndarray:
    none = [False] * x.ndim
    stride = [1] * x.ndim if stride is None else stride
    begins, ends, squeezed = (none if one is None else one for one in (begin_mask, end_mask, squeeze_mask))
    index: list[Any] = []
    for axis in range(x.ndim):
        if squeezed[axis]:
            index.append(int(begin[axis]))
        else:
            start = None if begins[axis] else int(begin[axis])
            index.append(slice(start, None if ends[axis] else int(end[axis]), int(stride[axis])))
    return x[tuple(index)]


def slice_by_size(x: np.ndarray, begin: Any, size: Any) -> np.ndarray:
    return x[tuple(slice(int(b), int(b) + int(s)) for b, s in zip(begin, size, strict=True))]


def split(x: np.ndarray, axis: Any, num_splits: Any = None, split_sizes: Any = None) -> list[np.ndarray]:
    if split_sizes is None:
        return np.split(x, int(num_splits), axis=int(axis))
    return np.split(x, np.cumsum(split_sizes)[:-1].tolist(), axis=int(axis))


def reshape(x: np.ndarray, shape: Any) -> np.ndarray:
    return x.reshape([x.shape[axis] if size == 0 else int(size) for axis, size in enumerate(shape)])


def squeeze(x: np.ndarray, axes: Any = None) -> np.ndarray:
    return np.squeeze(x, None if axes is None else tuple(int(axis) for axis in axes))


def expand_dims(x: np.ndarray, axes: Any) -> np.ndarray:
    return np.expand_dims(x, tuple(int(axis) for axis in axes))


def depth_to_space(x: np.ndarray, block_size: Any) -> np.ndarray:
    n, c, h, w = x.shape
    b = int(block_size)
    return x.reshape(n, b, b, c // b**2, h, w).transpose(0, 3, 4, 1, 5, 2).reshape(n, c // b**2, h * b, w * b)


def space_to_depth(x: np.ndarray, block_size: Any) -> np.ndarray:
    n, c, h, w = x.shape
    b = int(block_size)
    return (
        x.reshape(n, c, h // b, b, w // b, b)
        .transpose(0, 3, 5, 1, 2, 4)
        .reshape(n, c * b * b, h // b, w // b)
    )


def pixel_shuffle(x: np.ndarray, upscale_factor: Any) -> np.ndarray:
    n, c, h, w = x.shape
    f = int(upscale_factor)
    return x.reshape(n, c // f**2, f, f, h, w).transpose(0, 1, 4, 2, 5, 3).reshape(n, c // f**2, h * f, w * f)


def resize(way: str, x: np.ndarray, height: int, width: int) -> np.ndarray:
    return stretched(way, stretched(way, x.astype(np.float64), -2, height), -1, width).astype(x.dtype)


def stretched(way: str, x: np.ndarray, axis: int, after: int) -> np.ndarray:
    """Between the two values on both sides of each place, as the docstring of `resize_bilinear` has the places."""
    before, found = x.shape[axis], []
    for place in range(after):
        if way == "UNALIGN_CORNERS":
            spot = place * before / after + 0.5 * before / after - 0.5
        elif after == 1:
            spot = 0.0
        elif way == "STRICT_ALIGN_CORNERS":
            spot = place * (before - 1) / (after - 1)
        else:
            assert way == "DEFAULT", way
            spot = place * (before - before / after) / (after - 1)
        spot = min(before - 1, max(0.0, spot))
        low, high = math.floor(spot), min(math.floor(spot) + 1, before - 1)
        share = spot - low
        found.append((1 - share) * x.take(low, axis) + share * x.take(high, axis))
    return np.stack(found, axis)


def resize_bilinear(
    x: np.ndarray, target_size_height: Any, target_size_width: Any, sampling_mode: str
) -> np.ndarray:
    return resize(sampling_mode, x, int(target_size_height), int(target_size_width))


def upsample_nearest(x: np.ndarray, scale_factor_height: Any, scale_factor_width: Any) -> np.ndarray:
    return np.repeat(np.repeat(x, int(scale_factor_height), -2), int(scale_factor_width), -1)


def upsample_bilinear(
    x: np.ndarray, scale_factor_height: Any, scale_factor_width: Any, align_corners: Any, **other: Any
) -> np.ndarray:
    way = "STRICT_ALIGN_CORNERS" if align_corners else "UNALIGN_CORNERS"
    height, width = (
        int(size * factor)
        for size, factor in zip(x.shape[-2:], (scale_factor_height, scale_factor_width), strict=True)
    )
    return resize(way, x, height, width)


def places(indices: Any) -> np.ndarray:
    """From iOS 17 on negative ones are out of bounds, and what is computed then is undefined."""
    found = np.asarray(indices)
    assert not np.any(found < 0), "negative places"
    return found


def gather(x: np.ndarray, indices: Any, axis: Any = 0, **other: Any) -> np.ndarray:
    return np.take(x, places(indices), axis=int(axis))


def gather_along_axis(x: np.ndarray, indices: Any, axis: Any = 0, **other: Any) -> np.ndarray:
    return np.take_along_axis(x, places(indices), int(axis))


def gather_nd(x: np.ndarray, indices: np.ndarray, **other: Any) -> np.ndarray:
    return x[tuple(np.moveaxis(places(indices), -1, 0))]


def top_k(
    x: np.ndarray, k: Any, axis: Any = -1, ascending: Any = False, **other: Any
) -> tuple[np.ndarray, np.ndarray]:
    order = np.argsort(x if ascending else -x, axis=int(axis), kind="stable").take(
        np.arange(int(k)), axis=int(axis)
    )
    return np.take_along_axis(x, order, int(axis)), order.astype(np.int32)


def cumsum(x: np.ndarray, axis: Any = 0, exclusive: Any = False, reverse: Any = False) -> np.ndarray:
    axis = int(axis)
    turned = np.flip(x, axis) if reverse else x
    found = np.cumsum(turned, axis, dtype=x.dtype)
    found = found - turned if exclusive else found
    return np.flip(found, axis) if reverse else found


def matmul(x: np.ndarray, y: np.ndarray, transpose_x: Any = False, transpose_y: Any = False) -> np.ndarray:
    return np.matmul(
        np.swapaxes(x, -1, -2) if transpose_x else x, np.swapaxes(y, -1, -2) if transpose_y else y
    )


def linear(x: np.ndarray, weight: np.ndarray, bias: Any = 0) -> np.ndarray:
    return np.asarray(np.matmul(x, weight.T) + np.asarray(bias, x.dtype), x.dtype)


def fill(shape: Any, value: Any = 0.0) -> np.ndarray:
    return np.full([int(size) for size in shape], value)


def clip(x: np.ndarray, alpha: Any, beta: Any) -> np.ndarray:
    return np.clip(x, alpha, beta).astype(x.dtype)


PLAIN = {
    "identity": lambda x: x,
    "relu": lambda x: np.maximum(x, 0),
    "relu6": lambda x: np.clip(x, 0, 6),
    "sigmoid": sigmoid,
    "tanh": np.tanh,
    "silu": lambda x: x * sigmoid(x),
    "softplus": softplus,
    "softsign": lambda x: x / (1 + np.abs(x)),
    "square": np.square,
    "erf": lambda x: erf(x.astype(np.float64)),
    "round": np.rint,
    "log": lambda x: np.log(x.astype(np.float64)),
    "acos": np.arccos,
    "asin": np.arcsin,
    "atan": np.arctan,
    "atanh": np.arctanh,
} | {
    name: getattr(np, name)
    for name in ["abs", "ceil", "cos", "cosh", "exp", "floor", "sign", "sin", "sinh", "sqrt", "tan"]
}
PAIRS = {
    "add": np.add,
    "sub": np.subtract,
    "mul": np.multiply,
    "real_div": np.divide,
    "floor_div": np.floor_divide,
    "pow": np.power,
    "maximum": np.maximum,
    "minimum": np.minimum,
    "equal": np.equal,
    "not_equal": np.not_equal,
    "greater": np.greater,
    "greater_equal": np.greater_equal,
    "less": np.less,
    "less_equal": np.less_equal,
    "logical_and": np.logical_and,
    "logical_or": np.logical_or,
    "logical_xor": np.logical_xor,
}
REDUCTIONS = {
    "mean": np.mean,
    "sum": np.sum,
    "max": np.max,
    "min": np.min,
    "prod": np.prod,
    "l1_norm": lambda x, **how: np.sum(np.abs(x), **how),
    "l2_norm": lambda x, **how: np.sqrt(np.sum(np.square(x), **how)),
    "log_sum": lambda x, **how: np.log(np.sum(x, **how)),
    "log_sum_exp": log_sum_exp,
    "sum_square": lambda x, **how: np.sum(np.square(x), **how),
}
OPERATIONS: dict[str, Evaluate] = {
    **{name: unary(function) for name, function in PLAIN.items()},
    "log": lambda x, epsilon=0: unary(PLAIN["log"])(x),
    **{name: binary(function) for name, function in PAIRS.items()},
    **{f"reduce_{name}": reduction(function) for name, function in REDUCTIONS.items()},
    "reduce_argmax": argument(np.argmax),
    "reduce_argmin": argument(np.argmin),
    "logical_not": lambda x: np.logical_not(x),
    "leaky_relu": lambda x, alpha: np.where(x >= 0, x, alpha * x).astype(x.dtype),
    "elu": lambda x, alpha: np.where(x >= 0, x, alpha * np.expm1(x)).astype(x.dtype),
    "sigmoid_hard": lambda x, alpha, beta: np.clip(alpha * x + beta, 0, 1).astype(x.dtype),
    "cast": lambda x, dtype: np.asarray(x).astype(TYPES[dtype]),
    "select": lambda cond, a, b: np.where(cond, a, b),
    "transpose": lambda x, perm: np.transpose(x, perm),
    "concat": lambda values, axis, **other: np.concatenate(values, axis=int(axis)),
    "tile": lambda x, reps: np.tile(x, reps),
    "reverse": lambda x, axes=None: np.flip(x, None if axes is None else tuple(axes)),
    "shape": lambda x: np.array(x.shape, np.int32),
    "upsample_nearest_neighbor": upsample_nearest,
    "topk": top_k,
    **{
        one.__name__: one
        for one in (
            clip, cumsum, depth_to_space, dequantize, expand_dims, fill, gather, gather_along_axis, gather_nd, gelu, linear, matmul, pad,
            pixel_shuffle, prelu, quantize, reshape, resize_bilinear, slice_by_index, slice_by_size, softmax,
            space_to_depth, split, squeeze, upsample_bilinear,
        )
    },
    **mil_layers.OPERATIONS,
}  # fmt: skip
