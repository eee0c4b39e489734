"""Operators that change each value by itself as ncnn's layers, against ONNX Runtime."""

import numpy as np
import onnx
import pytest

from tests.support.builders import build, random
from tests.support.ncnn import agree, refusals, types

CHANNELS = (1, 3, 4, 8, 16, 17)
"""ncnn packs 4, 8 or 16 channels, and has other code for each."""

INTERESTING = np.array(
    [-1000.0, -90.0, -20.0, -3.5, -3.0, -2.5, -1.5, -1.0, -0.5, -1e-3, -0.0, 0.0, 1e-3, 0.3, 0.5]
    + [1.0, 1.5, 2.5, 3.0, 3.5, 6.0, 20.0, 90.0, 1000.0],
    np.float32,
)


def one(
    op: str, attributes: str, shape: tuple[int, ...], opset: int = 17, **initializers: np.ndarray
) -> onnx.ModelProto:
    sizes = ", ".join(map(str, shape))
    inputs = ", ".join(["x", *initializers])
    return build(
        f"(float[{sizes}] x) => (float[{sizes}] y) {{ [node] y = {op} {attributes} ({inputs}) }}",
        opset,
        **initializers,
    )


def feeds(shape: tuple[int, ...], low: float, high: float) -> list[dict[str, np.ndarray]]:
    """Values of usual size, and such that are not, inside the bounds."""
    usual = np.clip(random(*shape) * 3, max(low, -1e3), min(high, 1e3))
    picked = INTERESTING[np.clip(INTERESTING, low, high) == INTERESTING]
    return [{"x": values.astype(np.float32)} for values in (usual, np.resize(picked, shape))]


@pytest.mark.parametrize(
    "op, attributes, opset, low, high",
    [
        ("Relu", "", 17, -np.inf, np.inf),
        ("LeakyRelu", "", 17, -np.inf, np.inf),
        ("LeakyRelu", "<alpha = 0.3>", 17, -np.inf, np.inf),
        ("Elu", "", 17, -np.inf, np.inf),
        ("Elu", "<alpha = 0.7>", 17, -np.inf, np.inf),
        ("Selu", "", 17, -np.inf, np.inf),
        ("Celu", "", 17, -np.inf, np.inf),
        ("Celu", "<alpha = 0.6>", 17, -np.inf, np.inf),
        ("Sigmoid", "", 17, -np.inf, np.inf),
        ("HardSigmoid", "", 17, -np.inf, np.inf),
        ("HardSigmoid", "<alpha = 0.16666667, beta = 0.4>", 17, -np.inf, np.inf),
        ("HardSwish", "", 17, -np.inf, np.inf),
        ("Tanh", "", 17, -np.inf, np.inf),
        ("Softplus", "", 17, -np.inf, np.inf),
        ("Softsign", "", 17, -np.inf, np.inf),
        ("Mish", "", 18, -np.inf, np.inf),
        ("Gelu", "", 20, -20, 20),
        ("Gelu", '<approximate = "tanh">', 20, -20, 20),
        ("ThresholdedRelu", "", 17, -np.inf, np.inf),
        ("ThresholdedRelu", "<alpha = 0.5>", 17, -np.inf, np.inf),
        ("Shrink", "<lambd = 1.5, bias = 0.5>", 17, -np.inf, np.inf),
        ("Erf", "", 17, -np.inf, np.inf),
        ("Exp", "", 17, -90, 6),
        ("Log", "", 17, 1e-6, np.inf),
        ("Sqrt", "", 17, 0, np.inf),
        ("Abs", "", 17, -np.inf, np.inf),
        ("Neg", "", 17, -np.inf, np.inf),
        ("Floor", "", 17, -np.inf, np.inf),
        ("Ceil", "", 17, -np.inf, np.inf),
        ("Round", "", 17, -np.inf, np.inf),
        ("Sin", "", 17, -np.inf, np.inf),
        ("Cos", "", 17, -np.inf, np.inf),
        ("Tan", "", 17, -1.5, 1.5),
        ("Asin", "", 17, -1, 1),
        ("Acos", "", 17, -1, 1),
        ("Atan", "", 17, -np.inf, np.inf),
        ("Reciprocal", "", 17, 1e-3, np.inf),
        ("Sign", "", 17, -np.inf, np.inf),
    ],
)
def test_functions(op: str, attributes: str, opset: int, low: float, high: float) -> None:
    for channels in CHANNELS:
        for shape in ((1, channels, 5, 7), (1, channels, 29), (1, channels + 32)):
            for given in feeds(shape, low, high):
                agree(one(op, attributes, shape, opset), feeds=given)


