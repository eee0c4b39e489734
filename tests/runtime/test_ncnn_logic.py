"""Comparisons, choices, casts and places of largest values as ncnn's layers, against ONNX Runtime."""

import numpy as np
import onnx
import pytest

from tests.support.builders import build, random
from tests.support.ncnn import agree, refusals

CHANNELS = (1, 3, 8, 17)
NUMBER = np.array(0.25, np.float32)


def image(body: str, channels: int = 3, result: str = "float", **stored: np.ndarray) -> onnx.ModelProto:
    shape = f"1, {channels}, 5, 6"
    return build(f"(float[{shape}] x) => ({result}[{shape}] y) {{ {body} }}", **stored)


@pytest.mark.parametrize("channels", CHANNELS)
@pytest.mark.parametrize("op", ["Greater", "Less", "GreaterOrEqual", "LessOrEqual", "Equal"])
def test_comparisons_of_what_is_often_equal(op: str, channels: int) -> None:
    body = f"r = Round(x) m = {op}(r, v) y = Cast <to = 1> (m)"
    agree(image(body, channels, v=np.array(1.0, np.float32)))
    agree(image(f"r = Round(x) s = Neg(r) y = {op}(r, s)", channels, "bool"))
    agree(image(f"r = Round(x) y = {op}(v, r)", channels, "bool", v=np.round(random(channels, 1, 6))))


def test_infinities_are_equal_to_themselves() -> None:
    feeds = {"x": np.resize(np.array([np.inf, -np.inf, 1, -1, 0], np.float32), (1, 3, 5, 6))}
    for op in ("Greater", "GreaterOrEqual", "Equal"):
        agree(image(f"s = Abs(x) y = {op}(x, s)", result="bool"), feeds=feeds)


def test_what_is_made_of_comparisons() -> None:
    body = """a = Greater(x, v) b = Less(x, w) n = And(a, b) o = Not(n) p = Or(o, a) q = Xor(p, b)
        k = And(q, c) y = Where(k, x, v)"""
    agree(image(body, v=-NUMBER, w=NUMBER, c=np.arange(6) > 2))


@pytest.mark.parametrize("channels", CHANNELS)
@pytest.mark.parametrize("fill", [0.0, -1.0, -3.4028235e38, -np.inf, np.inf])
def test_a_choice_with_a_number(fill: float, channels: int) -> None:
    mask, value = np.tri(5, 6, dtype=bool), np.array(fill, np.float32)
    for operands in ("x, v", "v, x"):
        agree(image(f"z = Where(m, {operands}) y = Sigmoid(z)", channels, m=mask, v=value))
        agree(
            image(f"m = Greater(x, w) z = Where(m, {operands}) y = Sigmoid(z)", channels, w=NUMBER, v=value)
        )
    agree(image("m = Greater(x, w) z = Where(m, w, v) y = Sigmoid(z)", channels, w=NUMBER, v=value))


def test_a_choice_is_exact_between_what_is_infinite() -> None:
    body = "m = Greater(x, v) e = Mul(x, h) f = Mul(e, h) y = Where(m, f, x)"
    layers = agree(
        image(
            f"{body[: body.index('y =')]} y0 = Where(m, x, f) y = Sigmoid(y0)",
            v=NUMBER,
            h=np.array(1e30, np.float32),
        )
    )
    assert "Threshold" in [layer.type for layer in layers]


def test_a_choice_between_tensors_that_are_broadcast() -> None:
    text = (
        "(float[1, 4, 5] x, float[1, 1, 5] u, bool[1, 4, 1] m) => (float[1, 4, 5] y) { y = Where(m, x, u) }"
    )
    mask = np.array([True, False, True, False]).reshape(1, 4, 1)
    feeds = {"x": random(1, 4, 5), "u": random(1, 1, 5), "m": mask}
    agree(build(text), feeds=feeds)


def test_a_guarded_division_never_divides_by_0() -> None:
    text = """(float[1, 3, 8] x, float[1, 3, 8] u) => (float[1, 3, 8] y) {
        e = Equal(u, zero) q = Div(x, u) y = Where(e, zero, q)
    }"""
    divisor = np.round(random(1, 3, 8))
    top = random(1, 3, 8)
    top[divisor == 0] = 0
    agree(build(text, zero=np.array(0.0, np.float32)), feeds={"x": top, "u": divisor})


