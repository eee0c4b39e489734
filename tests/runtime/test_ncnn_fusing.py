"""Small layers of ncnn that become one: what they become, that numbers stay, and what is left alone."""

import math

import numpy as np
import onnx
import pytest

from tests.support.builders import build, random
from tests.support.ncnn import agree, types

SHAPES = ("1, 5", "1, 16, 7, 5", "1, 3, 8")


def one(value: float) -> np.ndarray:
    return np.float32(value)


def values(text: str, shape: str, **constants: float) -> onnx.ModelProto:
    """x -> y, both of this shape."""
    stored = {name: one(value) for name, value in constants.items()}
    return build(f"(float[{shape}] x) => (float[{shape}] y) {{ {text} }}", **stored)


SWISH = "g = Sigmoid(x) y = Mul(g, x)"
HARD_SIGMOID = "a = Add(x, three) c = Clip(a, zero, six) y = Div(c, six)"
HARD_SWISH = (
    "g = HardSigmoid <alpha = 0.16666667, beta = 0.5> (x) y = Mul(x, g)",
    "a = Add(x, three) c = Clip(a, zero, six) g = Div(c, six) y = Mul(x, g)",
    "a = Add(three, x) c = Clip(a, zero, six) m = Mul(c, x) y = Div(m, six)",
)
GELU = (
    "d = Div(x, root) e = Erf(d) a = Add(e, one) m = Mul(x, a) y = Mul(m, half)",
    "d = Div(x, root) e = Erf(d) a = Add(one, e) h = Mul(half, x) y = Mul(h, a)",
    "d = Mul(x, inverse) e = Erf(d) a = Add(e, one) h = Mul(a, half) y = Mul(x, h)",
    "d = Mul(x, inverse) e = Erf(d) a = Add(e, one) m = Mul(a, x) y = Div(m, two)",
)
TANH_GELU = (
    "s = Mul(x, x) q = Mul(x, s) w = Mul(q, weight) a = Add(x, w) t = Mul(a, scale) e = Tanh(t) "
    "p = Add(e, one) h = Mul(x, half) y = Mul(h, p)",
    "q = Pow(x, cubed) w = Mul(weight, q) a = Add(w, x) t = Mul(scale, a) e = Tanh(t) "
    "p = Add(one, e) m = Mul(x, p) y = Mul(half, m)",
)
CONSTANTS = {
    "one": 1.0,
    "two": 2.0,
    "three": 3.0,
    "cubed": 3.0,
    "six": 6.0,
    "zero": 0.0,
    "half": 0.5,
    "root": math.sqrt(2),
    "inverse": math.sqrt(0.5),
    "weight": 0.044715,
    "scale": math.sqrt(2 / math.pi),
}


@pytest.mark.parametrize(
    "text, layer",
    [
        (SWISH, "Swish"),
        ("n = Mul(x, one) g = Sigmoid(n) y = Mul(x, g)", "Swish"),
        (HARD_SIGMOID, "HardSigmoid"),
        *((text, "HardSwish") for text in HARD_SWISH),
        *((text, "GELU") for text in (*GELU, *TANH_GELU)),
        ("s = Softplus(x) t = Tanh(s) y = Mul(x, t)", "Mish"),
    ],
)
@pytest.mark.parametrize("shape", SHAPES)
def test_activations(text: str, layer: str, shape: str) -> None:
    model = values(text, shape, **CONSTANTS)
    size = tuple(int(part) for part in shape.split(","))
    wide = np.linspace(-12, 12, math.prod(size), dtype=np.float32).reshape(size)
    for feeds in ({"x": wide}, {"x": random(*size)}):
        assert types(agree(model, feeds=feeds)) == [layer]


