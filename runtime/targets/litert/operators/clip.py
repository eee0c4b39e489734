"""Clip that is not part of the operator in front of it."""

import numpy as np

from onnx_lathe.runtime.targets.litert.emitter import FLOAT, NUMBERS, Emitter
from onnx_lathe.runtime.targets.litert.network import Network
from onnx_lathe.runtime.targets.litert.node import Node, Unsupported
from onnx_lathe.runtime.targets.litert.registry import operator

WORDS = {(0.0, 6.0): "RELU6", (-1.0, 1.0): "RELU_N1_TO_1", (0.0, 1.0): "RELU_0_TO_1", (0.0, np.inf): "RELU"}
LARGEST = float(np.finfo(np.float32).max)
CODES = ("MAXIMUM", "MINIMUM")


@operator("Clip", integers=("INT8", "INT16"), data=(0,))
def clip(node: Node, net: Network) -> None:
    """Bounds that are computed when it runs are operands of a maximum and a minimum, as those that no activation has."""
    emit = Emitter(node, net)
    source = emit.computed(0, NUMBERS)
    if node.on_integers:
        source = net.requantized(source, net.quantization(node.outputs[0]), node.inputs[0])
    bounds = [_bound(node, net, position, name) for position, name in ((1, "min"), (2, "max"))]
    low, high = (bound if isinstance(bound, float) else np.nan if bound else absent
                 for bound, absent in zip(bounds, (-np.inf, np.inf), strict=True))  # fmt: skip
    word = WORDS.get((low, high))
    if word and (node.on_integers or emit.type(source) == FLOAT):
        net.put(node, word, [source])
        return
    parts = [
        (code, bound, position)
        for code, bound, position in zip(CODES, bounds, (1, 2), strict=True)
        if bound is not None
    ]
    for code, bound, position in parts:
        other = _stored(emit, source, bound) if isinstance(bound, float) else emit.computed(position, NUMBERS)
        source = emit.pair(code, source, other)
    emit.leave(source)


def _bound(node: Node, net: Network, position: int, name: str) -> float | str | None:
    """A number, the name of a tensor that is computed, or None for what bounds nothing."""
    if node.opset < 11:
        value = node.number(name, -np.inf if name == "min" else np.inf)
    elif not node.given(position):
        return None
    elif (values := net.value(node.inputs[position])) is None:
        return node.inputs[position]
    else:
        value = float(values.reshape(()))
    if np.isnan(value):
        raise Unsupported(f"its bound '{name}' is not a number")
    if np.isinf(value) or abs(value) == LARGEST:
        return None if (value < 0) == (name == "min") else float(np.copysign(LARGEST, value))
    return value


def _stored(emit: Emitter, source: int, bound: float) -> int:
    """The bound as a constant of the source's type and scale."""
    one = emit.net.tensors[source]
    if one.quantization is None:
        return emit.number(bound, one.type)
    limits = np.iinfo(np.int8 if one.type == "INT8" else np.int16)
    level = np.rint(bound / one.quantization.scales[0]) + one.quantization.zero_points[0]
    clipped = np.array(np.clip(level, limits.min, limits.max))
    return emit.net.store(clipped, one.type, f"{emit.label}_bound", one.quantization)
