"""Operators of one operand that change each value by itself."""

import math

import numpy as np
import onnx

from onnx_lathe.runtime.targets.litert.emitter import FLOAT, INT32, INT64, NUMBERS, Emitter
from onnx_lathe.runtime.targets.litert.network import Network
from onnx_lathe.runtime.targets.litert.node import Node, Unsupported
from onnx_lathe.runtime.targets.litert.registry import operator

STORED = ("INT8", "INT16")
FLOATING = {
    "Exp": "EXP",
    "Log": "LOG",
    "Sqrt": "SQRT",
    "Sin": "SIN",
    "Cos": "COS",
    "Floor": "FLOOR",
    "Ceil": "CEIL",
    "Round": "ROUND",
}
LEAST, MOST = 1e-20, 1e10
"""Between them, erf is computed of a magnitude: below, it is less than float32 tells from 0, and above it is 1."""


@operator(*FLOATING)
def floating(node: Node, net: Network) -> None:
    """Of floats. ROUND rounds halves to even, as ONNX does."""
    emit = Emitter(node, net)
    emit.last(FLOATING[node.op], [emit.computed(0, {FLOAT})])


@operator("Abs")
def absolute(node: Node, net: Network) -> None:
    emit = Emitter(node, net)
    emit.leave(emit.magnitude(emit.computed(0, NUMBERS)))


@operator("Neg")
def negative(node: Node, net: Network) -> None:
    emit = Emitter(node, net)
    emit.last("NEG", [emit.computed(0, NUMBERS)])


@operator("Sign")
def sign(node: Node, net: Network) -> None:
    emit = Emitter(node, net)
    source = emit.computed(0, NUMBERS)
    if emit.type(source) == INT64:
        above = emit.maximum(source, emit.number(-1, INT64))
        emit.leave(emit.minimum(above, emit.number(1, INT64)))
        return
    emit.last("SIGN", [source])


@operator("Tan")
def tangent(node: Node, net: Network) -> None:
    emit = Emitter(node, net)
    source = emit.computed(0, {FLOAT})
    emit.leave(emit.div(emit.unary("SIN", source), emit.unary("COS", source)))


@operator("Atan", "Asin", "Acos")
def arc(node: Node, net: Network) -> None:
    """The angle whose tangent is x / 1, and with c = sqrt(1 - x^2) x / c or c / x. ATAN2 does not broadcast."""
    emit = Emitter(node, net)
    source = emit.computed(0, {FLOAT})
    one = emit.number(1.0)
    if node.op == "Atan":
        sizes = emit.run_time_sizes(emit.dims(source))
        other = emit.op("BROADCAST_TO", [one, sizes], emit.dims(source), FLOAT, "BroadcastToOptions")
    else:
        other = emit.unary("SQRT", emit.sub(one, emit.mul(source, source)))
    operands = [other, source] if node.op == "Acos" else [source, other]
    emit.last("ATAN2", operands, "ATan2Options")


@operator("Reciprocal")
def reciprocal(node: Node, net: Network) -> None:
    emit = Emitter(node, net)
    emit.leave(emit.div(emit.number(1.0), emit.computed(0, {FLOAT})))


@operator("Relu", integers=STORED)
def relu(node: Node, net: Network) -> None:
    emit = Emitter(node, net)
    source = emit.computed(0, NUMBERS)
    if node.on_integers or emit.type(source) == FLOAT:
        emit.last("RELU", [source])
    else:
        emit.last("MAXIMUM", [source, emit.number(0, emit.type(source))])


@operator("Sigmoid", integers=STORED)
def sigmoid(node: Node, net: Network) -> None:
    net.put(node, "LOGISTIC", [net.operand(node, 0)])


@operator("Tanh", integers=STORED)
def tanh(node: Node, net: Network) -> None:
    net.put(node, "TANH", [net.operand(node, 0)])


@operator("HardSwish", integers=("INT8",))
def hard_swish(node: Node, net: Network) -> None:
    net.put(node, "HARD_SWISH", [net.operand(node, 0)], "HardSwishOptions")


@operator("Gelu", integers=("INT8",))
def gelu(node: Node, net: Network) -> None:
    approximate = node.text("approximate", "none") == "tanh"
    net.put(node, "GELU", [net.operand(node, 0)], "GeluOptions", approximate=approximate)


@operator("LeakyRelu", integers=STORED)
def leaky_relu(node: Node, net: Network) -> None:
    alpha = node.number("alpha", 0.01)
    net.put(node, "LEAKY_RELU", [net.operand(node, 0)], "LeakyReluOptions", alpha=alpha)


