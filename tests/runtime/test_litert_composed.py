"""Operators that LiteRT has not, from those that it has: normalizations, recurrent layers, products of tensors, activations,
reductions; with batches that stay open.
"""

import numpy as np
import onnx
import pytest

from tests.support.builders import build, random
from tests.support.litert_operators import agree, refusals

pytest.importorskip("ai_edge_litert")

CHANNELS_FIRST, CHANNELS_LAST = "Transpose<perm = [0, 3, 1, 2]>", "Transpose<perm = [0, 2, 3, 1]>"


def along_channels(body: str, sandwich: bool, **stored: np.ndarray) -> list[str]:
    """y = body of x with 6 channels, of any batch; by itself, and between the Transposes that the lowering puts around it."""
    if not sandwich:
        model = build(f"(float[N, 6, 4, 5] x) => (float[N, 6, 4, 5] y) {{ y = {body} }}", 21, **stored)
        return agree(model, sizes={"x": (2, 6, 4, 5)}, others={"x": (3, 6, 4, 5)})
    text = f"x = {CHANNELS_FIRST}(i) z = {body} y = {CHANNELS_LAST}(z)"
    model = build(f"(float[N, 4, 5, 6] i) => (float[N, 4, 5, 6] y) {{ {text} }}", 21, **stored)
    return agree(model, sizes={"i": (2, 4, 5, 6)}, others={"i": (3, 4, 5, 6)})


@pytest.mark.parametrize("sandwich", [False, True])
def test_normalization_along_channels(sandwich: bool) -> None:
    scale, bias = random(6), random(6)
    moved = 0 if sandwich else 2
    mean, variance = random(6), np.abs(random(6)) + np.float32(0.1)
    codes = along_channels("BatchNormalization(x, s, b, m, v)", sandwich, s=scale, b=bias, m=mean, v=variance)
    assert codes == ["MUL", "ADD"]
    codes = along_channels("InstanceNormalization(x, s, b)", sandwich, s=scale, b=bias)
    assert "TRANSPOSE" not in codes
    along_channels("GroupNormalization<num_groups = 3, epsilon = 0.01>(x, s, b)", sandwich, s=scale, b=bias)
    codes = along_channels("LRN<size = 3, alpha = 0.5, beta = 0.6>(x)", sandwich)
    assert codes.count("TRANSPOSE") == moved


def test_normalization_of_the_last_axes() -> None:
    sizes, others = {"x": (2, 3, 8)}, {"x": (5, 4, 8)}
    for body, stored in (
        ("y = LayerNormalization(x, s, b)", {"s": random(8), "b": random(8)}),
        ("y = LayerNormalization<epsilon = 0.1>(x, s)", {"s": random(8)}),
        ("y = LpNormalization<p = 2, axis = -1>(x)", {}),
        ("y = LpNormalization<p = 1, axis = 0>(x)", {}),
        ("y = MeanVarianceNormalization<axes = [2]>(x)", {}),
    ):
        agree(
            build(f"(float[N, L, 8] x) => (float[N, L, 8] y) {{ {body} }}", **stored),
            sizes=sizes,
            others=others,
        )


def test_nothing_divided_by_its_norm_is_nothing() -> None:
    model = build("(float[2, 3] x) => (float[2, 3] y) { y = LpNormalization(x) }")
    agree(model, {"x": np.array([[0, 0, 0], [1, 2, 3]], np.float32)})


def recurrent(op: str, steps: int, outputs: str, direction: str = "forward", **more: str) -> onnx.ModelProto:
    gates, directions = {"LSTM": 4, "GRU": 3, "RNN": 1}[op], 2 if direction == "bidirectional" else 1
    words = ", ".join(
        [f'direction = "{direction}", hidden_size = 5', *(f"{k} = {v}" for k, v in more.items())]
    )
    results = ", ".join(
        f"float[{', '.join('ABCD'[: 4 if name == 'y' else 3])}] {name}"
        for name in outputs.split(", ")
        if name
    )
    text = f"(float[{steps}, N, 3] x) => ({results}) {{ {outputs} = {op}<{words}>(x, w, r, b) }}"
    stored = {
        "w": random(directions, gates * 5, 3),
        "r": random(directions, gates * 5, 5),
        "b": random(directions, gates * 10),
    }
    return build(text, **stored)


