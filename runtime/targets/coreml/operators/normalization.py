"""Normalizations: MIL's operation where it has the same, else its arithmetic."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from onnx_lathe.runtime.targets.core.node import Node, Unsupported
from onnx_lathe.runtime.targets.coreml.dimensions import target
from onnx_lathe.runtime.targets.coreml.network import Network
from onnx_lathe.runtime.targets.coreml.operators.elementwise import operand
from onnx_lathe.runtime.targets.coreml.registry import operator


@operator("BatchNormalization")
def batch_normalization(node: Node, net: Network) -> None:
    if node.integer("training_mode") or any(node.outputs[1:]):
        raise Unsupported("it is in training mode")
    source, rank = net.variable(node.inputs[0]), net.rank(node.inputs[0])
    epsilon = node.number("epsilon", 1e-5)
    node.integer("spatial", 1)
    gamma, beta, mean, variance = (
        net.constant(node.inputs[place], what).astype(np.float32).reshape(-1)
        for place, what in enumerate(("scale", "bias", "mean", "variance"), start=1)
    )
    if 3 <= rank <= 5:
        stored = {
            name: net.stored(node.inputs[place], values)
            for place, (name, values) in enumerate(
                (("gamma", gamma), ("beta", beta), ("mean", mean), ("variance", variance)), start=1
            )
        }
        net.put(node, "batch_norm", x=source, epsilon=net.epsilon(epsilon), **stored)
        return
    factor = gamma / np.sqrt(variance + np.float32(epsilon))
    scaled = net.op("mul", f"{node.name}_scaled", x=source, y=net.stored(f"{node.name}_factor", factor))
    net.put(node, "add", x=scaled, y=net.stored(f"{node.name}_term", beta - mean * factor))


@operator("InstanceNormalization")
def instance_normalization(node: Node, net: Network) -> None:
    source, rank = net.variable(node.inputs[0]), net.rank(node.inputs[0])
    scale, bias = (net.constant(node.inputs[place], "scale or bias").reshape(-1) for place in (1, 2))
    epsilon = node.number("epsilon", 1e-5)
    if rank in (3, 4):
        stored = {
            name: net.stored(node.inputs[place], values)
            for name, place, values in (("gamma", 1, scale), ("beta", 2, bias))
        }
        net.put(node, "instance_norm", x=source, epsilon=net.epsilon(epsilon), **stored)
        return
    normal = _normal(node, net, source, list(range(2, rank)), epsilon)
    _affine(node, net, normal, (1, -1, *[1] * (rank - 2)))


@operator("GroupNormalization")
def group_normalization(node: Node, net: Network) -> None:
    """[N, groups, rest], normalized over the rest, and back. Of opset 21; that of 18 has a scale for each group."""
    tensor, pairs = node.inputs[0], net.pairs(node.inputs[0])
    groups, channels = node.integer("num_groups"), net.sizes(node.inputs[0])[1]
    node.integer("stash_type")
    scale = net.constant(node.inputs[1], "scale")
    if channels is None or scale.size != channels:
        raise Unsupported(f"it has {scale.size} scales, which are not one for each channel")
    source = net.variable(tensor)
    rest = tuple(int(np.prod([pair[end] for pair in pairs[1:]])) // groups for end in (0, 1))
    rows = [pairs[0], (groups, groups), (rest[0], rest[1])]
    flat = net.reshaped(source, f"{node.name}_flat", target(net, tensor, source, rows, f"{node.name}_flat"))
    normal = _normal(node, net, flat, [2], node.number("epsilon", 1e-5))
    shape = target(net, tensor, source, pairs, f"{node.name}_back")
    back = net.reshaped(normal, f"{node.name}_back", shape)
    _affine(node, net, back, (1, -1, *[1] * (len(pairs) - 2)))


def _affine(node: Node, net: Network, normal: Any, shape: Sequence[int]) -> None:
    """times scale plus bias, which have one value for each channel."""
    scale, bias = (
        net.stored(node.inputs[place], net.constant(node.inputs[place], "scale or bias").reshape(shape))
        for place in (1, 2)
    )
    net.put(node, "add", x=net.op("mul", f"{node.name}_scaled", x=normal, y=scale), y=bias)


def _normal(node: Node, net: Network, source: Any, axes: Sequence[int], epsilon: float) -> Any:
    """(x - mean) / sqrt(variance + epsilon), over these axes."""
    return net.op(
        "layer_norm", f"{node.name}_normal", x=source, axes=list(axes), epsilon=net.epsilon(epsilon)
    )


@operator("LayerNormalization")
def layer_normalization(node: Node, net: Network) -> None:
    _no_statistics(node)
    tensor, axes = node.inputs[0], _from_axis(node, net)
    sizes = net.sizes(tensor)
    source = net.variable(tensor)
    shape = [sizes[axis] for axis in axes]
    epsilon = net.epsilon(node.number("epsilon", 1e-5))
    if None not in shape:
        stored = {
            name: net.stored(node.inputs[place], _whole(net, node.inputs[place], shape))
            for name, place in (("gamma", 1), ("beta", 2))
            if node.given(place)
        }
        net.put(node, "layer_norm", x=source, axes=axes, epsilon=epsilon, **stored)
        return
    result = net.op("layer_norm", f"{node.name}_normal", x=source, axes=axes, epsilon=epsilon)
    _scaled(node, net, result)


def _whole(net: Network, tensor: str, shape: Sequence[int | None]) -> np.ndarray:
    values = net.constant(tensor, "scale or bias").astype(np.float32)
    wanted = tuple(size or 1 for size in shape)
    return np.broadcast_to(values.reshape(values.shape[max(values.ndim - len(wanted), 0) :]), wanted).copy()


@operator("RMSNormalization")
def rms_normalization(node: Node, net: Network) -> None:
    """x / sqrt(mean(x^2) + epsilon) * scale."""
    _no_statistics(node)
    source, name = net.variable(node.inputs[0]), node.name
    axes = _from_axis(node, net)
    square = net.op("square", f"{name}_square", x=source)
    mean = net.op("reduce_mean", f"{name}_mean", x=square, axes=axes, keep_dims=True)
    above = net.op("add", f"{name}_above", x=mean, y=net.epsilon(node.number("epsilon", 1e-5)))
    root = net.op("sqrt", f"{name}_root", x=above)
    _scaled(node, net, net.op("real_div", f"{name}_normal", x=source, y=root))


def _no_statistics(node: Node) -> None:
    if any(node.outputs[1:]):
        raise Unsupported("its mean or its deviation is read; Core ML gives the normalized values alone")
    node.integer("stash_type")


def _from_axis(node: Node, net: Network) -> list[int]:
    rank = net.rank(node.inputs[0])
    return list(range(node.integer("axis", -1) % rank, rank))


def _scaled(node: Node, net: Network, result: Any) -> None:
    result = net.op("mul", f"{node.name}_scaled", x=result, y=operand(node, net, 1))
    if node.given(2):
        result = net.op("add", f"{node.name}_moved", x=result, y=operand(node, net, 2))
    net.leave(node, result)


@operator("LRN")
def lrn(node: Node, net: Network) -> None:
    size = node.integer("size")
    if size % 2 == 0:
        raise Unsupported(f"its size is {size}; Core ML's window has as many channels on both sides")
    net.put(
        node,
        "local_response_norm",
        x=net.variable(node.inputs[0]),
        size=size,
        alpha=net.number(node.number("alpha", 1e-4)),
        beta=net.number(node.number("beta", 0.75)),
        k=net.number(node.number("bias", 1.0)),
    )


@operator("LpNormalization")
def lp_normalization(node: Node, net: Network) -> None:
    """x / norm of x along an axis; of zeros, zeros."""
    order, axis = node.integer("p", 2), node.integer("axis", -1)
    if order not in (1, 2):
        raise Unsupported(f"its p is {order}; Lathe writes 1 and 2")
    source, name = net.variable(node.inputs[0]), node.name
    norm = net.op(f"reduce_l{order}_norm", f"{name}_norm", x=source, axes=[axis], keep_dims=True)
    some = net.op("greater", f"{name}_some", x=norm, y=net.number(0.0))
    divisor = net.op("select", f"{name}_divisor", cond=some, a=norm, b=net.number(1.0))
    net.put(node, "real_div", x=source, y=divisor)


@operator("MeanVarianceNormalization")
def mean_variance_normalization(node: Node, net: Network) -> None:
    """(x - mean) / (sqrt(mean((x - mean)^2)) + 1e-9); of one value alone, 0. float16 has no 1e-9."""
    source, name = net.variable(node.inputs[0]), node.name
    rank = net.rank(node.inputs[0])
    axes = sorted({axis % rank for axis in node.integers("axes") or [0, 2, 3]})
    mean = net.op("reduce_mean", f"{name}_mean", x=source, axes=axes, keep_dims=True)
    apart = net.op("sub", f"{name}_apart", x=source, y=mean)
    square = net.op("square", f"{name}_square", x=apart)
    variance = net.op("reduce_mean", f"{name}_variance", x=square, axes=axes, keep_dims=True)
    root = net.op("sqrt", f"{name}_root", x=variance)
    above = net.op("add", f"{name}_above", x=root, y=net.number(1e-9))
    some = net.op("greater", f"{name}_some", x=above, y=net.number(0.0))
    divisor = net.op("select", f"{name}_divisor", cond=some, a=above, b=net.number(1.0))
    net.put(node, "real_div", x=apart, y=divisor)
