"""Operators of one operand that change each value by itself."""

import math
from collections.abc import Mapping

import numpy as np

from onnx_lathe.runtime.targets.core.node import Node, Unsupported
from onnx_lathe.runtime.targets.ncnn import arithmetic as math_layers
from onnx_lathe.runtime.targets.ncnn.arithmetic import binary, refuse_integers, scalar, unary
from onnx_lathe.runtime.targets.ncnn.dialect import Stored, Value, Weight
from onnx_lathe.runtime.targets.ncnn.network import Blob, Network
from onnx_lathe.runtime.targets.ncnn.registry import operator

UNARY = {
    "Abs": math_layers.ABS,
    "Neg": math_layers.NEG,
    "Floor": math_layers.FLOOR,
    "Ceil": math_layers.CEIL,
    "Sqrt": math_layers.SQRT,
    "Sin": math_layers.SIN,
    "Cos": math_layers.COS,
    "Tan": math_layers.TAN,
    "Asin": math_layers.ASIN,
    "Acos": math_layers.ACOS,
    "Atan": math_layers.ATAN,
    "Reciprocal": math_layers.RECIPROCAL,
    "Round": math_layers.ROUND,
}
PLAIN = {
    "Relu": "ReLU",
    "Sigmoid": "Sigmoid",
    "Tanh": "TanH",
    "Mish": "Mish",
    "Erf": "Erf",
    "Exp": "Exp",
    "Log": "Log",
}
"""Layers without parameters. Exp and Log of UnaryOp are other functions, which end before infinity."""

LARGEST = float(np.finfo(np.float32).max)


def _source(node: Node, net: Network) -> Blob:
    refuse_integers(net, node.inputs[0], node.outputs[0])
    return net.blob(node.inputs[0])


def _layer(node: Node, net: Network, type: str, params: Mapping[int, Value] | None = None) -> None:
    source = _source(node, net)
    net.put(node, type, [source.name], params, axes=source.axes)


@operator(*UNARY)
def unary_operator(node: Node, net: Network) -> None:
    _layer(node, net, "UnaryOp", {0: UNARY[node.op]})


@operator(*PLAIN)
def plain(node: Node, net: Network) -> None:
    _layer(node, net, PLAIN[node.op])


@operator("LeakyRelu")
def leaky_relu(node: Node, net: Network) -> None:
    _layer(node, net, "ReLU", {0: node.number("alpha", 0.01)})


@operator("Elu")
def elu(node: Node, net: Network) -> None:
    _layer(node, net, "ELU", {0: node.number("alpha", 1.0)})


@operator("Selu")
def selu(node: Node, net: Network) -> None:
    alpha, gamma = node.number("alpha", 1.6732632423543772), node.number("gamma", 1.0507010221481323)
    _layer(node, net, "SELU", {0: alpha, 1: gamma})


@operator("Celu")
def celu(node: Node, net: Network) -> None:
    """max(x, 0) + min(0, alpha * (exp(x / alpha) - 1)): alpha * ELU(x / alpha) for any alpha above 0."""
    alpha = node.number("alpha", 1.0)
    if alpha <= 0:
        raise Unsupported(f"its alpha is {alpha:g}; ncnn needs one above 0")
    if alpha == 1.0:
        _layer(node, net, "ELU", {0: 1.0})
        return
    source = _source(node, net)
    scaled = scalar(net, f"{node.name}_scaled", math_layers.DIV, source.name, alpha)
    curve = net.inner("ELU", f"{node.name}_elu", [scaled], {0: 1.0})
    params = math_layers.scalar_params(math_layers.MUL, alpha)
    net.put(node, "BinaryOp", [curve], params, axes=source.axes)


@operator("HardSigmoid")
def hard_sigmoid(node: Node, net: Network) -> None:
    alpha = node.number("alpha", 0.2)
    if alpha <= 0:
        raise Unsupported(f"its alpha is {alpha:g}; ncnn needs one above 0")
    _layer(node, net, "HardSigmoid", {0: alpha, 1: node.number("beta", 0.5)})


@operator("HardSwish")
def hard_swish(node: Node, net: Network) -> None:
    _layer(node, net, "HardSwish", {0: 1 / 6, 1: 0.5})


@operator("Gelu")
def gelu(node: Node, net: Network) -> None:
    _layer(node, net, "GELU", {0: int(node.text("approximate", "none") == "tanh")})


@operator("Swish")
def swish(node: Node, net: Network) -> None:
    """x * Sigmoid(alpha * x)."""
    alpha = node.number("alpha", 1.0)
    if alpha == 1.0:
        _layer(node, net, "Swish")
        return
    source = _source(node, net)
    scaled = scalar(net, f"{node.name}_scaled", math_layers.MUL, source.name, alpha)
    gate = net.inner("Sigmoid", f"{node.name}_gate", [scaled])
    net.put(node, "BinaryOp", [source.name, gate], {0: math_layers.MUL}, axes=source.axes)


@operator("Softplus")
def softplus(node: Node, net: Network) -> None:
    """max(x, 0) + log(1 + exp(-|x|)): ncnn's own Softplus has no room for the exponential of a large x."""
    source, name = _source(node, net), node.name
    size = unary(net, f"{name}_size", math_layers.ABS, source.name)
    power = net.inner("Exp", f"{name}_exp", [unary(net, f"{name}_neg", math_layers.NEG, size)])
    bend = net.inner("Log", f"{name}_log", [scalar(net, f"{name}_plus_1", math_layers.ADD, power, 1.0)])
    line = net.inner("ReLU", f"{name}_relu", [source.name])
    net.put(node, "BinaryOp", [line, bend], {0: math_layers.ADD}, axes=source.axes)


