"""Normalizations: by stored statistics, or by those of the values themselves."""

from collections.abc import Sequence

import numpy as np

from onnx_lathe.runtime.targets.core.node import Node, Unsupported
from onnx_lathe.runtime.targets.ncnn import arithmetic as math_layers
from onnx_lathe.runtime.targets.ncnn.arithmetic import binary, reduced, refuse_integers, scalar, unary
from onnx_lathe.runtime.targets.ncnn.dialect import Stored, Weight
from onnx_lathe.runtime.targets.ncnn.network import MOST_DIMENSIONS, Axes, Network
from onnx_lathe.runtime.targets.ncnn.registry import operator


@operator("BatchNormalization")
def batch_normalization(node: Node, net: Network) -> None:
    """scale * (x - mean) / sqrt(var + epsilon) + bias, for each channel."""
    refuse_integers(net, node.inputs[0])
    if node.integer("training_mode") or any(node.outputs[1:]):
        raise Unsupported("it is in training mode, and computes statistics of the batch")
    if not node.integer("spatial", 1):
        raise Unsupported("it has statistics for each place (spatial = 0)")
    names = ("scale", "bias", "mean", "variance")
    scale, bias, mean, variance = (
        net.constant(tensor, name).astype(np.float32).reshape(-1)
        for tensor, name in zip(node.inputs[1:5], names, strict=True)
    )
    epsilon = node.number("epsilon", 1e-5)
    sizes = net.sizes(node.inputs[0])
    if sizes[0] != 1 or len(sizes) == 1:
        _rows(node, net, scale, bias, mean, variance.astype(np.float64) + epsilon)
        return
    axes = _channels_first(node, net)
    weights = [Weight(Stored(values)) for values in (scale, mean, variance, bias)]
    params = {0: scale.size, 1: epsilon}
    net.put(node, "BatchNorm", [net.form(node.inputs[0], axes).name], params, weights, axes)


def _rows(
    node: Node, net: Network, scale: np.ndarray, bias: np.ndarray, mean: np.ndarray, variance: np.ndarray
) -> None:
    """Several samples at once: factors and terms along the blob's second dimension."""
    rank = net.rank(node.inputs[0])
    axes = tuple(range(rank)) if rank <= MOST_DIMENSIONS else net.usual(node.inputs[0])
    factor = scale / np.sqrt(variance)
    shape = [scale.size if axis == 1 else 1 for axis in axes]
    source = net.form(node.inputs[0], axes).name
    grown = binary(
        net, f"{node.name}_scaled", math_layers.MUL, source, net.memory(node.inputs[1], factor.reshape(shape))
    )
    term = net.memory(node.inputs[2], (bias - mean * factor).reshape(shape))
    net.put(node, "BinaryOp", [grown, term], {0: math_layers.ADD}, axes=axes)


def _channels_first(node: Node, net: Network) -> Axes:
    """All axes but the batch, which has to be 1."""
    rank = net.rank(node.inputs[0])
    if net.sizes(node.inputs[0])[0] != 1:
        raise Unsupported("it takes several samples at once, which are no batch of the model's input")
    if rank - 1 > MOST_DIMENSIONS:
        raise Unsupported(f"its input has {rank - 1} dimensions beside the batch; ncnn has {MOST_DIMENSIONS}")
    return tuple(range(1, rank))


@operator("InstanceNormalization")
def instance_normalization(node: Node, net: Network) -> None:
    """GroupNorm with a group for each channel: ncnn's InstanceNorm sees one channel in a blob of two dimensions."""
    scale, bias = _affine(node, net)
    _group_norm(node, net, scale.size, scale, bias)


@operator("GroupNormalization")
def group_normalization(node: Node, net: Network) -> None:
    """Of opset 21; that of opset 18, which is withdrawn, has a scale for each group."""
    scale, bias = _affine(node, net)
    if scale.size != net.sizes(node.inputs[0])[1]:
        raise Unsupported(f"it has {scale.size} scales, which are not one for each channel")
    _group_norm(node, net, node.integer("num_groups"), scale, bias)


def _affine(node: Node, net: Network) -> tuple[np.ndarray, np.ndarray]:
    scale, bias = (
        net.constant(tensor, what).astype(np.float32).reshape(-1)
        for tensor, what in ((node.inputs[1], "scale"), (node.inputs[2], "bias"))
    )
    return scale, bias


def _group_norm(node: Node, net: Network, groups: int, scale: np.ndarray, bias: np.ndarray) -> None:
    refuse_integers(net, node.inputs[0])
    axes = _channels_first(node, net)
    params = {0: groups, 1: scale.size, 2: node.number("epsilon", 1e-5), 3: 1}
    weights = [Weight(Stored(np.ascontiguousarray(values))) for values in (scale, bias)]
    net.put(node, "GroupNorm", [net.form(node.inputs[0], axes).name], params, weights, axes)


