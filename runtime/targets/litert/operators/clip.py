"""Clip that is not part of the operator in front of it."""

import numpy as np

from onnx_lathe.runtime.targets.litert.network import Network
from onnx_lathe.runtime.targets.litert.node import Node
from onnx_lathe.runtime.targets.litert.registry import operator

WORDS = {(0.0, 6.0): "RELU6", (-1.0, 1.0): "RELU_N1_TO_1", (0.0, 1.0): "RELU_0_TO_1", (0.0, np.inf): "RELU"}


@operator("Clip", integers=("INT8", "INT16"), data=(0,))
def clip(node: Node, net: Network) -> None:
    bounds = [_bound(node, net, position, name) for position, name in ((1, "min"), (2, "max"))]
    low, high = (None if bound is None or np.isinf(bound) else bound for bound in bounds)
    source, floats = net.operand(node, 0), net.element(node.inputs[0]) == "FLOAT32"
    if node.on_integers:
        source = net.requantized(source, net.quantization(node.outputs[0]), node.inputs[0])
    word = WORDS.get((-np.inf if low is None else low, np.inf if high is None else high))
    if word and floats:
        net.put(node, word, [source])
        return
    steps = [(code, bound) for code, bound in (("MAXIMUM", low), ("MINIMUM", high)) if bound is not None]
    if not steps:
        net.name_output(node, source)
        return
    for code, bound in steps[:-1]:
        inputs = [source, _stored(net, node, source, bound)]
        source = net.inner(
            code,
            f"{node.outputs[0]}_{code.lower()}",
            inputs,
            net.tensors[source].shape,
            "MaximumMinimumOptions",
        )
    code, bound = steps[-1]
    net.put(node, code, [source, _stored(net, node, source, bound)], "MaximumMinimumOptions")


def _bound(node: Node, net: Network, position: int, name: str) -> float | None:
    if node.given(position):
        return float(net.constant(node.inputs[position], name).reshape(-1)[0])
    value = node.number(name, np.nan)
    return None if np.isnan(value) else value


def _stored(net: Network, node: Node, source: int, bound: float) -> int:
    """The bound as a constant of the source's type and scale."""
    one = net.tensors[source]
    if one.quantization is None:
        return net.store(
            np.array(bound).astype(np.float32 if one.type == "FLOAT32" else np.int64),
            one.type,
            f"{node.name}_bound",
        )
    limits = np.iinfo(np.int8 if one.type == "INT8" else np.int16)
    level = np.rint(bound / one.quantization.scales[0]) + one.quantization.zero_points[0]
    return net.store(
        np.array(np.clip(level, limits.min, limits.max)), one.type, f"{node.name}_bound", one.quantization
    )