@pytest.mark.parametrize("op", ["LSTM", "GRU", "RNN"])
@pytest.mark.parametrize("direction", ["forward", "reverse", "bidirectional"])
def test_recurrent_layers_of_any_batch(op: str, direction: str) -> None:
    outputs = "y, h, c" if op == "LSTM" else "y, h"
    model = recurrent(op, 4, outputs, direction)
    agree(model, sizes={"x": (4, 1, 3)}, others={"x": (4, 3, 3)})


def test_recurrent_layers_with_clipped_gates_and_other_activations() -> None:
    agree(recurrent("LSTM", 3, "y, h", clip="0.5"), sizes={"x": (3, 2, 3)})
    agree(recurrent("GRU", 3, "y, h", linear_before_reset="1", clip="0.5"), sizes={"x": (3, 2, 3)})
    agree(recurrent("RNN", 3, "y, h", activations='["Relu"]'), sizes={"x": (3, 2, 3)})
    ((_, _, reason),) = refusals(recurrent("RNN", 3, "y, h", activations='["Softsign"]'), {"x": (3, 2, 3)})
    assert reason == "its activation is softsign; Lathe writes sigmoid, tanh, relu"


def test_an_open_number_of_steps_is_refused() -> None:
    model = build(
        "(float[T, 1, 3] x) => (float[A, B, C, D] y) { y = RNN<hidden_size = 2>(x, w, r) }",
        w=random(1, 2, 3),
        r=random(1, 2, 2),
    )
    ((_, _, reason),) = refusals(model, {"x": (3, 1, 3)}, {"x": (5, 1, 3)})
    assert reason == "the number of its steps depends on the size of the input: build for a fixed size"


@pytest.mark.parametrize(
    "equation, first, second",
    [
        ("bhqd,bhkd->bhqk", (2, 3, 4, 5), (2, 3, 6, 5)),
        ("bhqk,bkhd->bqhd", (2, 3, 4, 5), (2, 5, 3, 6)),
        ("bij,jk->bik", (2, 3, 4), (4, 5)),
        ("i,j->ij", (3,), (4,)),
        ("ij,ij->", (3, 4), (3, 4)),
        ("ij,ij->j", (3, 4), (3, 4)),
        ("ij,kl->i", (3, 4), (2, 5)),
        ("...ij,...jk->...ik", (5, 1, 3, 4), (5, 2, 4, 2)),
        ("nchw,cd->ndhw", (2, 3, 4, 5), (3, 6)),
        ("ab,cb", (3, 4), (5, 4)),
    ],
)
def test_einsum(equation: str, first: tuple[int, ...], second: tuple[int, ...]) -> None:
    a, b = (", ".join(map(str, shape)) for shape in (first, second))
    letters = equation.replace("...", "Z").rpartition("->")[2] if "->" in equation else "ac"
    dims = {"...ij,...jk->...ik": "A, B, C, D"}.get(equation, ", ".join("ABCDEFG"[: len(letters)]))
    shape = f"float[{dims}]" if dims else "float"
    text = f'(float[{a}] a, float[{b}] b) => ({shape} y) {{ y = Einsum<equation = "{equation}">(a, b) }}'
    agree(build(text))


def test_attention_of_a_vision_transformer() -> None:
    text = """(float[N, 7, 12] x) => (float[N, 7, 12] y) {
        p = MatMul(x, w) q = Add(p, b) s = Reshape(q, shape) t = Transpose<perm = [2, 0, 3, 1, 4]>(s)
        i, j, k = Split<axis = 0>(t) f = Squeeze(i, zero) g = Squeeze(j, zero) v = Squeeze(k, zero)
        h = Transpose<perm = [0, 1, 3, 2]>(g) m = MatMul(f, h) n = Mul(m, scale) o = Softmax<axis = -1>(n)
        a = MatMul(o, v) c = Transpose<perm = [0, 2, 1, 3]>(a) d = Reshape(c, back) e = MatMul(d, u) y = Add(e, x)
    }"""
    stored = {
        "w": random(12, 36), "b": random(36), "u": random(12, 12), "scale": np.float32(0.5), "zero": np.array([0]),
        "shape": np.array([0, 7, 3, 3, 4]), "back": np.array([0, 7, 12]),
    }  # fmt: skip
    agree(build(text, **stored), sizes={"x": (1, 7, 12)}, others={"x": (3, 7, 12)}, tolerance=2e-5)


