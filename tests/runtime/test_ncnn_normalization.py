"""Normalizations as ncnn's layers, against ONNX Runtime."""

from collections.abc import Sequence

import numpy as np
import onnx
import pytest

from onnx_lathe.runtime.running import ort
from onnx_lathe.runtime.targets.ncnn.dialect import Layer
from tests.support.builders import build, random
from tests.support.ncnn import agree, refusals, types

CHANNELS = (1, 3, 4, 8, 16, 17)
"""ncnn packs 4, 8 or 16 channels, and has other code for each."""


def one(
    op: str, attributes: str, shape: tuple[int, ...], opset: int = 17, **weights: np.ndarray
) -> onnx.ModelProto:
    sizes = ", ".join(map(str, shape))
    inputs = ", ".join(["x", *weights])
    text = f"(float[{sizes}] x) => (float[{sizes}] y) {{ [node] y = {op} {attributes} ({inputs}) }}"
    return build(text, opset, **weights)


def statistics(channels: int) -> dict[str, np.ndarray]:
    variance = (np.abs(random(channels)) + 0.1).astype(np.float32)
    return {
        "scale": random(channels),
        "bias": random(channels),
        "mean": random(channels),
        "variance": variance,
    }


def affine(*shape: int) -> dict[str, np.ndarray]:
    return {"scale": random(*shape), "bias": random(*shape)}


def test_batch_normalization() -> None:
    for channels in CHANNELS:
        for shape in ((1, channels, 5, 7), (1, channels, 9), (1, channels), (1, channels, 2, 3, 4)):
            model = one("BatchNormalization", "<epsilon = 0.001>", shape, **statistics(channels))
            assert types(agree(model)) == ["BatchNorm"]
        agree(one("BatchNormalization", "", (6, channels), **statistics(channels)))
        agree(one("BatchNormalization", "", (2, channels, 5, 3), **statistics(channels)))


def test_batch_normalization_in_training_is_refused() -> None:
    text = """(float[1, 3, 5, 7] x) => (float[1, 3, 5, 7] y, float[3] m, float[3] v) {
        y, m, v = BatchNormalization <training_mode = 1> (x, scale, bias, mean, variance)
    }"""
    ((_, op, reason), *_) = refusals(build(text, **statistics(3)))
    assert (op, "training mode" in reason) == ("BatchNormalization", True)


def test_instance_normalization() -> None:
    for channels in CHANNELS:
        for shape in ((1, channels, 5, 7), (1, channels, 9), (1, channels, 2, 3, 4)):
            agree(
                one("InstanceNormalization", "<epsilon = 0.001>", shape, **affine(channels)), tolerance=2e-5
            )


@pytest.mark.parametrize("groups, channels", [(1, 6), (2, 6), (3, 24), (4, 16), (2, 32), (8, 32), (17, 17)])
def test_group_normalization(groups: int, channels: int) -> None:
    for shape in ((1, channels, 5, 7), (1, channels, 9)):
        attributes = f"<num_groups = {groups}, epsilon = 0.001>"
        agree(one("GroupNormalization", attributes, shape, 21, **affine(channels)), tolerance=2e-5)


@pytest.mark.parametrize("op, opset", [("LayerNormalization", 17), ("RMSNormalization", 23)])
def test_layer_normalization(op: str, opset: int) -> None:
    """The mean is left as it is where there is none to take away."""
    for size in CHANNELS[1:]:
        for shape in ((1, 5, size), (1, size), (1, 4, 5, size), (3, size), (2, 3, 4, size), (1, 16, size)):
            weights = affine(size)
            if op == "RMSNormalization":
                weights.pop("bias")
            agree(one(op, "<epsilon = 0.001>", shape, opset, **weights), tolerance=2e-5)


@pytest.mark.parametrize(
    "axis, shape", [(1, (16, 3, 5)), (2, (3, 5)), (-2, (3, 5)), (1, (1, 3, 5)), (2, (5,))]
)
def test_layer_normalization_over_several_axes(axis: int, shape: tuple[int, ...]) -> None:
    agree(one("LayerNormalization", f"<axis = {axis}>", (1, 16, 3, 5), **affine(*shape)), tolerance=2e-5)


def test_layer_normalization_without_bias_and_with_open_sizes() -> None:
    text = "(float[1, T, 24] x) => (float[1, T, 24] y) { y = LayerNormalization(x, scale) }"
    agree(build(text, scale=random(24)), {"x": (1, 3, 24)}, {"x": (1, 7, 24)})