@pytest.mark.parametrize(
    "slope, layer",
    [
        ((1,), "PReLU"),
        ((1, 1, 1), "PReLU"),
        ((0, 1, 1), "PReLU"),
        ((1, 0, 1, 1), "PReLU"),
        ((7,), "BinaryOp"),
        ((5, 1), "BinaryOp"),
        ((0, 5, 7), "BinaryOp"),
    ],
)
def test_slopes_of_prelu(slope: tuple[int, ...], layer: str) -> None:
    """A size of 0 stands for the number of channels."""
    for channels in CHANNELS:
        values = random(*(size or channels for size in slope))
        layers = agree(one("PRelu", "", (1, channels, 5, 7), slope=values))
        assert types(layers)[-1] == ("PReLU" if values.size == 1 else layer)


def test_a_slope_for_each_value_of_a_vector() -> None:
    assert types(agree(one("PRelu", "", (1, 19), slope=random(19)))) == ["PReLU"]


def test_a_slope_that_is_computed_is_refused() -> None:
    model = build("(float[1, 3] x, float[3] slope) => (float[1, 3] y) { y = PRelu(x, slope) }")
    assert [reason for _, _, reason in refusals(model)] == ["its slope is computed at run time"]


@pytest.mark.parametrize(
    "low, high, layer",
    [(0.0, None, "ReLU"), (None, 0.5, "Clip"), (-0.5, None, "Clip"), (0.0, 6.0, "Clip"), (None, None, None)],
)
@pytest.mark.parametrize("opset", [6, 11, 13])
def test_bounds_of_clip(low: float | None, high: float | None, layer: str | None, opset: int) -> None:
    bounds = {name: value for name, value in (("low", low), ("high", high)) if value is not None}
    if opset == 6:
        names = {"low": "min", "high": "max"}
        written = ", ".join(f"{names[name]} = {value}" for name, value in bounds.items())
        clip, constants = f"Clip {f'<{written}>' if written else ''} (a)", {}
    else:
        clip = f"Clip(a, {'low' if low is not None else ''}, {'high' if high is not None else ''})"
        constants = {name: np.float32(value) for name, value in bounds.items()}
    text = f"(float[1, 3, 5] x) => (float[1, 3, 5] y) {{ a = Neg(x) y = {clip} }}"
    assert types(agree(build(text, opset, **constants))) == ["UnaryOp", *([layer] if layer else [])]


def test_bounds_that_cross_give_the_upper() -> None:
    low, high = np.float32(0.5), np.float32(-0.5)
    agree(build("(float[1, 5] x) => (float[1, 5] y) { y = Clip(x, low, high) }", low=low, high=high))


def test_bounds_that_are_computed() -> None:
    for shape in ("1, 16, 5, 7", "1, 3, 9", "1, 7", "5"):
        text = f"(float[{shape}] x, float low) => (float[{shape}] y) {{ y = Clip(x, low, high) }}"
        agree(build(text, high=np.float32(0.7)))
    text = """(float[1, 3, 9] x) => (float[1, 3, 9] y) {
        largest = ReduceMax <keepdims = 0> (x) low = Sub(largest, reach) y = Clip(x, low)
    }"""
    agree(build(text, reach=np.float32(1)))


def test_integers_are_refused() -> None:
    model = build("(int64[1, 3] x) => (int64[1, 3] y) { y = Abs(x) }")
    assert [reason for _, _, reason in refusals(model)] == [
        "it computes with integers, and ncnn with float32"
    ]


def test_rounding_is_to_even_and_special_values_stay() -> None:
    halves = np.resize(np.array([-2.5, -1.5, -0.5, 0.5, 1.5, 2.5], np.float32), (1, 16, 6))
    agree(one("Round", "", (1, 16, 6)), feeds={"x": halves}, tolerance=0.0)
    zeros = np.resize(np.array([-1.0, 0.0, 1.0], np.float32), (1, 16, 6))
    agree(one("Sign", "", (1, 16, 6)), feeds={"x": zeros}, tolerance=0.0)


def test_an_open_size_stays_open() -> None:
    text = "(float[1, 3, H, W] x) => (float[1, 3, H, W] y) { a = Softplus(x) y = HardSwish(a) }"
    agree(build(text), {"x": (1, 3, 4, 5)}, {"x": (1, 3, 7, 2)})


@pytest.mark.parametrize("alpha", [1.0, 0.0, -0.5])
def test_a_threshold_of_what_is_infinite(alpha: float) -> None:
    text = f"(float[1, 6] x) => (float[1, 6] y) {{ t = ThresholdedRelu<alpha = {alpha}>(x) y = Sigmoid(t) }}"
    feeds = {"x": np.array([[-np.inf, np.inf, 0, 2, -0.25, alpha]], np.float32)}
    agree(build(text), feeds=feeds)
