"""Operators of one operand that change each value by itself."""

from typing import Any

import numpy as np

from onnx_lathe.runtime.targets.core.node import Node, Unsupported
from onnx_lathe.runtime.targets.coreml.network import Network
from onnx_lathe.runtime.targets.coreml.registry import operator

PLAIN = {
    "Relu": "relu",
    "Sigmoid": "sigmoid",
    "Tanh": "tanh",
    "Erf": "erf",
    "Exp": "exp",
    "Log": "log",
    "Abs": "abs",
    "Floor": "floor",
    "Ceil": "ceil",
    "Sqrt": "sqrt",
    "Sin": "sin",
    "Cos": "cos",
    "Tan": "tan",
    "Asin": "asin",
    "Acos": "acos",
    "Atan": "atan",
    "Sinh": "sinh",
    "Cosh": "cosh",
    "Atanh": "atanh",
    "Round": "round",
    "Sign": "sign",
    "Softplus": "softplus",
    "Softsign": "softsign",
}
ALPHA = {"LeakyRelu": ("leaky_relu", 0.01), "Elu": ("elu", 1.0)}


@operator(*PLAIN)
def plain(node: Node, net: Network) -> None:
    source = net.variable(node.inputs[0])
    if node.op == "Relu" and not net.is_float(source):
        net.put(node, "maximum", x=source, y=np.int32(0))
        return
    net.put(node, PLAIN[node.op], x=source)


@operator(*ALPHA)
def with_alpha(node: Node, net: Network) -> None:
    kind, usual = ALPHA[node.op]
    net.put(node, kind, x=net.variable(node.inputs[0]), alpha=net.number(node.number("alpha", usual)))


@operator("Neg")
def negative(node: Node, net: Network) -> None:
    source = net.variable(node.inputs[0])
    factor = net.number(-1.0) if net.is_float(source) else np.int32(-1)
    net.put(node, "mul", x=source, y=factor)


@operator("Reciprocal")
def reciprocal(node: Node, net: Network) -> None:
    """A division: MIL's `inverse` adds an epsilon."""
    net.put(node, "real_div", x=net.number(1.0), y=net.variable(node.inputs[0]))


@operator("Selu")
def selu(node: Node, net: Network) -> None:
    alpha, gamma = node.number("alpha", 1.6732632423543772), node.number("gamma", 1.0507010221481323)
    curve = net.op("elu", f"{node.name}_elu", x=net.variable(node.inputs[0]), alpha=net.number(alpha))
    net.put(node, "mul", x=curve, y=net.number(gamma))


@operator("Celu")
def celu(node: Node, net: Network) -> None:
    """max(x, 0) + min(0, alpha * (exp(x / alpha) - 1)): alpha * ELU(x / alpha) for any alpha above 0."""
    alpha = node.number("alpha", 1.0)
    if alpha <= 0:
        raise Unsupported(f"its alpha is {alpha:g}; Lathe writes one above 0")
    source = net.variable(node.inputs[0])
    scaled = net.op("mul", f"{node.name}_scaled", x=source, y=net.number(1 / alpha))
    curve = net.op("elu", f"{node.name}_elu", x=scaled, alpha=net.number(1.0))
    net.put(node, "mul", x=curve, y=net.number(alpha))


@operator("HardSigmoid")
def hard_sigmoid(node: Node, net: Network) -> None:
    alpha, beta = node.number("alpha", 0.2), node.number("beta", 0.5)
    source = net.variable(node.inputs[0])
    net.put(node, "sigmoid_hard", x=source, alpha=net.number(alpha), beta=net.number(beta))


@operator("HardSwish")
def hard_swish(node: Node, net: Network) -> None:
    source = net.variable(node.inputs[0])
    gate = net.op(
        "sigmoid_hard", f"{node.name}_gate", x=source, alpha=net.number(1 / 6), beta=net.number(0.5)
    )
    net.put(node, "mul", x=source, y=gate)


@operator("Gelu")
def gelu(node: Node, net: Network) -> None:
    mode = {"none": "EXACT", "tanh": "TANH_APPROXIMATION"}.get(node.text("approximate", "none"))
    if mode is None:
        raise Unsupported(f"its approximation is '{node.text('approximate', 'none')}'")
    net.put(node, "gelu", x=net.variable(node.inputs[0]), mode=mode)