def test_what_may_be_no_number_is_refused() -> None:
    ((_, op, reason),) = refusals(image("m = Greater(x, v) s = Log(x) y = Where(m, s, v)", v=NUMBER))
    assert (op, reason) == ("Where", "what it chooses from may be no number, as Log writes it")


@pytest.mark.parametrize(
    "body, op",
    [
        ("l = Log(x) s = Mul(l, x)", "Log"),
        ("l = Sqrt(x) n = Neg(l) t = Transpose<perm = [0, 1, 2, 3]>(n) s = Relu(t)", "Sqrt"),
        ("a = Abs(x) s = Pow(x, half)", "Pow"),
        ("s = Reciprocal(x)", "Reciprocal"),
        ("q = Div(v, x) s = Add(q, q)", "Div"),
        ("s = Pow(x, minus)", "Pow"),
        ("e = Exp(x) s = Mul(e, x)", "Exp"),
        ("r = Relu(x) s = Log(r)", "Log"),
        ("w = Sqrt(x) s = Max(w, v)", "Sqrt"),
    ],
)
def test_what_comes_of_what_may_be_no_number_is_refused(body: str, op: str) -> None:
    stored = {"half": np.array(0.5, np.float32), "minus": np.array(-1, np.float32), "v": NUMBER}
    for operands in ("s, x", "x, s"):
        found = refusals(image(f"{body} m = Greater(x, v) y = Where(m, {operands})", **stored))
        assert [reason for *_, reason in found] == [
            f"what it chooses from may be no number, as {op} writes it"
        ]


@pytest.mark.parametrize(
    "body",
    [
        "r = Relu(x) s = Sqrt(r)",
        "s = Pow(x, two)",
        "b = Abs(x) a = Add(b, v) l = Log(a) s = Mul(l, x)",
        "q = Mul(x, x) m1 = ReduceMean<axes = [3]>(q) a = Add(m1, v) r = Sqrt(a) s = Div(x, r)",
        "e = Exp(x) s = Sub(e, v)",
        "b = Abs(x) n = Neg(b) e = Exp(n) s = Mul(e, x)",
        "c = Clip(x, v) s = Pow(c, third)",
    ],
)
def test_what_is_always_a_number_is_chosen_from(body: str) -> None:
    stored = {"two": np.array(2, np.float32), "third": np.array(1 / 3, np.float32), "v": NUMBER}
    agree(image(f"{body} m = Greater(x, v) y = Where(m, s, x)", **stored), tolerance=2e-5)


def test_a_mask_of_infinity_is_chosen() -> None:
    body = "m = Greater(x, v) z = Where(m, {}) y = Sigmoid(z)"
    stored = {"v": NUMBER, "zero": np.array(0, np.float32)}
    for fill in (-np.inf, np.inf):
        for operands in ("zero, fill", "fill, zero"):
            agree(image(body.format(operands), fill=np.array(fill, np.float32), **stored))


@pytest.mark.parametrize("to", [6, 7])
def test_casts_cut_off_what_is_behind_the_point(to: int) -> None:
    kind = {6: "int32", 7: "int64"}[to]
    agree(image(f"s = Mul(x, v) y = Cast <to = {to}> (s)", result=kind, v=np.array(3.0, np.float32)))
    agree(image(f"s = Mul(x, v) i = Cast <to = {to}> (s) y = Cast <to = 1> (i)", v=np.array(3.0, np.float32)))
    agree(image(f"r = Round(x) b = Cast <to = 9> (r) y = Cast <to = {to}> (b)", result=kind))


def test_an_input_of_integers_that_is_compared() -> None:
    text = """(int64[1, 5] x, float[1, 5, 8] u) => (float[1, 5, 8] y) {
        c = Unsqueeze(x, a) m = Equal(c, z) f = Cast <to = 1> (m) s = Cast <to = 1> (x) k = Unsqueeze(s, a)
        p = Mul(u, f) y = Add(p, k)
    }"""
    feeds = {"x": np.array([[0, 1, 70000, -3, 0]]), "u": random(1, 5, 8)}
    agree(build(text, z=np.array(0), a=np.array([2])), feeds=feeds)


