"""Arithmetic, comparison and choice of several operands, value by value, with ONNX's broadcasting."""

from typing import Any

from onnx_lathe.runtime.targets.litert.emitter import BOOL, FLOAT, INT32, INT64, NUMBERS, Emitter
from onnx_lathe.runtime.targets.litert.network import Network
from onnx_lathe.runtime.targets.litert.node import Node, Unsupported
from onnx_lathe.runtime.targets.litert.registry import operator

PAIRS = {"Add": "ADD", "Sub": "SUB", "Mul": "MUL"}
SEVERAL = {"Sum": "ADD", "Mean": "ADD", "Max": "MAXIMUM", "Min": "MINIMUM"}
COMPARISONS = {
    "Equal": "EQUAL",
    "Greater": "GREATER",
    "GreaterOrEqual": "GREATER_EQUAL",
    "Less": "LESS",
    "LessOrEqual": "LESS_EQUAL",
}
LOGIC = {"And": "LOGICAL_AND", "Or": "LOGICAL_OR", "Xor": "NOT_EQUAL"}
MOST_FACTORS = 8
"""Whole exponents up to it become multiplications, which XNNPACK runs, as it does not POW."""


@operator("Add", "Sub", "Mul", fuses=True, integers=("INT8", "INT16"))
def pair(node: Node, net: Network) -> None:
    emit = Emitter(node, net)
    first, second = emit.computed(0, NUMBERS), emit.computed(1, NUMBERS)
    code = PAIRS[node.op]
    fields: dict[str, Any] = {} if code == "MUL" else {"potScaleInt16": False}
    emit.last(code, [first, second], fusedActivationFunction=node.activation, **fields)


@operator("Div", fuses=True)
def divide(node: Node, net: Network) -> None:
    """Integers are rounded towards zero by both."""
    emit = Emitter(node, net)
    if net.element(node.inputs[0]) != INT64:
        operands = [emit.computed(position, {FLOAT, INT32}) for position in (0, 1)]
    elif net.is_free(node.outputs[0]):  # sizes of tensors have fewer bits
        operands = [emit.cast(emit.read(position), INT32) for position in (0, 1)]
    else:
        raise Unsupported("LiteRT divides no integers of 64 bits: cast its operands to int32 or float32")
    emit.last("DIV", operands, fusedActivationFunction=node.activation)


@operator("Sum", "Mean", "Max", "Min")
def several(node: Node, net: Network) -> None:
    emit = Emitter(node, net)
    operands = [emit.computed(position, NUMBERS) for position in range(len(node.inputs))]
    result = operands[0]
    for other in operands[1:]:
        result = emit.pair(SEVERAL[node.op], result, other)
    if node.op == "Mean" and len(operands) > 1:
        if emit.type(result) != FLOAT:
            raise Unsupported("it takes the mean of integers: cast its operands to float32")
        result = emit.mul(result, emit.number(1 / len(operands)))
    emit.leave(result)


@operator("Pow")
def power(node: Node, net: Network) -> None:
    emit = Emitter(node, net)
    base, exponent = emit.read(0), net.value(node.inputs[1])
    kind = emit.type(base)
    if kind not in NUMBERS:
        raise Unsupported(f"it takes a power of {kind}: cast its base to float32 or int32")
    value = None if exponent is None or exponent.size != 1 else float(exponent.reshape(()))
    # a constant of more dimensions than the base has would give the result more
    same = exponent is not None and exponent.ndim <= emit.rank(base)
    if same and value is not None and (found := _known_power(emit, base, value)) is not None:
        emit.leave(found)
        return
    other = net.element(node.inputs[1])
    if kind == INT64 or (kind == INT32 and other == FLOAT):
        raise Unsupported(
            "LiteRT takes powers of float32, and whole ones of integers of 32 bits: cast its base to float32"
        )
    emit.last("POW", [base, emit.cast(emit.read(1), kind)])


def _known_power(emit: Emitter, base: int, exponent: float) -> int | None:
    """None for an exponent that needs POW."""
    if exponent == 0.5 and emit.type(base) == FLOAT:
        return emit.unary("SQRT", base)
    if exponent == -1.0 and emit.type(base) == FLOAT:
        return emit.div(emit.number(1.0), base)
    if exponent != round(exponent) or not 1 <= exponent <= MOST_FACTORS:
        return None
    result, square, rest = None, base, int(exponent)
    while rest:
        if rest & 1:
            result = square if result is None else emit.mul(result, square)
        rest >>= 1
        square = emit.mul(square, square) if rest else square
    return result


@operator("Mod")
def modulo(node: Node, net: Network) -> None:
    """FLOOR_MOD has the divisor's sign, as ONNX's of integers; with fmod=1 the result has the dividend's."""
    emit = Emitter(node, net)
    first, second = emit.computed(0, NUMBERS), emit.computed(1, NUMBERS)
    if not node.integer("fmod"):
        emit.last("FLOOR_MOD", [first, second])
        return
    rest = emit.pair("FLOOR_MOD", emit.magnitude(first), emit.magnitude(second))
    below = emit.pair("LESS", first, emit.number(0, emit.type(first)))
    emit.leave(emit.select(below, emit.unary("NEG", rest), rest))


@operator(*COMPARISONS)
def compare(node: Node, net: Network) -> None:
    emit = Emitter(node, net)
    allowed = NUMBERS | {BOOL} if node.op == "Equal" else NUMBERS
    first, second = emit.computed(0, allowed), emit.computed(1, allowed)
    emit.last(COMPARISONS[node.op], [first, second])


@operator(*LOGIC)
def logic(node: Node, net: Network) -> None:
    """Of two truths, one is if they are not equal."""
    emit = Emitter(node, net)
    emit.last(LOGIC[node.op], [emit.read(0), emit.read(1)])


@operator("Not")
def negate(node: Node, net: Network) -> None:
    net.put(node, "LOGICAL_NOT", [net.read(node.inputs[0])], "LogicalNotOptions")


@operator("Where")
def where(node: Node, net: Network) -> None:
    emit = Emitter(node, net)
    emit.leave(emit.select(emit.read(0), emit.read(1), emit.read(2)))


@operator("BitwiseXor")
def exclusive_or(node: Node, net: Network) -> None:
    emit = Emitter(node, net)
    allowed = {INT32, "INT16", "INT8", "UINT8"}
    first, second = emit.computed(0, allowed), emit.computed(1, allowed)
    emit.last("BITWISE_XOR", [first, second])
