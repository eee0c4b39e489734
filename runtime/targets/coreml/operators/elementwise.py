"""Operators of several operands that compute value by value, with ONNX's broadcasting, which MIL has too."""

from typing import Any

import numpy as np

from onnx_lathe.runtime.targets.core.node import Node, Unsupported
from onnx_lathe.runtime.targets.coreml.network import Network
from onnx_lathe.runtime.targets.coreml.registry import operator

PAIRS = {"Add": "add", "Sub": "sub", "Mul": "mul", "Pow": "pow"}
SEVERAL = {"Sum": "add", "Mean": "add", "Max": "maximum", "Min": "minimum"}
COMPARISONS = {
    "Greater": "greater",
    "Less": "less",
    "GreaterOrEqual": "greater_equal",
    "LessOrEqual": "less_equal",
    "Equal": "equal",
}
LOGIC = {"And": "logical_and", "Or": "logical_or", "Xor": "logical_xor"}


@operator(*PAIRS, *COMPARISONS, *LOGIC)
def pair(node: Node, net: Network) -> None:
    kind = (PAIRS | COMPARISONS | LOGIC)[node.op]
    x, y = (operand(node, net, place) for place in (0, 1))
    if node.op == "Equal" and not net.is_float(x) and "bool" in str(x.dtype):
        x, y = (net.cast(one, "int32", f"{node.name}_{place}") for place, one in enumerate((x, y)))
    if node.op == "Pow" and net.is_float(x) and not net.is_float(y):
        y = net.cast(y, net.form.cast, f"{node.name}_exponent")
    net.put(node, kind, x=x, y=y)


@operator("Div")
def divide(node: Node, net: Network) -> None:
    x, y = (operand(node, net, place) for place in (0, 1))
    if net.is_float(x):
        net.put(node, "real_div", x=x, y=y)
        return
    divisor = net.value(node.inputs[1])
    if divisor is None or np.any(divisor <= 0) or not _is_count(node.inputs[0], net):
        raise Unsupported(
            "it divides integers that may be negative, which MIL rounds down and ONNX towards 0"
        )
    net.put(node, "floor_div", x=x, y=y)


def _is_count(tensor: str, net: Network) -> bool:
    """Whether integers are known to be 0 or more: places that an operator has counted."""
    made = net.nodes.get(tensor)
    return made is not None and made.op_type in ("ArgMax", "ArgMin")


@operator(*SEVERAL)
def several(node: Node, net: Network) -> None:
    result = operand(node, net, 0)
    for place in range(1, len(node.inputs)):
        result = net.op(SEVERAL[node.op], f"{node.name}_{place}", x=result, y=operand(node, net, place))
    if node.op == "Mean" and len(node.inputs) > 1:
        result = net.op("mul", f"{node.name}_mean", x=result, y=net.number(1 / len(node.inputs)))
    net.leave(node, result)


@operator("Not")
def opposite(node: Node, net: Network) -> None:
    net.put(node, "logical_not", x=net.variable(node.inputs[0]))


@operator("Where")
def where(node: Node, net: Network) -> None:
    cond, a, b = (operand(node, net, place) for place in (0, 1, 2))
    net.put(node, "select", cond=cond, a=a, b=b)


def operand(node: Node, net: Network, place: int) -> Any:
    """An input; a weight in the form that the model has it in."""
    tensor = node.inputs[place]
    found = net.variables.get(tensor)
    if found is not None:
        return found
    values = net.constant(tensor, f"operand '{tensor}'")
    if values.ndim < 2 or values.dtype.kind != "f":
        return net.variable(tensor)
    return net.weight(tensor, f"operand '{tensor}'")