@pytest.mark.parametrize(
    "text, count",
    [
        ("n = Neg(x) g = Sigmoid(n) y = Mul(g, x)", 3),
        ("n = Mul(x, two) g = Sigmoid(n) y = Mul(g, x)", 3),
        ("a = Add(x, three) c = Clip(a, zero, three) y = Div(c, six)", 3),
        ("a = Add(x, three) c = Clip(a, one, six) y = Div(c, six)", 3),
        ("d = Div(x, two) e = Erf(d) a = Add(e, one) m = Mul(x, a) y = Mul(m, half)", 5),
        ("d = Div(x, root) e = Erf(d) a = Add(e, half) m = Mul(x, a) y = Mul(m, half)", 5),
        ("d = Div(x, root) e = Erf(d) a = Add(e, one) m = Mul(x, a) y = Mul(m, two)", 5),
        ("d = Div(x, root) e = Erf(d) a = Add(e, one) m = Mul(d, a) y = Mul(m, half)", 5),
        ("s = Softplus(x) t = Sigmoid(s) y = Mul(x, t)", 1),
    ],
)
def test_near_misses_stay(text: str, count: int) -> None:
    layers = [layer for layer in types(agree(values(text, "1, 3, 8", **CONSTANTS))) if layer != "Split"]
    assert not {"Swish", "HardSigmoid", "HardSwish", "GELU", "Mish"}.intersection(layers)
    assert len(layers) >= count


@pytest.mark.parametrize("kept", ["e", "a", "m"])
def test_what_is_read_elsewhere_stays(kept: str) -> None:
    text = f"(float[1, 3, 8] x) => (float[1, 3, 8] y, float[1, 3, 8] {kept}) {{ {GELU[0]} }}"
    layers = types(agree(build(text, **{name: one(value) for name, value in CONSTANTS.items()})))
    assert "GELU" not in layers
    assert "Erf" in layers


def test_a_value_that_two_layers_read_stays() -> None:
    text = GELU[0].replace("y = ", "z = ") + " y = Add(z, a)"
    assert "Erf" in types(agree(values(text, "1, 3, 8", **CONSTANTS)))


@pytest.mark.parametrize("rows", ["1", "7", "2, 7", "2, 3, 7"])
def test_a_bias_becomes_part_of_the_product(rows: str) -> None:
    text = f"(float[1, {rows}, 5] x) => (float[1, {rows}, 4] y) {{ m = MatMul(x, w) y = Add(b, m) }}"
    layers = agree(build(text, w=random(5, 4), b=random(4)))
    assert {"BinaryOp", "MemoryData"}.isdisjoint(types(layers))
    product = next(layer for layer in layers if layer.type in ("InnerProduct", "Gemm"))
    assert product.params[1 if product.type == "InnerProduct" else 10] in (1, 4)


def test_a_bias_and_an_activation_become_part_of_the_product() -> None:
    text = "(float[1, 5] x) => (float[1, 4] y) { m = MatMul(x, w) a = Add(m, b) y = Relu(a) }"
    (layer,) = agree(build(text, w=random(5, 4), b=random(4)))[1:]
    assert (layer.type, layer.params[1], layer.params[9], layer.tops) == ("InnerProduct", 1, 1, ["y"])
    assert len(layer.nodes) == 3


def test_a_bias_of_an_int8_product() -> None:
    text = """(float[1, 7, 5] x) => (float[1, 7, 4] y) {
        q = QuantizeLinear(x, scale, zero)
        d = DequantizeLinear(q, scale, zero)
        w = DequantizeLinear <axis = 1> (codes, scales)
        m = MatMul(d, w)
        y = Add(m, b)
    }"""
    codes = np.random.default_rng(0).integers(-127, 128, (5, 4)).astype(np.int8)
    scales = np.array([0.01, 0.02, 0.03, 0.04], np.float32)
    layers = agree(
        build(text, scale=one(0.05), zero=np.int8(0), codes=codes, scales=scales, b=random(4)), tolerance=2e-6
    )
    (layer,) = [layer for layer in layers if layer.type == "InnerProduct"]
    assert (layer.params[1], len(layer.weights)) == (1, 4)


