"""Comparisons, what is made of their results, and the choice between two tensors.

True is 1 and false is 0. A choice does not multiply with them, since nothing times infinity is no number: each
operand is cut off by a limit of plus or minus infinity, which keeps it or makes it the smallest there is.

    limit = (condition - 1/2) * infinity
    max(min(a, limit), min(b, -limit))

In comparisons, one that is no number is equal to everything.
"""

import math

import numpy as np
import onnx

from onnx_lathe.runtime.targets.core.node import Node, Unsupported
from onnx_lathe.runtime.targets.ncnn import arithmetic as math_layers
from onnx_lathe.runtime.targets.ncnn.arithmetic import binary, scalar, unary
from onnx_lathe.runtime.targets.ncnn.network import Axes, Network
from onnx_lathe.runtime.targets.ncnn.operators.elementwise import Operand, layer_of, operands_in, result_axes
from onnx_lathe.runtime.targets.ncnn.registry import operator
from onnx_lathe.runtime.targets.ncnn.unsure import unsure

HUGE = 3e38
"""Its half times itself is infinite: ncnn's files have no infinity."""


@operator("Greater", "Less", "GreaterOrEqual", "LessOrEqual")
def compare(node: Node, net: Network) -> None:
    """a > b where a - b > 0; a >= b where b > a does not hold."""
    axes = _compared_axes(node, net)
    first, second = operands_in(node, net, axes)
    swapped = node.op in ("Less", "GreaterOrEqual")
    difference = _difference(node, net, *((second, first) if swapped else (first, second)))
    found = net.inner("Threshold", f"{node.name}_above", [difference], {0: 0.0})
    net.name_output(node, _inverse(node, net, found) if node.op.endswith("Equal") else found, axes)


@operator("Equal")
def equal(node: Node, net: Network) -> None:
    axes = _compared_axes(node, net)
    first, second = operands_in(node, net, axes)
    apart = unary(net, f"{node.name}_apart", math_layers.ABS, _difference(node, net, first, second))
    other = net.inner("Threshold", f"{node.name}_other", [apart], {0: 0.0})
    net.name_output(node, _inverse(node, net, other), axes)


def _compared_axes(node: Node, net: Network) -> Axes:
    for tensor in node.inputs:
        if net.is_integer(tensor) and not net.is_free(tensor) and tensor not in net.counted:
            raise Unsupported("it compares integers that are not held as floats")
    return result_axes(node, net)


def _difference(node: Node, net: Network, first: Operand, second: Operand) -> str:
    params, blobs = layer_of(math_layers.SUB, first, second)
    return net.inner("BinaryOp", f"{node.name}_difference", blobs, params)


def _inverse(node: Node, net: Network, blob: str) -> str:
    return scalar(net, node.name, math_layers.RSUB, blob, 1.0)


@operator("Not")
def not_(node: Node, net: Network) -> None:
    blob = net.blob(node.inputs[0])
    net.name_output(node, _inverse(node, net, blob.name), blob.axes)


@operator("And", "Or", "Xor")
def both(node: Node, net: Network) -> None:
    axes = result_axes(node, net)
    operation = {"And": math_layers.MIN, "Or": math_layers.MAX, "Xor": math_layers.SUB}[node.op]
    params, blobs = layer_of(operation, *operands_in(node, net, axes))
    found = net.inner("BinaryOp", node.name, blobs, params)
    net.name_output(node, unary(net, node.name, math_layers.ABS, found) if node.op == "Xor" else found, axes)


@operator("Where")
def where(node: Node, net: Network) -> None:
    _refuse_unsure(node, net)
    axes = result_axes(node, net)
    condition, *operands = operands_in(node, net, axes)
    for place, tensor in enumerate(node.inputs[1:]):
        known = net.value(tensor)
        if known is not None and known.size == 1 and np.isinf(known).all():
            operands[place] = Operand(number=float(known.reshape(())))
    first, second = operands
    if not condition.blob:
        condition = Operand(
            net.memory(f"{node.name}_condition", np.full([1] * max(len(axes), 1), condition.number))
        )
    net.name_output(node, _chosen(node, net, condition.blob, _guarded(node, net, first, second, axes)), axes)