def test_a_size_that_is_open_is_no_size_to_normalize_over() -> None:
    text = "(float[1, 3, T] x) => (float[1, 3, T] y) { y = LayerNormalization(x, scale) }"
    ((*_, reason),) = refusals(build(text, scale=random(1)), {"x": (1, 3, 24)}, {"x": (1, 3, 9)})
    assert reason == "a size that it normalizes over depends on the size of the input"


def test_lrn() -> None:
    for channels in CHANNELS:
        agree(one("LRN", "<size = 5, alpha = 0.2, beta = 0.6, bias = 1.5>", (1, channels, 5, 7)))
    agree(one("LRN", "<size = 3>", (1, 6, 5, 7)))
    ((*_, reason),) = refusals(one("LRN", "<size = 4>", (1, 6, 5, 7)))
    assert reason == "its size is 4; ncnn's window has as many channels on both sides"


@pytest.mark.parametrize("order", [1, 2])
def test_norms(order: int) -> None:
    for channels in CHANNELS:
        for axis in (1, 2, -1):
            model = one("LpNormalization", f"<p = {order}, axis = {axis}>", (1, channels, 5, 7))
            agree(model)
    agree(one("LpNormalization", f"<p = {order}>", (1, 5)), feeds={"x": np.zeros((1, 5), np.float32)})


def test_mean_and_variance() -> None:
    for channels in CHANNELS:
        agree(one("MeanVarianceNormalization", "<axes = [0, 2, 3]>", (1, channels, 5, 7), 13), tolerance=2e-5)
        agree(one("MeanVarianceNormalization", "<axes = [1, 2, 3]>", (1, channels, 5, 7), 13), tolerance=2e-5)


def in_float16(layers: Sequence[Layer], x: np.ndarray) -> np.ndarray:
    """What layers of arithmetic make of the blob x if each result, and each number of theirs, is stored in float16."""
    operations = {0: np.add, 1: np.subtract, 2: np.multiply, 3: np.divide, 4: np.maximum}
    operations |= {7: lambda a, b: b - a}
    reductions = {0: np.sum, 3: np.mean, 7: lambda v, **how: np.abs(v).sum(**how)}
    reductions |= {8: lambda v, **how: np.sqrt(np.square(v, dtype=np.float32).sum(**how))}
    blobs: dict[str, np.ndarray] = {}
    for layer in layers:
        given, kind = [blobs[name] for name in layer.bottoms], layer.params.get(0, 0)
        if layer.type == "Input":
            found = x
        elif layer.type == "Split":
            found = given[0]
        elif layer.type == "Threshold":
            found = given[0] > layer.params[0]
        elif layer.type == "UnaryOp":
            found = {4: np.square, 5: np.sqrt}[kind](given[0])
        elif layer.type == "Reduction":
            axes = tuple(layer.params[3])
            found = reductions[kind](given[0].astype(np.float32), axis=axes, keepdims=True)
        else:
            assert layer.type == "BinaryOp"
            found = operations[kind](*given, *([np.float16(layer.params[2])] if layer.params.get(1) else []))
        blobs |= dict.fromkeys(layer.tops, np.asarray(found).astype(np.float16))
    return blobs["y"]


@pytest.mark.parametrize("order", [1, 2])
@pytest.mark.parametrize("value", [0.0, 1.0])
def test_a_norm_of_nothing_in_float16(order: int, value: float) -> None:
    x = np.full((1, 4, 5), value, np.float32)
    model = one("LpNormalization", f"<p = {order}>", x.shape)
    wanted = ort.run(ort.session(model), {"x": x})["y"][0]
    np.testing.assert_allclose(in_float16(agree(model, feeds={"x": x}), x[0]), wanted, rtol=2e-3)


def test_no_deviation_in_float16() -> None:
    """ONNX's definition makes 0 of values that are all alike; ONNX Runtime divides 0 by 0."""
    layers = agree(one("MeanVarianceNormalization", "<axes = [0, 2, 3]>", (1, 2, 4, 5), 13), tolerance=2e-5)
    assert not in_float16(layers, np.ones((2, 4, 5), np.float32)).any()


def test_small_norms_are_divided_by() -> None:
    agree(one("LpNormalization", "<p = 2>", (1, 5)), feeds={"x": random(1, 5) * np.float32(1e-12)})


def test_open_sizes_stay_open() -> None:
    text = """(float[1, 6, H, W] x) => (float[1, 6, H, W] y) {
        a = InstanceNormalization(x, scale, bias)
        b = BatchNormalization(a, scale, bias, bias, variance)
        y = LpNormalization <axis = 1> (b)
    }"""
    weights = {name: value for name, value in statistics(6).items() if name != "mean"}
    agree(build(text, **weights), {"x": (1, 6, 4, 5)}, {"x": (1, 6, 7, 2)}, tolerance=2e-5)