def test_an_input_that_points_and_is_cast_is_refused() -> None:
    text = """(int64[1, 5] x) => (float[1, 5, 8] y) {
        r = Gather(table, x) f = Cast <to = 1> (x) k = Unsqueeze(f, a) y = Mul(r, k)
    }"""
    ((_, op, reason),) = refusals(build(text, table=random(9, 8), a=np.array([2])))
    assert (op, reason) == ("Cast", "it makes floats of integers that also point")


@pytest.mark.parametrize("channels", CHANNELS)
@pytest.mark.parametrize("op", ["ArgMax", "ArgMin"])
@pytest.mark.parametrize("axis", [1, 2, -1])
def test_places_of_largest_values(op: str, axis: int, channels: int) -> None:
    shape = [1, channels, 5, 6]
    shape[axis] = 1
    kept = ", ".join(map(str, shape))
    text = (
        f"(float[1, {channels}, 5, 6] x) => (int64[{kept}] y) {{ r = Round(x) y = {op} <axis = {axis}> (r) }}"
    )
    agree(build(text))
    del shape[axis]
    text = f"(float[1, {channels}, 5, 6] x) => (int64[{', '.join(map(str, shape))}] y) {{ y = {op} <axis = {axis}, keepdims = 0> (x) }}"
    agree(build(text))


@pytest.mark.parametrize(
    "body",
    [
        "y = Gather <axis = 1> (i, c)",
        "y = Concat <axis = 1> (c, i)",
        "y = Concat <axis = 1> (i, c)",
        "y = CastLike(r, c)",
        "l = CastLike(r, c) y = Gather <axis = 1> (l, c)",
        "f = Cast <to = 1> (i) l = CastLike(f, c) s = CastLike(l, f) y = CastLike(s, c)",
    ],
)
def test_what_is_made_of_counted_integers(body: str) -> None:
    text = f"(float[1, 5, 8] x) => (int64[A, B] y) {{ i = ArgMax <axis = 2, keepdims = 0> (x) r = ReduceMax <axes = [1], keepdims = 0> (x) {body} }}"
    agree(build(text, opset=17, c=np.array([[1, 3]] if "Concat" in body else [1, 3])))


def test_an_input_that_is_cast_like_another() -> None:
    text = "(int64[1, 5] x, float[1, 5] u) => (float[1, 5] y) { f = CastLike(x, u) y = Mul(f, u) }"
    agree(build(text))


def test_a_table_of_integers_is_refused() -> None:
    text = "(int64[1, 5] x) => (int64[1, 5] y) { y = Gather(table, x) }"
    ((_, _, reason),) = refusals(build(text, table=np.arange(7)))
    assert reason == "its table is one of integers, and Embed writes floats"


def test_more_places_than_float16_counts_are_refused() -> None:
    text = "(float[1, N] x) => (int64[1] y) { y = ArgMax <axis = 1, keepdims = 0> (x) }"
    agree(build(text), {"x": (1, 2048)})
    ((_, _, reason),) = refusals(build(text), {"x": (1, 2049)})
    assert reason == "it looks at 2049 values; phones count in float16, which is exact up to 2048"


def test_the_place_in_a_row() -> None:
    agree(build("(float[1, 10] x) => (int64[1] y) { y = ArgMax <axis = 1, keepdims = 0> (x) }"))
    agree(
        build(
            "(float[7, 10] x) => (int32[7] y) { i = ArgMax <axis = 1, keepdims = 0> (x) y = Cast <to = 6> (i) }"
        )
    )


def test_inputs_that_are_outputs() -> None:
    agree(build("(float[1, 3] x, float[1, 4] u) => (float[1, 3] y, float[1, 4] u) { y = Relu(x) }"))
    agree(build("(int64[1, 3] x) => (int64[1, 3] y) { y = Identity(x) }"))
