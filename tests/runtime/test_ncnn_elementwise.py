"""Operators of several operands as ncnn's layers, against ONNX Runtime."""

import itertools

import numpy as np
import onnx
import pytest

from tests.support.builders import build, random
from tests.support.ncnn import agree, random_feeds, refusals, types

CHANNELS = (1, 3, 4, 8, 16, 17)
"""ncnn packs 4, 8 or 16 channels, and has other code for each."""


def shaped(shape: tuple[int, ...]) -> str:
    return f"float[{', '.join(map(str, shape))}]" if shape else "float"


def pair(
    op: str, first: tuple[int, ...], second: tuple[int, ...], constant: str = "", opset: int = 17
) -> onnx.ModelProto:
    """`constant`: "first" or "second" if that operand is one."""
    result = np.broadcast_shapes(first, second)
    inputs = {"first": f"{shaped(first)} a", "second": f"{shaped(second)} b"}
    values = {"first": ("a", first), "second": ("b", second)}
    inputs.pop(constant, None)
    stored = {}
    if constant:
        name, shape = values[constant]
        stored[name] = (np.abs(random(*shape)) + 0.5).astype(np.float32)
    body = "p = Abs(a) y = Pow(p, b)" if op == "Pow" else f"y = {op}(a, b)"
    return build(f"({', '.join(inputs.values())}) => ({shaped(result)} y) {{ {body} }}", opset, **stored)


