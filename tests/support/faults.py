"""A small network, and the same with one thing wrong."""

from collections.abc import Callable

import numpy as np
import onnx
from onnx import numpy_helper

from tests.support.builders import build

SAMPLES = 6
TEXT = """(float[batch, 3, 8, 8] x) => (float[batch, 10] y) {
    a = Conv <pads = [1, 1, 1, 1]> (x, w1, b1)
    a_relu = Relu(a)
    b = Conv <pads = [1, 1, 1, 1]> (a_relu, w2, b2)
    b_relu = Relu(b)
    c = Conv <pads = [1, 1, 1, 1]> (b_relu, w3, b3)
    c_relu = Relu(c)
    pooled = GlobalAveragePool(c_relu)
    flat = Flatten(pooled)
    y = Gemm <transB = 1> (flat, w4, b4)
}"""


def network() -> onnx.ModelProto:
    """Three convolutions of 8 channels, each with a Relu, and a classifier of 10; always the same weights."""
    generator = np.random.default_rng(5)

    def drawn(*shape: int) -> np.ndarray:
        fan_in = int(np.prod(shape[1:])) or 1
        return (generator.standard_normal(shape) * np.sqrt(2 / fan_in)).astype(np.float32)

    shapes = {"w1": (8, 3, 3, 3), "w2": (8, 8, 3, 3), "w3": (8, 8, 3, 3), "w4": (10, 8)}
    weights = {name: drawn(*shape) for name, shape in shapes.items()}
    biases = {f"b{name[1]}": 0.1 * drawn(shape[0]) for name, shape in shapes.items()}
    model = build(TEXT, 17, **weights, **biases)
    for node in model.graph.node:
        node.name = f"node_{node.output[0]}"
    return model


def samples() -> np.ndarray:
    """float32 [SAMPLES, 3, 8, 8], always the same."""
    return np.random.default_rng(7).standard_normal((SAMPLES, 3, 8, 8)).astype(np.float32)


def copied(model: onnx.ModelProto) -> onnx.ModelProto:
    copy = onnx.ModelProto()
    copy.CopyFrom(model)
    return copy


def changed(model: onnx.ModelProto, name: str, change: Callable[[np.ndarray], np.ndarray]) -> onnx.ModelProto:
    """A copy whose initializer is what `change` makes of a copy of it."""
    copy = copied(model)
    tensor = next(one for one in copy.graph.initializer if one.name == name)
    value = change(numpy_helper.to_array(tensor).copy())
    tensor.CopyFrom(numpy_helper.from_array(value, name))
    return copy


def channel_times(factor: float, channel: int = 2) -> Callable[[np.ndarray], np.ndarray]:
    def change(value: np.ndarray) -> np.ndarray:
        value[channel] *= factor
        return value

    return change


def spliced(model: onnx.ModelProto, tensor: str, *nodes: onnx.NodeProto) -> onnx.ModelProto:
    """A copy in which `nodes`, which read `tensor` and write `tensor`_new, stand before all other readers of it."""
    copy = copied(model)
    place = next(index for index, node in enumerate(copy.graph.node) if tensor in node.output)
    later = [*copy.graph.node[place + 1 :]]
    for node in later:
        node.input[:] = [f"{tensor}_new" if name == tensor else name for name in node.input]
    kept = [*copy.graph.node[: place + 1], *nodes, *later]
    kept = [onnx.NodeProto.FromString(node.SerializeToString()) for node in kept]
    del copy.graph.node[:]
    copy.graph.node.extend(kept)
    onnx.checker.check_model(copy)
    return copy


def node(operator: str, inputs: list[str], output: str, **attributes: object) -> onnx.NodeProto:
    return onnx.helper.make_node(operator, inputs, [output], name=f"node_{output}", **attributes)