@operator("LayerNormalization", "RMSNormalization")
def layer_normalization(node: Node, net: Network) -> None:
    """Over all axes from one on. Several of them are put together first: ncnn tells them by their product alone."""
    tensor = node.inputs[0]
    refuse_integers(net, tensor)
    if any(node.outputs[1:]):
        raise Unsupported("its mean or its deviation is read; ncnn gives the normalized values alone")
    rank, sizes = net.rank(tensor), net.sizes(tensor)
    first = node.integer("axis", -1) % rank
    together = _known(sizes[first:])
    weights = [_whole(node, net, 1, "scale", together)]
    if node.op == "LayerNormalization":
        weights.append(_whole(node, net, 2, "bias", together) if node.given(2) else np.zeros_like(weights[0]))
    params = {0: weights[0].size, 1: node.number("epsilon", 1e-5), 2: 1}
    kind = "LayerNorm" if node.op == "LayerNormalization" else "RMSNorm"
    stored = [Weight(Stored(values)) for values in weights]
    source = net.blob(tensor)
    inner = [axis for axis in source.axes if axis >= first]
    if len(inner) == 1:
        net.put(node, kind, [source.name], params, stored, source.axes)
        return
    if any(axis < first for axis in source.axes) and sizes.count(None) > 1:
        raise Unsupported("two or more sizes depend on the size of the input")
    flat = net.reshaped(source.name, node.name, [-1, weights[0].size])
    normal = net.inner(kind, f"{node.name}_flat", [flat], params, stored)
    back = [sizes[axis] for axis in source.axes] or [1]
    net.name_output(
        node,
        net.reshaped(normal, f"{node.name}_back", [-1 if size is None else size for size in back]),
        source.axes,
    )


def _known(sizes: Sequence[int | None]) -> tuple[int, ...]:
    found = tuple(size for size in sizes if size is not None)
    if len(found) < len(sizes):
        raise Unsupported("a size that it normalizes over depends on the size of the input")
    return found


def _whole(node: Node, net: Network, position: int, what: str, shape: tuple[int, ...]) -> np.ndarray:
    """A factor or term for every value that is normalized together."""
    values = net.constant(node.inputs[position], what).astype(np.float32)
    shortened = values.reshape(values.shape[max(values.ndim - len(shape), 0) :])
    return np.broadcast_to(shortened, shape).reshape(-1).copy()


@operator("LRN")
def lrn(node: Node, net: Network) -> None:
    size = node.integer("size")
    if size % 2 == 0:
        raise Unsupported(f"its size is {size}; ncnn's window has as many channels on both sides")
    if net.rank(node.inputs[0]) != 4:
        raise Unsupported("its input has no height and width; ncnn's LRN needs both")
    axes = _channels_first(node, net)
    params = {
        0: 0,
        1: size,
        2: node.number("alpha", 1e-4),
        3: node.number("beta", 0.75),
        4: node.number("bias", 1.0),
    }
    net.put(node, "LRN", [net.form(node.inputs[0], axes).name], params, axes=axes)


@operator("LpNormalization")
def lp_normalization(node: Node, net: Network) -> None:
    """x / norm of x along an axis."""
    tensor = node.inputs[0]
    refuse_integers(net, tensor)
    order, axis = node.integer("p", 2), node.integer("axis", -1) % net.rank(tensor)
    if order not in (1, 2):
        raise Unsupported(f"its p is {order}; Lathe writes 1 and 2")
    source = net.blob(tensor)
    if axis not in source.axes:
        axes = tuple(sorted({*source.axes, axis}))
        if len(axes) > MOST_DIMENSIONS:
            raise Unsupported(f"ncnn has no dimension for its axis {axis}")
        source = net.form(tensor, axes)
    operation = math_layers.R_L1 if order == 1 else math_layers.R_L2
    norm = reduced(net, f"{node.name}_norm", operation, source.name, [source.axes.index(axis)])
    divisor = _never_zero(node, net, norm)
    net.put(node, "BinaryOp", [source.name, divisor], {0: math_layers.DIV}, axes=source.axes)


@operator("MeanVarianceNormalization")
def mean_variance_normalization(node: Node, net: Network) -> None:
    """(x - mean) / (sqrt(mean((x - mean)^2)) + 1e-9); float16 has no 1e-9."""
    tensor, name = node.inputs[0], node.name
    refuse_integers(net, tensor)
    rank = net.rank(tensor)
    gone = {axis % rank for axis in node.integers("axes") or [0, 2, 3]}
    source = net.blob(tensor)
    places = [place for place, axis in enumerate(source.axes) if axis in gone]
    if not places:
        raise Unsupported("it normalizes over one value")
    mean = reduced(net, f"{name}_mean", math_layers.R_MEAN, source.name, places)
    apart = binary(net, f"{name}_apart", math_layers.SUB, source.name, mean)
    square = unary(net, f"{name}_square", math_layers.SQUARE, apart)
    variance = reduced(net, f"{name}_variance", math_layers.R_MEAN, square, places)
    deviation = scalar(
        net,
        f"{name}_deviation",
        math_layers.ADD,
        unary(net, f"{name}_root", math_layers.SQRT, variance),
        1e-9,
    )
    divisor = _never_zero(node, net, deviation)
    net.put(node, "BinaryOp", [apart, divisor], {0: math_layers.DIV}, axes=source.axes)


def _never_zero(node: Node, net: Network, blob: str) -> str:
    """blob + (blob <= 0): 1 instead of 0, so that nothing divided by it is 0, as ONNX has it. A smallest number
    below it would do in float32, but none that is small enough is more than 0 in float16.
    """
    positive = net.inner("Threshold", f"{node.name}_positive", [blob], {0: 0.0})
    nothing = scalar(net, f"{node.name}_nothing", math_layers.RSUB, positive, 1.0)
    return binary(net, f"{node.name}_divisor", math_layers.ADD, blob, nothing)
