"""Normalizations that no convolution in front takes in, by means, differences and products.

Those along channels (BatchNormalization, InstanceNormalization, GroupNormalization, LRN) also stand between the Transposes
of a spatial operator: then the channels are the last axis of what they read and write.
"""

from collections.abc import Sequence

import numpy as np

from onnx_lathe.runtime.targets.litert.dimensions import Dim, is_open
from onnx_lathe.runtime.targets.litert.emitter import FLOAT, Emitter
from onnx_lathe.runtime.targets.litert.network import Network
from onnx_lathe.runtime.targets.litert.node import Node, Unsupported
from onnx_lathe.runtime.targets.litert.operators.reduction import reduced
from onnx_lathe.runtime.targets.litert.registry import operator


@operator("BatchNormalization", spatial=True)
def batch_normalization(node: Node, net: Network) -> None:
    """x * factor + offset for each channel; of constants, both are computed here."""
    if node.integer("training_mode") or any(node.outputs[1:]):
        raise Unsupported("it is in training mode: export the model for inference")
    node.integer("spatial", 1)
    emit = Emitter(node, net)
    source, epsilon = emit.computed(0, {FLOAT}), node.number("epsilon", 1e-5)
    values = [net.value(name) for name in node.inputs[1:5]]
    if any(one is None for one in values):
        scale, bias, mean, variance = (_channels(emit, emit.read(place), source) for place in range(1, 5))
        deviation = emit.unary("SQRT", emit.add(variance, emit.number(epsilon)))
        factor = emit.div(scale, deviation)
        emit.leave(emit.add(emit.mul(emit.sub(source, mean), factor), bias))
        return
    gamma, beta, middle, spread = (np.asarray(one, np.float64) for one in values)
    slope = gamma / np.sqrt(spread + epsilon)
    emit.leave(_affine(emit, source, slope, beta - middle * slope))


def _affine(emit: Emitter, source: int, factor: np.ndarray, offset: np.ndarray) -> int:
    factors = emit.floats(_spread(emit, factor, source), "factor")
    offsets = emit.floats(_spread(emit, offset, source), "offset")
    return emit.add(emit.mul(source, factors), offsets)


def _spread(emit: Emitter, values: np.ndarray, source: int) -> np.ndarray:
    """A value for each channel, in a shape that broadcasts to the source's."""
    behind = 0 if emit.node.channels_last else max(emit.rank(source) - 2, 0)
    return values.astype(np.float32).reshape(-1, *(1,) * behind)


def _channels(emit: Emitter, place: int, source: int) -> int:
    """As `_spread`, of a tensor that is computed."""
    behind = 0 if emit.node.channels_last else max(emit.rank(source) - 2, 0)
    return emit.reshape(place, (*emit.dims(place), *((1, 1),) * behind))


def normalized(emit: Emitter, source: int, axes: Sequence[int], epsilon: float) -> tuple[int, int, int]:
    """((x - mean) / sqrt(variance + epsilon), mean, 1 / sqrt(variance + epsilon)) along axes."""
    mean = reduced(emit, "MEAN", source, list(axes))
    apart = emit.sub(source, mean)
    variance = reduced(emit, "MEAN", emit.mul(apart, apart), list(axes))
    inverse = emit.unary("RSQRT", emit.add(variance, emit.number(epsilon)))
    return emit.mul(apart, inverse), mean, inverse


@operator("InstanceNormalization", spatial=True)
def instance_normalization(node: Node, net: Network) -> None:
    emit = Emitter(node, net)
    source = emit.computed(0, {FLOAT})
    first = 1 if node.channels_last else 2
    axes = range(first, first + emit.rank(source) - 2)
    result, _, _ = normalized(emit, source, axes, node.number("epsilon", 1e-5))
    emit.leave(_scaled(emit, result, source))


def _scaled(emit: Emitter, result: int, source: int) -> int:
    """Times the second input plus the third, one value of each for a channel."""
    scale, bias = (_parameter(emit, place, source) for place in (1, 2))
    return emit.add(emit.mul(result, scale), bias)


def _parameter(emit: Emitter, position: int, source: int) -> int:
    values = emit.net.value(emit.node.inputs[position])
    if values is None:
        return _channels(emit, emit.read(position), source)
    return emit.floats(_spread(emit, values, source), emit.node.inputs[position])


