"""fold: Transposes that cancel each other across element-wise operators are gone, and others stay."""

import numpy as np
import onnx
import pytest

from tests.support.builders import build, random
from tests.support.folding import difference, fold, ops

HEAD = "(float[N, 4, 6, 7] x) => (float[N, {shape}] y) {{ {body} }}"
LAST, FIRST = "Transpose <perm = [0, 2, 3, 1]>", "Transpose <perm = [0, 3, 1, 2]>"
IMAGE = "5, P, Q"


def model(body: str, shape: str = IMAGE, opset: int = 17, **constants: np.ndarray) -> onnx.ModelProto:
    known = {
        "w": random(5, 4, 3, 3),
        "v": random(5, 5, 1, 1),
        "c": random(1, 1, 1, 5),
        "d": random(5),
        "zero": np.float32(0),
    }
    known |= {"e": random(4, 5, 5) ** 2 + 1, "six": np.float32(6)} | constants
    words = set(body.replace(",", " ").replace(")", " ").replace("(", " ").split())
    text = HEAD.format(shape=shape, body=body.replace("LAST", LAST).replace("FIRST", FIRST))
    return build(text, opset, **{name: known[name] for name in known if name in words})


@pytest.mark.parametrize(
    ("body", "left"),
    [
        ("a = Conv (x, w)  t = LAST (a)  r = Relu (t)  y = FIRST (r)", ["Conv", "Relu"]),
        ("a = Conv (x, w)  t = LAST (a)  s = Add (t, c)  m = Mul (s, d)  f = FIRST (m)  y = Relu (f)", ["Conv", "Relu"]),
        ("a = Conv (x, w)  t = LAST (a)  s = Sub (t, c)  m = Div (s, d)  y = FIRST (m)", ["Conv"]),
        ("a = Conv (x, w)  t = LAST (a)  s = Sub (c, t)  y = FIRST (s)", ["Conv"]),
        ("a = Conv (x, w)  t = LAST (a)  s = Mul (t, e)  y = FIRST (s)", ["Conv", "Mul"]),
        ("a = Conv (x, w)  t = LAST (a)  s = PRelu (t, d)  y = FIRST (s)", ["Conv", "PRelu"]),
        ("a = Conv (x, w)  t = LAST (a)  r = Clip (t, zero, six)  f = FIRST (r)  y = Conv (f, v)", ["Conv", "Clip", "Conv"]),
        (
            "a = Conv (x, w)  t = LAST (a)  f = FIRST (t)  b = Conv (f, v)  u = LAST (b)  s = Add (u, t)  r = Relu (s)  y = FIRST (r)",
            ["Conv", "Conv", "Add", "Relu"],
        ),
        ("a = Conv (x, w)  t = LAST (a)  s = Concat <axis = -1> (t, t)  f = FIRST (s)  y = Conv (f, g)", ["Conv", "Concat", "Conv"]),
    ],
)  # fmt: skip
def test_transposes_cancel(body: str, left: list[str]) -> None:
    before = model(body, g=random(5, 10, 1, 1))
    after, report = fold(before)
    assert ops(after) == left
    assert any("cancelled" in edit.what for edit in report.edits)
    assert difference(before, after) < 1e-5


@pytest.mark.parametrize("opset", [17, 18])
def test_a_mean_over_places_needs_no_transpose(opset: int) -> None:
    mean = (
        "ReduceMean <axes = [1, 2], keepdims = 0> (r)"
        if opset < 18
        else "ReduceMean <keepdims = 0> (r, places)"
    )
    body = f"a = Conv (x, w)  t = LAST (a)  r = Relu (t)  y = {mean}"
    before = model(body, "5", opset, places=np.array([1, 2], np.int64))
    after, _ = fold(before)
    assert ops(after) == ["Conv", "Relu", "GlobalAveragePool", "Flatten"]
    assert difference(before, after) < 1e-5


def test_a_pad_moves_behind_its_transpose_and_into_the_layer() -> None:
    text = f"""(float[N, 6, 7, 4] x) => (float[N, 5, P, Q] y) {{ p = Pad (x, pads)  t = {FIRST} (p)
        y = Conv <strides = [2, 2]> (t, w) }}"""
    before = build(text, pads=np.array([0, 1, 2, 0, 0, 0, 1, 0], np.int64), w=random(5, 4, 3, 3))
    after, _ = fold(before)
    assert ops(after) == ["Transpose", "Conv"]
    assert list(onnx.helper.get_node_attr_value(after.graph.node[1], "pads")) == [1, 2, 0, 1]
    assert difference(before, after) < 1e-5


@pytest.mark.parametrize(
    "body",
    [
        "t = LAST (x)  r = Relu (t)  y = Softmax <axis = -1> (r)",
        "t = LAST (x)  s = Add (t, k)  y = Exp (s)",
        "t = LAST (x)  r = MatMul (t, m)  y = FIRST (r)",
        "t = LAST (x)  u = Transpose <perm = [0, 2, 1, 3]> (x)  s = Shape (u)  z = Shape (t)  q = Concat <axis = 0> (s, z)  y = Cast <to = 1> (q)",
    ],
)
def test_no_more_transposes_than_before(body: str) -> None:
    shape = "P, Q, R" if "Shape" not in body else ""
    before = model(body, shape, k=random(4), m=random(4, 4)) if shape else model_of_sizes(body)
    after, _ = fold(before)
    assert ops(after).count("Transpose") == ops(before).count("Transpose")
    assert difference(before, after) < 1e-5


def model_of_sizes(body: str) -> onnx.ModelProto:
    text = body.replace("LAST", LAST)
    return build(f"(float[N, 4, M, 7] x) => (float[8] y) {{ {text} }}")


def test_a_tensor_that_others_read_is_given_back_in_its_own_layout() -> None:
    text = f"""(float[N, 4, 6, 7] x) => (float[N, 4, 6, 7] y, float[N, 6, 7, 4] e) {{ t = {LAST} (x)  r = Relu (t)
        f = {FIRST} (r)  y = Sigmoid (f)  g = Mul (r, k)  h = {FIRST} (g)  z = Exp (h)  e = Sqrt (r) }}"""
    before = build(text, k=random(4))
    after, _ = fold(before)
    assert ops(after).count("Transpose") == 1
    assert difference(before, after) < 1e-5


def test_sizes_that_are_known_are_picked_from_an_unknown_batch() -> None:
    text = "(float[N, 4, 6, 7] x) => (float[1] y, float[2] z, float[1] n) { s = Shape (x)  a = Gather (s, two)  b = Gather (s, last)  c = Gather (s, first)  y = Cast <to = 1> (a)  z = Cast <to = 1> (b)  n = Cast <to = 1> (c) }"
    before = build(
        text, two=np.array([2], np.int64), last=np.array([-1, 1], np.int64), first=np.array([0], np.int64)
    )
    after, _ = fold(before)
    assert ops(after).count("Gather") == 1
    assert difference(before, after) == 0