def _chosen(node: Node, net: Network, condition: str, operands: tuple[Operand, Operand]) -> str:
    first, second = operands
    numbers = () if first.blob or second.blob else (first.number, second.number)
    if 0.0 in numbers and all(map(math.isfinite, numbers)):
        if second.number:
            condition = scalar(net, f"{node.name}_not", math_layers.RSUB, condition, 1.0)
        return scalar(net, node.name, math_layers.MUL, condition, first.number or second.number)
    limit = condition
    for operation, number in ((math_layers.SUB, 0.5), (math_layers.MUL, HUGE), (math_layers.MUL, HUGE)):
        limit = scalar(net, f"{node.name}_limit", operation, limit, number)
    negative = unary(net, f"{node.name}_negative", math_layers.NEG, limit)
    for one, own, other in ((first, limit, second), (second, negative, first)):
        # where the one is chosen, the other is out of the way already if it is infinite
        if not other.blob and math.isinf(other.number):
            away = own if other.number < 0 else (negative if own == limit else limit)
            return _limited(
                net, node.name, math_layers.MIN if other.number < 0 else math_layers.MAX, one, away
            )
    kept = [
        _limited(net, f"{node.name}_{place}", math_layers.MIN, one, own)
        for place, (one, own) in enumerate(((first, limit), (second, negative)))
    ]
    return binary(net, node.name, math_layers.MAX, *kept)


def _limited(net: Network, label: str, operation: int, operand: Operand, limit: str) -> str:
    if operand.blob:
        return binary(net, label, operation, operand.blob, limit)
    return scalar(net, label, operation, limit, operand.number)


def _guarded(
    node: Node, net: Network, first: Operand, second: Operand, axes: Axes
) -> tuple[Operand, Operand]:
    """Where(d == 0, v, n / d) divides by d + (d == 0): 0 / 0 would be no number, chosen or not."""
    quotient = _guarded_quotient(node, net)
    if quotient is None:
        return first, second
    shift = net.rank(node.outputs[0]) - net.rank(quotient.output[0])
    inner = tuple(axis - shift for axis in axes)
    top = net.form(quotient.input[0], inner) if not net.is_free(quotient.input[0]) else None
    divisor = binary(
        net,
        f"{node.name}_divisor",
        math_layers.ADD,
        net.form(quotient.input[1], inner).name,
        net.form(node.inputs[0], axes).name,
    )
    if top is not None:
        return first, Operand(binary(net, f"{node.name}_quotient", math_layers.DIV, top.name, divisor))
    number = float(net.constant(quotient.input[0], "dividend").reshape(()))
    return first, Operand(scalar(net, f"{node.name}_quotient", math_layers.RDIV, divisor, number))


def _guarded_quotient(node: Node, net: Network) -> onnx.NodeProto | None:
    """The Div whose divisor the condition compares with 0, and that is chosen where it is another; or None."""
    made, quotient = net.nodes.get(node.inputs[0]), net.nodes.get(node.inputs[2])
    if made is None or quotient is None or made.op_type != "Equal" or quotient.op_type != "Div":
        return None
    top = net.value(quotient.input[0])
    if net.is_free(quotient.input[0]) and (top is None or top.size != 1):
        return None
    for tensor, other in (tuple(made.input), tuple(reversed(made.input))):
        zero = net.value(other)
        if tensor == quotient.input[1] and zero is not None and not np.any(zero):
            return quotient
    return None


def _refuse_unsure(node: Node, net: Network) -> None:
    """Of an operand that may be no number: minimum and maximum differ between processors in what they make of it."""
    for tensor in node.inputs[1:]:
        if net.is_integer(tensor) and tensor not in net.counted:
            raise Unsupported("it chooses between integers")
    quotient = _guarded_quotient(node, net)
    second = list(quotient.input) if quotient is not None else [node.inputs[2]]
    if (op := unsure(net, [node.inputs[1], *second])) is not None:
        raise Unsupported(f"what it chooses from may be no number, as {op} writes it")