@operator("Swish")
def swish(node: Node, net: Network) -> None:
    """x * Sigmoid(alpha * x)."""
    alpha, source = node.number("alpha", 1.0), net.variable(node.inputs[0])
    if alpha == 1.0:
        net.put(node, "silu", x=source)
        return
    scaled = net.op("mul", f"{node.name}_scaled", x=source, y=net.number(alpha))
    gate = net.op("sigmoid", f"{node.name}_gate", x=scaled)
    net.put(node, "mul", x=source, y=gate)


@operator("Mish")
def mish(node: Node, net: Network) -> None:
    """x * Tanh(Softplus(x))."""
    source = net.variable(node.inputs[0])
    bend = net.op("tanh", f"{node.name}_tanh", x=net.op("softplus", f"{node.name}_softplus", x=source))
    net.put(node, "mul", x=source, y=bend)


@operator("ThresholdedRelu")
def thresholded_relu(node: Node, net: Network) -> None:
    """x where it is above alpha, else 0: MIL's keeps alpha itself too."""
    source, alpha = net.variable(node.inputs[0]), net.number(node.number("alpha", 1.0))
    above = net.op("greater", f"{node.name}_above", x=source, y=alpha)
    net.put(node, "select", cond=above, a=source, b=net.number(0.0))


@operator("Shrink")
def shrink(node: Node, net: Network) -> None:
    """x + bias below -lambd, x - bias above lambd, else 0."""
    source, name = net.variable(node.inputs[0]), node.name
    bias, lambd = node.number("bias", 0.0), node.number("lambd", 0.5)
    above = net.op("greater", f"{name}_above", x=source, y=net.number(lambd))
    below = net.op("less", f"{name}_below", x=source, y=net.number(-lambd))
    down = net.op("sub", f"{name}_down", x=source, y=net.number(bias))
    up = net.op("add", f"{name}_up", x=source, y=net.number(bias))
    right = net.op("select", f"{name}_right", cond=above, a=down, b=net.number(0.0))
    net.put(node, "select", cond=below, a=up, b=right)


@operator("Clip")
def clip(node: Node, net: Network) -> None:
    """Bounds that are absent, or computed at run time, leave a maximum or a minimum."""
    source = net.variable(node.inputs[0])
    low, high = _bound(node, net, 1, "min"), _bound(node, net, 2, "max")
    number = net.number if net.is_float(source) else np.int32
    if isinstance(low, float) and isinstance(high, float) and net.is_float(source):
        if low == 0.0 and high == 6.0:
            net.put(node, "relu6", x=source)
        else:
            net.put(node, "clip", x=source, alpha=number(low), beta=number(high))
        return
    if low == 0.0 and high is None and net.is_float(source):
        net.put(node, "relu", x=source)
        return
    for kind, bound in (("maximum", low), ("minimum", high)):
        if bound is not None:
            operand = number(bound) if isinstance(bound, float) else bound
            source = net.op(kind, f"{node.name}_{kind}", x=source, y=operand)
    net.leave(node, source)


def _bound(node: Node, net: Network, position: int, name: str) -> Any:
    """A number, a variable, or None: an attribute up to opset 10, an input since."""
    if node.opset < 11:
        value = node.attributes.get(name)
    elif not node.given(position):
        value = None
    else:
        found = net.value(node.inputs[position])
        if found is None:
            return net.variable(node.inputs[position])
        value = found.reshape(()).item()
        if found.dtype.kind in "iu":
            limits = np.iinfo(np.int32)
            return float(value) if limits.min < value < limits.max else None
    if value is None:
        return None
    if np.isnan(value):
        raise Unsupported(f"its bound '{name}' is not a number")
    largest = float(np.finfo(net.form.dtype).max)
    return None if abs(float(value)) >= largest else float(value)


@operator("PRelu")
def prelu(node: Node, net: Network) -> None:
    """x where it is positive, else slope * x; `prelu` has one slope for each channel."""
    source, slope = net.variable(node.inputs[0]), net.value(node.inputs[1])
    rank = net.rank(node.inputs[0])
    if slope is not None and rank >= 3:
        aligned = slope.reshape((1,) * (rank - slope.ndim) + slope.shape)
        channels = net.sizes(node.inputs[0])[1]
        if channels is not None and aligned.size in (1, aligned.shape[1]):
            values = np.broadcast_to(aligned.reshape(-1), (channels,)).copy()
            net.put(node, "prelu", x=source, alpha=net.stored(node.inputs[1], values))
            return
    zero, name = net.number(0.0), node.name
    above = net.op("relu", f"{name}_above", x=source)
    below = net.op("minimum", f"{name}_below", x=source, y=zero)
    bent = net.op("mul", f"{name}_bent", x=below, y=net.variable(node.inputs[1]))
    net.put(node, "add", x=above, y=bent)
