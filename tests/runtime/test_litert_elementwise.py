"""Operators of several operands in LiteRT: shapes that broadcast, types, powers, fused activations."""

import itertools

import numpy as np
import onnx
import pytest

from tests.support.builders import build, random
from tests.support.litert_operators import agree, refusals

pytest.importorskip("ai_edge_litert")

SHAPES = [
    ((2, 3, 5, 7), (2, 3, 5, 7)),
    ((1, 3, 5, 7), (1, 3, 1, 1)),
    ((1, 3, 5, 7), (3, 1, 1)),
    ((1, 5, 7, 3), (3,)),
    ((1, 3, 5, 1), (1, 3, 1, 7)),
    ((1, 1, 1, 7), (3, 5, 1)),
    ((2, 3, 5, 7), ()),
    ((1, 3, 1), (1, 1, 9)),
    ((4, 1), (1, 5)),
    ((), ()),
    ((2, 3, 1, 2, 3), (3, 4, 1, 3)),
    ((2, 1, 3, 1, 2, 1), (2, 3, 4, 1, 2)),
]


def shaped(shape: tuple[int, ...], kind: str = "float") -> str:
    return f"{kind}[{', '.join(map(str, shape))}]" if shape else kind


def pair(
    op: str, first: tuple[int, ...], second: tuple[int, ...], kind: str = "float", result: str = ""
) -> onnx.ModelProto:
    whole = np.broadcast_shapes(first, second)
    text = f"({shaped(first, kind)} a, {shaped(second, kind)} b) => ({shaped(whole, result or kind)} y)"
    return build(f"{text} {{ y = {op}(a, b) }}")


@pytest.mark.parametrize("op", ["Sub", "Mul", "Max", "Div"])
def test_broadcasting(op: str) -> None:
    for first, second in SHAPES:
        for one, other in ((first, second), (second, first)):
            feeds = {"a": random(*one), "b": np.array(np.abs(random(*other)) + 0.5, np.float32)}
            agree(pair(op, one, other), feeds)


def test_comparing_and_choosing_with_broadcasting() -> None:
    for first, second in SHAPES:
        agree(pair("Less", first, second, result="bool"))
        whole = np.broadcast_shapes(first, second)
        text = f"({shaped(first, 'bool')} c, {shaped(second)} a, float b) => ({shaped(whole)} y) {{ y = Where(c, a, b) }}"
        agree(build(text))


@pytest.mark.parametrize("kind", ["int64", "int32", "int16", "int8", "uint8"])
@pytest.mark.parametrize("op", ["Add", "Sub", "Mul", "Min", "Mod"])
def test_integers(op: str, kind: str) -> None:
    if op == "Min" and kind == "int16":
        pytest.skip("ONNX Runtime has no such kernel")
    dtype = np.dtype(kind)
    a = np.array([[1, 7, 100], [9, 3, 12]], dtype)
    b = np.array([3, 2, 5], dtype)
    feeds = {"a": a if dtype.kind == "u" else a * np.array(-1, dtype), "b": b}
    agree(pair(op, (2, 3), (3,), kind), feeds)


@pytest.mark.parametrize("kind", ["int32", "int64"])
def test_a_remainder_has_the_sign_that_onnx_says(kind: str) -> None:
    feeds = {"a": np.array([-7, 7, -7, 7], kind), "b": np.array([3, -3, -3, 3], kind)}
    for fmod in (0, 1):
        model = build(f"({kind}[4] a, {kind}[4] b) => ({kind}[4] y) {{ y = Mod<fmod = {fmod}>(a, b) }}")
        agree(model, feeds)
    model = build("(float[4] a, float[4] b) => (float[4] y) { y = Mod<fmod = 1>(a, b) }")
    agree(model, {name: value.astype(np.float32) + np.float32(0.25) for name, value in feeds.items()})


def test_integers_are_divided_as_in_onnx() -> None:
    feeds = {"a": np.array([-7, 7, -7, 7], np.int32), "b": np.array([2, -2, -2, 2], np.int32)}
    agree(pair("Div", (4,), (4,), "int32"), feeds)
    ((_, _, reason),) = refusals(pair("Div", (4,), (4,), "int64"))
    assert reason == "LiteRT divides no integers of 64 bits: cast its operands to int32 or float32"


@pytest.mark.parametrize(
    "exponent, codes",
    [
        (0.5, ["SQRT"]),
        (-1.0, ["DIV"]),
        (2.0, ["MUL"]),
        (3.0, ["MUL", "MUL"]),
        (7.0, ["MUL"] * 4),
        (2.5, ["POW"]),
        (-3.0, ["POW"]),
        (0.0, ["POW"]),
    ],
)
def test_powers(exponent: float, codes: list[str]) -> None:
    model = build("(float[2, 5] x) => (float[2, 5] y) { y = Pow(x, e) }", e=np.array(exponent, np.float32))
    assert agree(model, {"x": np.abs(random(2, 5)) + np.float32(0.5)}) == codes


def test_powers_of_a_base_below_0_and_of_several_exponents() -> None:
    model = build(
        "(float[2, 3] x) => (float[2, 3] y) { y = Pow(x, e) }", e=np.array([2.0, 3.0, 1.0], np.float32)
    )
    assert agree(model) == ["POW"]
    model = build("(float[3] x) => (float[1, 3] y) { y = Pow(x, e) }", e=np.array([[2.0]], np.float32))
    agree(model)


@pytest.mark.parametrize("op", ["Sum", "Mean", "Max", "Min"])
def test_any_number_of_operands(op: str) -> None:
    text = f"""(float[1, 3, 5, 7] x, float[3, 1, 1] a, float b) => (float[1, 3, 5, 7] y, float[1, 3, 5, 7] z) {{
        one = {op}(x)
        y = {op}(one, a, b, c, d)
        z = {op}(d, e, c, x)
    }}"""
    agree(build(text, c=random(7), d=np.float32(0.25), e=np.float32(-0.5)))


@pytest.mark.parametrize("op, code", [("Add", "ADD"), ("Sub", "SUB"), ("Mul", "MUL"), ("Div", "DIV")])
def test_an_activation_behind_is_part_of_the_operator(op: str, code: str) -> None:
    for activation in ("Relu(s)", "Clip(s, low, high)"):
        text = f"(float[2, 3] x) => (float[2, 3] y) {{ s = {op}(x, c) y = {activation} }}"
        stored = {"low": np.float32(0), "high": np.float32(6)} if "Clip" in activation else {}
        assert agree(build(text, c=np.float32(0.25), **stored)) == [code]


def test_logic() -> None:
    for op in ("And", "Or", "Xor"):
        agree(pair(op, (4, 1), (5,), "bool"))
    agree(build("(bool[3] x) => (bool[3] y) { y = Not(x) }"))


def test_open_sizes_stay_open() -> None:
    text = "(float[N, H, 3] x, float[1, 1, 3] s) => (float[N, H, 3] y) { a = Mul(x, s) b = Add(a, c) y = Sub(two, b) }"
    sizes, others = {"x": (1, 4, 3), "s": (1, 1, 3)}, {"x": (3, 7, 3), "s": (1, 1, 3)}
    agree(build(text, c=random(3), two=np.float32(2)), sizes=sizes, others=others)


def test_types_without_a_kernel_are_refused_by_name() -> None:
    for kind, op in itertools.product(("uint16", "uint32"), ("Add", "Max")):
        reasons = [reason for _, _, reason in refusals(pair(op, (3,), (3,), kind))]
        assert any("of a type that LiteRT's kernels do not compute with" in one for one in reasons), kind
