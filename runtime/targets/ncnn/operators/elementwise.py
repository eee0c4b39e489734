"""Operators of several operands that compute value by value, with ONNX's broadcasting.

Operands come to the same dimensions first: those of the result that any of them varies along. A dimension that an
operand lacks is 1 there, and its axis has a number below 0 (Network.form).
"""

from typing import NamedTuple

import numpy as np

from onnx_lathe.runtime.targets.core.node import Node, Unsupported
from onnx_lathe.runtime.targets.ncnn import arithmetic as math_layers
from onnx_lathe.runtime.targets.ncnn.arithmetic import refuse_integers, scalar_params
from onnx_lathe.runtime.targets.ncnn.dialect import Value
from onnx_lathe.runtime.targets.ncnn.network import MOST_DIMENSIONS, Axes, Network
from onnx_lathe.runtime.targets.ncnn.registry import operator
from onnx_lathe.runtime.targets.ncnn.signs import is_positive, never_negative

PAIRS = {
    "Add": math_layers.ADD,
    "Sub": math_layers.SUB,
    "Mul": math_layers.MUL,
    "Div": math_layers.DIV,
    "Pow": math_layers.POW,
}
WHOLE_EXPONENTS = {float(value) for value in range(-8, 17) if value}
SMALLEST = 1.1754944e-38
"""Of float32's normal numbers."""
SEVERAL = {
    "Sum": math_layers.ADD,
    "Mean": math_layers.ADD,
    "Max": math_layers.MAX,
    "Min": math_layers.MIN,
}


class Operand(NamedTuple):
    """A blob, or one constant number."""

    blob: str = ""
    number: float = 0.0


@operator("Add", "Sub", "Mul", "Div")
def pair(node: Node, net: Network) -> None:
    if node.op == "Mul" and _gated(node, net):
        return
    axes = _axes(node, net)
    first, second = operands_in(node, net, axes)
    _put(node, net, PAIRS[node.op], first, second, axes)


@operator("Sum", "Mean", "Max", "Min")
def several(node: Node, net: Network) -> None:
    axes = _axes(node, net)
    operands = sorted(operands_in(node, net, axes), key=lambda operand: not operand.blob)  # numbers last
    mean = node.op == "Mean" and len(operands) > 1
    if len(operands) == 1:
        net.name_output(node, operands[0].blob, axes)
        return
    result = operands[0]
    for number, other in enumerate(operands[1:-1]):
        params, blobs = layer_of(SEVERAL[node.op], result, other)
        result = Operand(net.inner("BinaryOp", f"{node.name}_{number}", blobs, params))
    if mean:
        params, blobs = layer_of(math_layers.ADD, result, operands[-1])
        result = Operand(net.inner("BinaryOp", f"{node.name}_sum", blobs, params))
        _put(node, net, math_layers.MUL, result, Operand(number=1 / len(operands)), axes)
    else:
        _put(node, net, SEVERAL[node.op], result, operands[-1], axes)


@operator("Pow")
def power(node: Node, net: Network) -> None:
    """Whole exponents become multiplications, a half a root: ncnn's own power is the exponential of a logarithm, and
    right for a base above 0 alone.
    """
    axes = _axes(node, net)
    base, other = operands_in(node, net, axes)
    if base.blob and not other.blob and other.number in WHOLE_EXPONENTS:
        _simple_power(node, net, base.blob, other.number, axes)
    elif base.blob and not other.blob and abs(other.number) - 0.5 in {0.0, *WHOLE_EXPONENTS}:
        _half_power(node, net, base.blob, other.number, axes)
    elif not never_negative(net, node.inputs[0]):
        raise Unsupported("ncnn takes the logarithm of its base, which may be negative")
    else:
        _logarithmic_power(node, net, base, other, axes)


def _logarithmic_power(node: Node, net: Network, base: Operand, exponent: Operand, axes: Axes) -> None:
    """Of 0 there is no logarithm: with t = x > 0, t * (x + 1 - t)^e. What is 0 only where float32 has nothing smaller
    is taken for the smallest there is, if the exponent is not known to be positive.
    """
    known, powers = net.value(node.inputs[0]), net.value(node.inputs[1])
    if known is not None and np.all(known > 0):
        _put(node, net, math_layers.POW, base, exponent, axes)
    elif known is None and powers is not None and np.all(powers > 0):
        _guarded_power(node, net, base.blob, exponent, axes)
    elif known is None and is_positive(net, node.inputs[0]):
        above = math_layers.scalar(net, f"{node.name}_above", math_layers.MAX, base.blob, SMALLEST)
        _put(node, net, math_layers.POW, Operand(above), exponent, axes)
    else:
        raise Unsupported("ncnn takes the logarithm of its base, which may be 0")


def _guarded_power(node: Node, net: Network, base: str, exponent: Operand, axes: Axes) -> None:
    above = net.inner("Threshold", f"{node.name}_above", [base], {0: 0.0})
    below = math_layers.scalar(net, f"{node.name}_below", math_layers.RSUB, above, 1.0)
    shifted = math_layers.binary(net, f"{node.name}_shifted", math_layers.ADD, base, below)
    params, blobs = layer_of(math_layers.POW, Operand(shifted), exponent)
    result = net.inner("BinaryOp", f"{node.name}_power", blobs, params)
    net.put(node, "BinaryOp", [result, above], {0: math_layers.MUL}, axes=axes)