@operator("Softsign")
def softsign(node: Node, net: Network) -> None:
    """x / (1 + |x|)."""
    source = _source(node, net)
    size = unary(net, f"{node.name}_size", math_layers.ABS, source.name)
    below = scalar(net, f"{node.name}_plus_1", math_layers.ADD, size, 1.0)
    net.put(node, "BinaryOp", [source.name, below], {0: math_layers.DIV}, axes=source.axes)


@operator("Sign")
def sign(node: Node, net: Network) -> None:
    """(x > 0) - (-x > 0): an ncnn that is older than UnaryOp's sign would hand on x instead, without a word."""
    source, name = _source(node, net), node.name
    above = net.inner("Threshold", f"{name}_above", [source.name], {0: 0.0})
    negated = unary(net, f"{name}_neg", math_layers.NEG, source.name)
    below = net.inner("Threshold", f"{name}_below", [negated], {0: 0.0})
    net.put(node, "BinaryOp", [above, below], {0: math_layers.SUB}, axes=source.axes)


@operator("ThresholdedRelu")
def thresholded_relu(node: Node, net: Network) -> None:
    """x where it is above alpha, else 0: (x > alpha) * max(x, alpha), since 0 times infinity is no number."""
    source, alpha = _source(node, net), node.number("alpha", 1.0)
    above = net.inner("Threshold", f"{node.name}_above", [source.name], {0: alpha})
    kept = scalar(net, f"{node.name}_kept", math_layers.MAX, source.name, alpha)
    net.put(node, "BinaryOp", [kept, above], {0: math_layers.MUL}, axes=source.axes)


@operator("Shrink")
def shrink(node: Node, net: Network) -> None:
    _layer(node, net, "Shrink", {0: node.number("bias", 0.0), 1: node.number("lambd", 0.5)})


@operator("Clip")
def clip(node: Node, net: Network) -> None:
    """Bounds that are computed at run time become operands of a maximum and a minimum."""
    source = _source(node, net)
    if any(node.given(position) and not net.is_free(node.inputs[position]) for position in (1, 2)):
        _clip_by_blobs(node, net, source)
        return
    low, high = _bound(node, net, 1, "min", -LARGEST), _bound(node, net, 2, "max", LARGEST)
    if low == -LARGEST and high == LARGEST:
        net.name_output(node, source.name, source.axes)
    elif low == 0.0 and high == LARGEST:
        net.put(node, "ReLU", [source.name], axes=source.axes)
    else:
        net.put(node, "Clip", [source.name], {0: low, 1: high}, axes=source.axes)


def _clip_by_blobs(node: Node, net: Network, source: Blob) -> None:
    result = source.name
    none = tuple(range(-len(source.axes), 0))  # a bound has one value, and no axis that the blob has
    for position, operation in ((1, math_layers.MAX), (2, math_layers.MIN)):
        if node.given(position):
            bound = net.form(node.inputs[position], none).name
            result = binary(net, f"{node.name}_{position}", operation, result, bound)
    net.name_output(node, result, source.axes)


def _bound(node: Node, net: Network, position: int, name: str, absent: float) -> float:
    """An attribute up to opset 10, an input since; no farther than the largest float32."""
    if node.opset < 11:
        value = node.number(name, absent)
    elif node.given(position):
        value = float(net.constant(node.inputs[position], f"bound '{name}'").reshape(()))
    else:
        value = absent
    if math.isnan(value):
        raise Unsupported(f"its bound '{name}' is not a number")
    return min(max(value, -LARGEST), LARGEST)


@operator("PRelu")
def prelu(node: Node, net: Network) -> None:
    """x where it is positive, else slope * x."""
    source, slope = _source(node, net), net.constant(node.inputs[1], "slope").astype(np.float32)
    rank = net.rank(node.inputs[0])
    aligned = slope.reshape((1,) * (rank - slope.ndim) + slope.shape)
    along = [axis for axis, size in enumerate(aligned.shape) if size > 1]
    if along and list(source.axes[:1]) != along:
        _general_prelu(node, net, source, aligned)
        return
    weight = Weight(Stored(np.ascontiguousarray(aligned.reshape(-1))))
    net.put(node, "PReLU", [source.name], {0: aligned.size}, [weight], source.axes)


def _general_prelu(node: Node, net: Network, source: Blob, slope: np.ndarray) -> None:
    """max(x, 0) + slope * min(x, 0), for slopes that are not one for each of the outermost dimension."""
    label = f"{node.name}_slope"
    factors = net.memory(label, slope.reshape([slope.shape[axis] for axis in source.axes] or [1]))
    below = scalar(net, f"{node.name}_below", math_layers.MIN, source.name, 0.0)
    bent = binary(net, f"{node.name}_bent", math_layers.MUL, below, factors)
    above = net.inner("ReLU", f"{node.name}_above", [source.name])
    net.put(node, "BinaryOp", [above, bent], {0: math_layers.ADD}, axes=source.axes)