@operator("PRelu", integers=("INT8",))
def prelu(node: Node, net: Network) -> None:
    """XNNPACK wants a slope with one value for each of the last axis; what lacks that is computed from its parts."""
    emit = Emitter(node, net)
    source, slope = emit.operand(0), emit.operand(1)
    if node.on_integers or emit.rank(slope) <= 1 or net.value(node.inputs[1]) is not None:
        net.put(node, "PRELU", [source, slope])
        return
    below = emit.mul(emit.minimum(source, emit.number(0.0)), slope)
    emit.leave(emit.add(emit.unary("RELU", source), below))


@operator("Elu", integers=("INT8",))
def elu(node: Node, net: Network) -> None:
    alpha = node.number("alpha", 1.0)
    emit = Emitter(node, net)
    if alpha == 1.0:
        net.put(node, "ELU", [net.operand(node, 0)])
    else:
        emit.in_float = node.on_integers
        emit.leave(_exponential_unit(emit, alpha, 1.0))


@operator("Celu")
def celu(node: Node, net: Network) -> None:
    emit = Emitter(node, net)
    alpha = node.number("alpha", 1.0)
    emit.leave(_exponential_unit(emit, alpha, alpha))


@operator("Selu")
def selu(node: Node, net: Network) -> None:
    emit = Emitter(node, net)
    alpha, gamma = node.number("alpha", 1.6732632423543772), node.number("gamma", 1.0507010221481323)
    emit.leave(emit.mul(_exponential_unit(emit, alpha, 1.0), emit.number(gamma)))


def _exponential_unit(emit: Emitter, alpha: float, width: float) -> int:
    """max(x, 0) + alpha * ELU(min(x, 0) / width)."""
    source = emit.operand()
    below = emit.minimum(source, emit.number(0.0))
    if width != 1.0:
        below = emit.mul(below, emit.number(1 / width))
    return emit.add(emit.unary("RELU", source), emit.mul(emit.unary("ELU", below), emit.number(alpha)))


@operator("HardSigmoid")
def hard_sigmoid(node: Node, net: Network) -> None:
    """max(0, min(1, alpha * x + beta)); with alpha 1/6 and beta 1/2 a RELU6."""
    emit = Emitter(node, net)
    alpha, beta = node.number("alpha", 0.2), node.number("beta", 0.5)
    if math.isclose(alpha, 1 / 6, rel_tol=1e-6) and beta == 0.5:
        line = emit.add(emit.read(), emit.number(3.0), "RELU6")
        emit.leave(emit.mul(line, emit.number(1 / 6)))
        return
    line = emit.add(emit.mul(emit.read(), emit.number(alpha)), emit.number(beta), "RELU")
    emit.leave(emit.minimum(line, emit.number(1.0)))


@operator("Swish")
def swish(node: Node, net: Network) -> None:
    emit = Emitter(node, net)
    source, alpha = emit.read(), node.number("alpha", 1.0)
    scaled = source if alpha == 1.0 else emit.mul(source, emit.number(alpha))
    emit.leave(emit.mul(source, emit.unary("LOGISTIC", scaled)))


@operator("Softplus")
def softplus(node: Node, net: Network) -> None:
    emit = Emitter(node, net)
    emit.leave(_softplus(emit, emit.read()))


def _softplus(emit: Emitter, source: int) -> int:
    """max(x, 0) + log(1 + exp(-|x|)), whose exponential is never too large."""
    power = emit.unary("EXP", emit.unary("NEG", emit.unary("ABS", source)))
    bend = emit.unary("LOG", emit.add(power, emit.number(1.0)))
    return emit.add(emit.unary("RELU", source), bend)


@operator("Mish")
def mish(node: Node, net: Network) -> None:
    emit = Emitter(node, net)
    source = emit.read()
    emit.leave(emit.mul(source, emit.unary("TANH", _softplus(emit, source))))


@operator("Softsign")
def softsign(node: Node, net: Network) -> None:
    emit = Emitter(node, net)
    source = emit.read()
    emit.leave(emit.div(source, emit.add(emit.unary("ABS", source), emit.number(1.0))))


@operator("ThresholdedRelu")
def thresholded_relu(node: Node, net: Network) -> None:
    emit = Emitter(node, net)
    source = emit.read()
    above = emit.pair("GREATER", source, emit.number(node.number("alpha", 1.0)))
    emit.leave(emit.select(above, source, emit.number(0.0)))