@operator("GroupNormalization", spatial=True)
def group_normalization(node: Node, net: Network) -> None:
    """Before opset 21 a scale and a bias for each group, then for each channel."""
    node.integer("stash_type", 1)
    emit = Emitter(node, net)
    source, groups = emit.computed(0, {FLOAT}), node.integer("num_groups")
    dims = emit.dims(source)
    apart, axes = _in_groups(node, dims, groups)
    result, _, _ = normalized(emit, emit.reshape(source, apart), axes, node.number("epsilon", 1e-5))
    if node.opset < 21:
        for place in (1, 2):
            values = net.constant(node.inputs[place], "scale or bias")
            behind = 1 if node.channels_last else len(apart) - 2
            one = emit.floats(values.reshape(-1, *(1,) * behind), node.inputs[place])
            result = emit.mul(result, one) if place == 1 else emit.add(result, one)
        emit.leave(emit.reshape(result, dims))
        return
    emit.leave(_scaled(emit, emit.reshape(result, dims), source))


def _in_groups(node: Node, dims: tuple[Dim, ...], groups: int) -> tuple[tuple[Dim, ...], list[int]]:
    """(the dimensions with the channels as groups and what is in one, the axes to normalize along)."""
    channels = dims[-1] if node.channels_last else dims[1]
    if is_open(channels):
        raise Unsupported("its number of channels depends on the size of the input")
    each = (channels[0] // groups,) * 2
    count = (groups, groups)
    if node.channels_last:
        return (*dims[:-1], count, each), [*range(1, len(dims) - 1), len(dims)]
    return (dims[0], count, each, *dims[2:]), list(range(2, len(dims) + 1))


@operator("LayerNormalization", "RMSNormalization")
def layer_normalization(node: Node, net: Network) -> None:
    node.integer("stash_type", 1)
    emit = Emitter(node, net)
    source, epsilon = emit.computed(0, {FLOAT}), node.number("epsilon", 1e-5)
    rank = emit.rank(source)
    axes = range(node.integer("axis", -1) % rank, rank)
    if node.op == "RMSNormalization":
        square = reduced(emit, "MEAN", emit.mul(source, source), list(axes))
        result = emit.mul(source, emit.unary("RSQRT", emit.add(square, emit.number(epsilon))))
        emit.leave(emit.mul(result, emit.read(1)))
        return
    result, mean, inverse = normalized(emit, source, axes, epsilon)
    result = emit.mul(result, emit.read(1))
    emit.leave(emit.add(result, emit.read(2)) if node.given(2) else result)
    for position, place in ((1, mean), (2, inverse)):
        if position < len(node.outputs) and node.outputs[position]:
            emit.leave(place, position)


@operator("LRN", spatial=True)
def local_response(node: Node, net: Network) -> None:
    """LiteRT's alpha is that of each of the channels in the window, ONNX's of all of them."""
    size = node.integer("size")
    rank = net.rank(node.inputs[0])
    if size % 2 == 0:
        raise Unsupported(f"its size is {size}; LiteRT's window has as many channels on both sides")
    if rank != 4:
        raise Unsupported(f"it reads a tensor of {rank} dimensions; LiteRT's kernel has 4")
    fields = {
        "radius": size // 2,
        "bias": node.number("bias", 1.0),
        "alpha": node.number("alpha", 1e-4) / size,
        "beta": node.number("beta", 0.75),
    }
    code, options = "LOCAL_RESPONSE_NORMALIZATION", "LocalResponseNormalizationOptions"
    net.put_image(node, code, [net.image(node)], options, **fields)


@operator("LpNormalization")
def lp_normalization(node: Node, net: Network) -> None:
    """x / norm along an axis, 0 where the norm is."""
    emit = Emitter(node, net)
    source, order = emit.computed(0, {FLOAT}), node.integer("p", 2)
    axis = node.integer("axis", -1) % emit.rank(source)
    if order not in (1, 2):
        raise Unsupported(f"its p is {order}; Lathe writes 1 and 2")
    terms = emit.unary("ABS", source) if order == 1 else emit.mul(source, source)
    norm = emit.reduce("SUM", terms, [axis])
    norm = norm if order == 1 else emit.unary("SQRT", norm)
    empty = emit.pair("EQUAL", norm, emit.number(0.0))
    emit.leave(emit.div(source, emit.select(empty, emit.number(1.0), norm)))


@operator("MeanVarianceNormalization")
def mean_variance_normalization(node: Node, net: Network) -> None:
    """(x - mean) / (sqrt(mean(x^2) - mean^2) + 1e-9)."""
    emit = Emitter(node, net)
    source = emit.computed(0, {FLOAT})
    rank = emit.rank(source)
    axes = sorted(axis % rank for axis in node.integers("axes") or (0, 2, 3))
    mean = reduced(emit, "MEAN", source, axes)
    apart = emit.sub(source, mean)
    variance = reduced(emit, "MEAN", emit.mul(apart, apart), axes)
    emit.leave(emit.div(apart, emit.add(emit.unary("SQRT", variance), emit.number(1e-9))))