@pytest.mark.parametrize("op", ["Softmax", "LogSoftmax"])
def test_softmax(op: str) -> None:
    for opset, axis in ((21, -1), (21, 1), (21, 0), (11, 1), (11, 0), (11, 2)):
        text = f"(float[2, 3, 4] x) => (float[2, 3, 4] y) {{ y = {op}<axis = {axis}>(x) }}"
        agree(build(text, opset))
    text = f"(float[N, 3, H, 4] x) => (float[N, 3, H, 4] y) {{ y = {op}<axis = 1>(x) }}"
    agree(build(text), sizes={"x": (1, 3, 5, 4)}, others={"x": (2, 3, 6, 4)})


@pytest.mark.parametrize("op", ["Mean", "Sum", "Max", "Min", "Prod", "L1", "L2", "SumSquare", "LogSumExp"])
def test_reductions(op: str) -> None:
    text = "(float[2, 3, 1, 2, 2, 3, 2] x) => (float[A, B, C, D, E, F, G] y) { y = Reduce%s<axes = [1, 2, 5]>(x) }"
    agree(build(text % op, 11), tolerance=2e-5)
    text = "(float[N, 5, W, 2] x) => (float[A, B] y) { y = Reduce%s<axes = [1, 2], keepdims = 0>(x) }"
    agree(build(text % op, 11), sizes={"x": (1, 5, 4, 2)}, others={"x": (2, 5, 3, 2)}, tolerance=2e-5)


def test_reductions_of_nothing_and_of_everything() -> None:
    text = "(float[2, 3] x) => (float[A, B] y) { y = ReduceSum<noop_with_empty_axes = %d>(x) }"
    assert agree(build(text % 1)) == ["RESHAPE"]
    assert agree(build(text % 0)) == ["SUM"]


@pytest.mark.parametrize("op", ["ArgMax", "ArgMin"])
def test_places_of_equal_values(op: str) -> None:
    feeds = {"x": np.array([[1, 3, 3, 1], [2, 2, 2, 2]], np.float32)}
    for last in (0, 1):
        text = f"(float[2, 4] x) => (int64[A, B] y) {{ y = {op}<axis = 1, select_last_index = {last}>(x) }}"
        agree(build(text), feeds)


def test_the_smallest_and_largest_values_along_an_axis() -> None:
    for axis, largest in ((0, 1), (1, 0), (-1, 1)):
        text = f"(float[4, 5] x) => (float[A, B] v, int64[C, D] i) {{ v, i = TopK<axis = {axis}, largest = {largest}>(x, k) }}"
        agree(build(text, k=np.array([3])))


def test_erf_is_exact_at_its_ends_and_at_0() -> None:
    values = np.concatenate([[0, -0.0, 1e-30, -1e-9, 1e-4, 20, -20, np.inf, -np.inf], np.linspace(-4, 4, 60)])
    model = build("(float[69] x) => (float[69] y) { y = Erf(x) }")
    agree(model, {"x": values.astype(np.float32)}, tolerance=2e-6)


def test_large_values_of_activations() -> None:
    values = np.array([-1e4, -100, -88, -1, 0, 1, 88, 100, 1e4], np.float32)
    for op in ("Softplus", "Mish", "Sigmoid", "Tanh", "HardSwish", "Elu", "Selu", "Celu<alpha = 0.3>"):
        model = build(f"(float[9] x) => (float[9] y) {{ y = {op}(x) }}", 18)
        agree(model, {"x": values}, tolerance=1e-6)


def test_a_cast_to_float16_rounds() -> None:
    agree(
        build("(float[40] x) => (float[40] y) { h = Cast<to = 10>(x) y = Cast<to = 1>(h) }"), tolerance=1e-7
    )


def test_clip_with_bounds_that_are_computed() -> None:
    text = "(float[3, 4] x, float low) => (float[3, 4] y) { high = Abs(low) y = Clip(x, low, high) }"
    agree(build(text), {"x": random(3, 4), "low": np.array(-0.5, np.float32)})
    text = "(int64[3] x) => (int64[3] y) { y = Clip(x, low) }"
    agree(build(text, low=np.array(-2)))