def positive(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    """Inputs above 0.5, which nothing is divided by 0 with."""
    shapes = {
        value.name: tuple(d.dim_value for d in value.type.tensor_type.shape.dim)
        for value in model.graph.input
    }
    return {
        name: np.asarray(np.abs(value) + 0.5, np.float32)
        for name, value in random_feeds(model, shapes).items()
    }


SHAPES = [
    ((1, 0, 5, 7), (1, 0, 5, 7)),
    ((1, 0, 5, 7), (1, 0, 1, 1)),
    ((1, 0, 5, 7), (0, 1, 1)),
    ((1, 0, 5, 7), (1, 1, 5, 7)),
    ((1, 0, 5, 7), (5, 7)),
    ((1, 0, 5, 7), (7,)),
    ((1, 0, 5, 7), (5, 1)),
    ((1, 0, 5, 7), (1, 0, 5, 1)),
    ((1, 0, 5, 7), (1, 0, 1, 7)),
    ((1, 0, 5, 1), (1, 0, 1, 7)),
    ((1, 0, 1, 1), (1, 1, 5, 7)),
    ((1, 1, 1, 7), (0, 5, 1)),
    ((1, 0, 5, 7), ()),
    ((1, 0, 5, 7), (1,)),
    ((1, 0, 5, 7), (1, 1, 1, 1)),
    ((1, 0, 9), (0, 1)),
    ((1, 0, 9), (9,)),
    ((1, 0, 1), (1, 1, 9)),
    ((1, 0), (0,)),
    ((1, 0), (1, 1)),
    ((5, 0), (0,)),
    ((0, 5), (0, 1)),
    ((0, 1), (1, 5)),
    ((1, 0, 3, 5, 2), (1, 0, 3, 5, 2)),
    ((1, 0, 3, 5, 2), (0, 1, 1, 1)),
    ((1, 0, 3, 5, 2), (3, 1, 1)),
    ((1, 0, 3, 5, 2), (5, 2)),
    ((1, 0, 3, 1, 2), (3, 5, 1)),
    ((0, 3, 5, 2), (3, 1, 2)),
    ((1, 2, 1, 1, 0, 5), (0, 1)),
]


@pytest.mark.parametrize(
    "op, channels", [("Sub", CHANNELS), ("Mul", (16,)), ("Max", (8,)), ("Div", (3,)), ("Min", (4,))]
)
def test_broadcasting(op: str, channels: tuple[int, ...]) -> None:
    for (first, second), count in itertools.product(SHAPES, channels):
        shapes = [tuple(size or count for size in shape) for shape in (first, second)]
        for one, other in (shapes, shapes[::-1]):
            model = pair(op, one, other)
            agree(model, feeds=positive(model))


@pytest.mark.parametrize("op, count", [("Sub", 16), ("Div", 8), ("Add", 3), ("Max", 4), ("Pow", 16)])
def test_constant_operands(op: str, count: int) -> None:
    """One power is measured with a larger tolerance: it is an exponential of a logarithm."""
    for first, second in SHAPES:
        shapes = [tuple(size or count for size in shape) for shape in (first, second)]
        for (one, other), constant in itertools.product((shapes, shapes[::-1]), ("first", "second")):
            model = pair(op, one, other, constant)
            agree(model, feeds=positive(model), tolerance=2e-5 if op == "Pow" else 1e-5)


@pytest.mark.parametrize("op", ["Sum", "Mean", "Max", "Min"])
def test_any_number_of_operands(op: str) -> None:
    text = f"""(float[1, 3, 5, 7] x, float[3, 1, 1] a, float b) => (float[1, 3, 5, 7] y, float[1, 3, 5, 7] z) {{
        one = {op}(x)
        y = {op}(one, a, b, c, d)
        z = {op}(d, e, c, x)
    }}"""
    agree(build(text, c=random(7), d=np.float32(0.25), e=np.float32(-0.5)))


@pytest.mark.parametrize("op, layer", [("Sub", 7), ("Div", 8), ("Add", 0)])
def test_a_number_in_front_of_its_operand_is_part_of_the_layer(op: str, layer: int) -> None:
    model = pair(op, (), (1, 3, 5), "first")
    (found,) = [one for one in agree(model, feeds=positive(model)) if one.type != "Input"]
    assert (found.params[0], found.params[1]) == (layer, 1)


def test_both_operands_may_be_the_same() -> None:
    agree(build("(float[1, 3, 5] x) => (float[1, 3, 5] y) { a = Mul(x, x) b = Sub(a, x) y = Add(b, b) }"))


@pytest.mark.parametrize("exponent", [0.5, 1.0, 2.0, 3.0, 4.0, 5.0, 7.0, -1.0, -2.0, 1.5, 3.5, -0.5, -2.5])
def test_powers(exponent: float) -> None:
    model = build(
        "(float[1, 16, 5] x) => (float[1, 16, 5] y) { y = Pow(x, e) }", e=np.array([exponent], np.float32)
    )
    given = (
        random(1, 16, 5) if exponent == round(exponent) > 0 else np.abs(random(1, 16, 5)) + np.float32(0.5)
    )
    agree(model, feeds={"x": given}, tolerance=2e-5)


@pytest.mark.parametrize("exponent", [0.5, 1.5, 0.45, 1 / 3, 2.2])
@pytest.mark.parametrize("shape", ["1, 3, 5", "1, 16, 4, 5"])
def test_a_power_of_0_is_0(exponent: float, shape: str) -> None:
    for stored in (np.array(exponent, np.float32), np.full(5, exponent, np.float32)):
        for body in (
            "r = Relu(x)",
            "c = Clip(x, zero) r = Mul(c, c)",
            "a = Abs(x) s = Floor(a) r = Identity(s)",
        ):
            text = f"(float[{shape}] x) => (float[{shape}] y) {{ {body} y = Pow(r, e) }}"
            agree(build(text, e=stored, zero=np.float32(0)), tolerance=2e-5)


def test_a_power_of_what_is_too_small_for_float32() -> None:
    text = "(float[1, 16] x, float[1, 16] e) => (float[1, 16] y) { a = Exp(x) y = Pow(a, e) }"
    feeds = {"x": np.linspace(-120, 2, 16, dtype=np.float32)[None], "e": np.full((1, 16), 1.3, np.float32)}
    agree(build(text), feeds=feeds, tolerance=2e-5)


@pytest.mark.parametrize("exponent", [0.0, -0.3, None])
def test_a_power_of_what_may_be_0_is_refused_where_the_result_is_not_0(exponent: float | None) -> None:
    text = "(float[1, 16] x, float[1, 16] e) => (float[1, 16] y) { a = Relu(x) y = Pow(a, %s) }"
    stored = {} if exponent is None else {"f": np.array(exponent, np.float32)}
    assert [reason for *_, reason in refusals(build(text % ("f" if stored else "e"), **stored))] == [
        "ncnn takes the logarithm of its base, which may be 0"
    ]


@pytest.mark.parametrize("exponent", [0.45, 20.0])
def test_other_powers_of_an_input_are_refused(exponent: float) -> None:
    text = "(float[1, 16] x) => (float[1, 16] y) { y = Pow(x, e) }"
    assert [reason for *_, reason in refusals(build(text, e=np.array(exponent, np.float32)))] == [
        "ncnn takes the logarithm of its base, which may be negative"
    ]


def test_a_power_of_what_may_be_negative_is_refused() -> None:
    text = "(float[1, 16] x, float[1, 16] e) => (float[1, 16] y) { %s y = Pow(%s, e) }"
    assert [reason for *_, reason in refusals(build(text % ("", "x")))] == [
        "ncnn takes the logarithm of its base, which may be negative"
    ]
    agree(build(text % ("a = Exp(x)", "a")), tolerance=2e-5)


@pytest.mark.parametrize(
    "gate, layer",
    [
        ("g = Sigmoid(x) y = Mul(x, g)", "Swish"),
        ("g = Sigmoid(x) y = Mul(g, x)", "Swish"),
        ("g = HardSigmoid <alpha = 0.16666667> (x) y = Mul(x, g)", "HardSwish"),
        ("p = Softplus(x) g = Tanh(p) y = Mul(x, g)", "Mish"),
    ],
)
def test_a_gated_activation_is_one_layer(gate: str, layer: str) -> None:
    for channels in CHANNELS:
        shape = f"float[1, {channels}, 5, 7]"
        assert types(agree(build(f"({shape} x) => ({shape} y) {{ {gate} }}")))[-1] == layer
    other = gate.replace("Mul(x, g)", "Mul(z, g)").replace("Mul(g, x)", "Mul(g, z)")
    text = f"(float[1, 3, 5] x) => (float[1, 3, 5] y) {{ z = Neg(x) {other} }}"
    assert types(agree(build(text)))[-1] == "BinaryOp"


def test_a_gated_activation_becomes_part_of_a_convolution() -> None:
    text = """(float[1, 3, 5, 5] x) => (float[1, 4, 5, 5] y) {
        a = Conv(x, w) g = HardSigmoid <alpha = 0.16666667> (a) y = Mul(a, g)
    }"""
    assert types(agree(build(text, w=random(4, 3, 1, 1)))) == ["Convolution"]


def test_open_sizes_stay_open() -> None:
    text = """(float[1, 3, H, W] x, float[1, 3, 1, 1] s) => (float[1, 3, H, W] y) {
        a = Mul(x, s) b = Add(a, c) y = Sub(two, b)
    }"""
    sizes, others = {"x": (1, 3, 4, 5), "s": (1, 3, 1, 1)}, {"x": (1, 3, 7, 2), "s": (1, 3, 1, 1)}
    agree(build(text, c=random(3, 1, 1), two=np.float32(2)), sizes, others)


def test_integers_are_refused() -> None:
    model = build("(int64[1, 3] x) => (int64[1, 3] y) { y = Add(x, x) }")
    assert [reason for *_, reason in refusals(model)] == ["it computes with integers, and ncnn with float32"]


@pytest.mark.parametrize("made", ["RandomNormal<shape = [1, 3]>()", "RandomUniform<shape = [1, 3]>()"])
def test_a_factor_of_a_node_that_reads_nothing_is_refused(made: str) -> None:
    for body in (
        "y = Mul(x, r)",
        "t = Tanh(r) y = Mul(x, t)",
        "w = Mul(r, r) y = Pow(w, x)",
        "y = Div(x, r)",
    ):
        model = build(f"(float[1, 3] x) => (float[1, 3] y) {{ r = {made} {body} }}")
        assert made.split("<")[0] in [op for _, op, _ in refusals(model)]