@operator("Shrink")
def shrink(node: Node, net: Network) -> None:
    """x + bias below -lambd, x - bias above lambd, else 0."""
    emit = Emitter(node, net)
    source = emit.computed(0, {FLOAT})
    bias, limit = emit.number(node.number("bias", 0.0)), node.number("lambd", 0.5)
    below = emit.select(
        emit.pair("LESS", source, emit.number(-limit)), emit.add(source, bias), emit.number(0.0)
    )
    above = emit.pair("GREATER", source, emit.number(limit))
    emit.leave(emit.select(above, emit.sub(source, bias), below))


@operator("Erf")
def error_function(node: Node, net: Network) -> None:
    """Sign(x) * (2 * GELU(m) / m - 1) with m = sqrt(2) * |x|: LiteRT has erf inside its GELU alone."""
    emit = Emitter(node, net)
    source = emit.computed(0, {FLOAT})
    size = emit.mul(emit.unary("ABS", source), emit.number(math.sqrt(2.0)))
    inner = emit.minimum(emit.maximum(size, emit.number(LEAST)), emit.number(MOST))
    curve = emit.op("GELU", [inner], options="GeluOptions", approximate=False)
    doubled = emit.mul(emit.div(curve, inner), emit.number(2.0))
    emit.leave(emit.mul(emit.unary("SIGN", source), emit.sub(doubled, emit.number(1.0))))


@operator("IsNaN")
def is_nan(node: Node, net: Network) -> None:
    """Nothing but NaN differs from itself."""
    source = net.read(node.inputs[0])
    net.put(node, "NOT_EQUAL", [source, source], "NotEqualOptions")


@operator("IsInf")
def is_infinite(node: Node, net: Network) -> None:
    emit = Emitter(node, net)
    source = emit.read()
    signs = [
        sign for sign, name in ((1, "detect_positive"), (-1, "detect_negative")) if node.integer(name, 1)
    ]
    if not signs:
        raise Unsupported("it detects neither infinity")
    limit = emit.constant(np.array(signs[0] * np.inf, np.float32), "infinity")
    emit.last("EQUAL", [source if len(signs) == 1 else emit.unary("ABS", source), limit])


@operator("Cast", "CastLike")
def cast(node: Node, net: Network) -> None:
    """Floats of all widths are float32 in the file; one that is cast to float16 is rounded to it."""
    emit = Emitter(node, net)
    source = emit.read()
    target = net.element(node.outputs[0])
    if "INT4" in (emit.type(source), target):
        raise Unsupported("LiteRT casts no integers of 4 bits")
    if emit.type(source) == FLOAT and target == "UINT8":
        # the kernel cuts off at 0 and 255, where ONNX Runtime takes the last eight bits
        source = emit.cast(source, INT32)
    if net.facts.types.get(node.outputs[0]) == onnx.TensorProto.FLOAT16:
        emit.leave(emit.cast(source, "FLOAT16"))
    elif emit.type(source) == target:
        net.name_output(node, source)
    else:
        kinds = {"inDataType": emit.type(source), "outDataType": target}
        net.put(node, "CAST", [source], "CastOptions", **kinds)


@operator("Hardmax")
def hardmax(node: Node, net: Network) -> None:
    """1 at the first of the largest values along an axis, else 0."""
    emit = Emitter(node, net)
    source = emit.computed(0, {FLOAT})
    rank = emit.rank(source)
    axis = node.integer("axis", -1 if node.opset >= 13 else 1) % rank
    shape = emit.dims(source)
    if node.opset < 13 and axis != rank - 1:
        raise Unsupported("it takes several axes together, as before opset 13: convert the model to opset 13")
    turned, back = emit.moved(source, axis, rank - 1)
    if shape[axis][0] != shape[axis][1]:
        raise Unsupported(f"the size of its axis {axis} depends on the size of the input")
    dims = emit.dims(turned)[:-1]
    place = emit.op(
        "ARG_MAX", [turned, emit.scalar(rank - 1)], dims, INT32, "ArgMaxOptions", outputType=INT32
    )
    values = [emit.scalar(shape[axis][0]), emit.number(1.0), emit.number(0.0)]
    hot = emit.op("ONE_HOT", [place, *values], (*dims, shape[axis]), FLOAT, "OneHotOptions", axis=-1)
    emit.leave(emit.transpose(hot, back))


@operator("Identity", "Dropout")
def identity(node: Node, net: Network) -> None:
    node.number("ratio", 0.5)
    if node.op == "Dropout" and node.given(2):
        training = net.value(node.inputs[2])
        if training is None or bool(np.any(training)):
            raise Unsupported("it is in training mode: export the model for inference")
    if len(node.outputs) > 1 and node.outputs[1]:
        raise Unsupported("its mask is read, which only counts in training")
    net.name_output(node, net.read(node.inputs[0]))