@pytest.mark.parametrize("added", [(7, 4), (7, 1), (1, 7, 1)])
def test_what_is_added_to_rows_stays(added: tuple[int, ...]) -> None:
    text = "(float[1, 7, 5] x) => (float[1, 7, 4] y) { m = MatMul(x, w) y = Add(m, b) }"
    assert "BinaryOp" in types(agree(build(text, w=random(5, 4), b=random(*added))))


def test_a_second_bias_stays() -> None:
    text = "(float[1, 7, 5] x) => (float[1, 7, 4] y) { m = Gemm(x, w, b) y = Add(m, b) }"
    model = build(text.replace("1, 7", "7"), w=random(5, 4), b=random(4))
    assert types(agree(model)).count("BinaryOp") == 1


NORMAL = "m = ReduceMean <axes = [-1]> (x) d = Sub(x, m) {square} v = ReduceMean <axes = [-1]> (s) e = Add(v, epsilon) "
SQUARES = ("s = Pow(d, two)", "s = Mul(d, d)")
DIVISIONS = ("r = Sqrt(e) n = Div(d, r)", "r = Sqrt(e) i = Reciprocal(r) n = Mul(d, i)")


def normalization(text: str, shape: str, **stored: np.ndarray) -> onnx.ModelProto:
    width = int(shape.split(",")[-1])
    known = {"two": one(2.0), "epsilon": one(1e-5), "weight": random(width), "bias": random(width)} | stored
    return build(f"(float[{shape}] x) => (float[{shape}] y) {{ {text} }}", **known)


@pytest.mark.parametrize("square", SQUARES)
@pytest.mark.parametrize("division", DIVISIONS)
@pytest.mark.parametrize("shape", ["1, 7", "1, 5, 16", "1, 8, 5, 3", "2, 16, 4, 5"])
def test_layer_normalization(square: str, division: str, shape: str) -> None:
    text = NORMAL.format(square=square) + division + " w = Mul(weight, n) y = Add(w, bias)"
    assert types(agree(normalization(text, shape))) == ["LayerNorm"]


@pytest.mark.parametrize(
    "text",
    [
        NORMAL.format(square=SQUARES[0]) + DIVISIONS[0] + " y = Mul(n, weight)",
        NORMAL.format(square="s = Mul(x, d)").replace("Add(v, epsilon)", "Abs(v)")
        + DIVISIONS[0]
        + " w = Mul(n, weight) y = Add(w, bias)",
        NORMAL.format(square="s = Pow(x, two)") + DIVISIONS[0] + " w = Mul(n, weight) y = Add(w, bias)",
        NORMAL.format(square=SQUARES[0]) + "r = Sqrt(e) n = Div(x, r) w = Mul(n, weight) y = Add(w, bias)",
        NORMAL.format(square=SQUARES[0])
        + DIVISIONS[0]
        + " w = Mul(n, weight) z = Add(w, bias) y = Add(z, m)",
        NORMAL.format(square=SQUARES[0]).replace("axes = [-1]", "axes = [1]")
        + DIVISIONS[0]
        + " w = Mul(n, weight) y = Add(w, bias)",
    ],
)
def test_what_is_no_layer_normalization_stays(text: str) -> None:
    layers = types(agree(normalization(text, "1, 5, 8"), tolerance=1e-4))  # divides by what may be small
    assert "LayerNorm" not in layers
    assert "Reduction" in layers


def test_a_weight_for_more_than_the_last_dimension_stays() -> None:
    text = NORMAL.format(square=SQUARES[0]) + DIVISIONS[0] + " w = Mul(n, weight) y = Add(w, bias)"
    for shape in ((5, 8), (5, 1)):
        assert "LayerNorm" not in types(agree(normalization(text, "1, 5, 8", weight=random(*shape))))