def _half_power(node: Node, net: Network, base: str, exponent: float, axes: Axes) -> None:
    """x^2.5 = x^2 * sqrt(x)."""
    whole = int(abs(exponent))
    result = math_layers.unary(net, f"{node.name}_root", math_layers.SQRT, base)
    if whole:
        power = _multiplied(node, net, base, whole)
        result = math_layers.binary(net, f"{node.name}_half", math_layers.MUL, power, result)
    if exponent < 0:
        result = math_layers.unary(net, f"{node.name}_inverse", math_layers.RECIPROCAL, result)
    net.name_output(node, result, axes)


def _simple_power(node: Node, net: Network, base: str, exponent: float, axes: Axes) -> None:
    result = _multiplied(node, net, base, abs(int(exponent)))
    if exponent < 0:
        result = math_layers.unary(net, f"{node.name}_inverse", math_layers.RECIPROCAL, result)
    net.name_output(node, result, axes)


def _multiplied(node: Node, net: Network, base: str, left: int) -> str:
    """By the exponent's binary digits: x^5 = x * (x^2)^2."""
    square, result = base, ""
    while left:
        if left % 2:
            result = (
                net.inner("BinaryOp", node.name, [result, square], {0: math_layers.MUL}) if result else square
            )
        left //= 2
        if left:
            square = math_layers.unary(net, f"{node.name}_square", math_layers.SQUARE, square)
    return result


def operands_in(node: Node, net: Network, axes: Axes) -> list[Operand]:
    """All inputs in these axes of the result."""
    rank = net.rank(node.outputs[0])
    found = []
    for tensor in node.inputs:
        known, shift = net.value(tensor), rank - net.rank(tensor)
        if known is not None and known.size == 1 and np.isfinite(known).all():
            found.append(Operand(number=float(known.reshape(()))))
        elif known is not None:
            whole = known.reshape((1,) * shift + known.shape)
            found.append(
                Operand(net.memory(tensor, whole.reshape([whole.shape[axis] for axis in axes] or [1])))
            )
        else:
            found.append(Operand(net.form(tensor, tuple(axis - shift for axis in axes)).name))
    if all(not operand.blob for operand in found):
        raise Unsupported("all its operands are constants")
    return found


def _axes(node: Node, net: Network) -> Axes:
    refuse_integers(net, *node.inputs, node.outputs[0])
    return result_axes(node, net)


def result_axes(node: Node, net: Network) -> Axes:
    """The result's axes that operands have dimensions for, or vary along."""
    target = node.outputs[0]
    rank, sizes = net.rank(target), net.sizes(target)
    wanted = {axis for axis, size in enumerate(sizes) if size != 1}
    for tensor in node.inputs:
        if net.value(tensor) is None:
            shift = rank - net.rank(tensor)
            wanted.update(axis + shift for axis in net.blob(tensor).axes)
    return tuple(sorted(wanted)) if len(wanted) <= MOST_DIMENSIONS else net.usual(target)


def _put(node: Node, net: Network, operation: int, first: Operand, second: Operand, axes: Axes) -> None:
    params, blobs = layer_of(operation, first, second)
    net.put(node, "BinaryOp", blobs, params, axes=axes)


def layer_of(operation: int, first: Operand, second: Operand) -> tuple[dict[int, Value], list[str]]:
    """(parameters, blobs) of the BinaryOp of two operands, of which one at most is a number."""
    if not second.blob:
        return scalar_params(operation, second.number), [first.blob]
    if not first.blob:
        return scalar_params(math_layers.SWAPPED.get(operation, operation), first.number), [second.blob]
    return {0: operation}, [first.blob, second.blob]


def _gated(node: Node, net: Network) -> bool:
    """Writes one layer for x times an activation of x, where ncnn has one."""
    for value, gate in (tuple(node.inputs), tuple(reversed(node.inputs))):
        if net.is_free(value) or gate not in net.blobs or net.blobs[gate].axes != net.blob(value).axes:
            continue
        found = _gate(net, gate, value)
        if found is not None:
            source = net.blob(value)
            net.put(node, found[0], [source.name], found[1], axes=source.axes)
            return True
    return False


def _gate(net: Network, gate: str, value: str) -> tuple[str, dict[int, Value]] | None:
    """(layer, parameters) of `value` times `gate`."""
    made = net.nodes.get(gate)
    if made is None or made.domain or not made.input:
        return None
    if made.op_type == "Tanh":
        before = net.nodes.get(made.input[0])
        plus = before is not None and before.op_type == "Softplus" and list(before.input) == [value]
        return ("Mish", {}) if plus else None
    if made.input[0] != value:
        return None
    if made.op_type == "Sigmoid":
        return "Swish", {}
    if made.op_type == "HardSigmoid":
        slopes = {item.name: item.f for item in made.attribute}
        return "HardSwish", {0: slopes.get("alpha", 0.2), 1: slopes.get("beta", 0.5)}
    return None
