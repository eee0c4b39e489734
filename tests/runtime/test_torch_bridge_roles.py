"""Which initializers are trained: their use in the graph decides."""

import numpy as np
import pytest

from tests.support.builders import build, random

torch = pytest.importorskip("torch")
from onnx_lathe.runtime.torch_bridge import GraphModule  # noqa: E402
from tests.support.bridge import OPTIMIZERS, train  # noqa: E402

W, B, V = (
    np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
    for seed, shape in enumerate(((4, 4), (4,), (1, 4, 1, 1)))
)
IMAGE = "float[n, 4, 5, 5]"
ROLES = [
    ("y = Conv(x, w, b)", IMAGE, {"w": random(4, 4, 1, 1), "b": B}, "w b"),
    ("y = ConvTranspose(x, w, b)", IMAGE, {"w": random(4, 4, 1, 1), "b": B}, "w b"),
    ("y = BatchNormalization(x, s, b, m, v)", IMAGE, {"s": B, "b": B, "m": B, "v": B**2}, "s b"),
    ("y = InstanceNormalization(x, s, b)", IMAGE, {"s": B, "b": B}, "s b"),
    ("y = LayerNormalization(x, s, b)", "float[n, 4]", {"s": B, "b": B}, "s b"),
    ("y = PRelu(x, s)", IMAGE, {"s": random(4, 1, 1)}, "s"),
    ("y = Gemm(x, w, b)", "float[n, 4]", {"w": W, "b": B}, "w b"),
    ("t = Transpose(w)  y = MatMul(x, t)", "float[n, 4]", {"w": W}, "w"),
    ("m = MatMul(x, w)  y = Add(b, m)", "float[n, 4]", {"w": W, "b": B}, "w b"),
    ("m = Neg(x)  a = Mul(m, g)  y = Add(a, b)", IMAGE, {"g": V, "b": V}, "g b"),
    ("c = Sub(x, mean)  y = Div(c, std)", IMAGE, {"mean": V, "std": V}, ""),
    ("a = Mul(x, std)  y = Add(a, mean)", IMAGE, {"mean": V, "std": V}, ""),
    ("c = Cast <to = 1> (x)  d = Div(c, k)  a = Mul(d, std)  y = Add(a, mean)", IMAGE, {"k": np.float32(255), "mean": V, "std": V}, ""),
    ("y = Mul(x, std)", IMAGE, {"std": V}, ""),
    ("m = Neg(x)  a = Mul(m, strides)  y = Add(a, places)", IMAGE,
     {"strides": np.float32([8, 8, 16, 16, 32]), "places": np.float32(range(5))}, ""),
    ("m = Neg(x)  y = Mul(m, untrained)", IMAGE, {"untrained": np.ones((4, 1, 1), np.float32)}, "untrained"),
    ("s = Shape(x)  f = Cast <to = 1> (s)  a = Mul(f, table)  b = MatMul(a, w)  y = Mul(x, b)", "float[4, 4]",
     {"table": random(2), "w": random(2, 1)}, ""),
    ("m = Neg(x)  y = Add(m, grid)", IMAGE, {"grid": random(1, 1, 5, 5)}, ""),
    ("m = Neg(x)  a = Add(m, e)  y = Mul(a, k)", IMAGE, {"e": np.float32(1e-5), "k": np.ones(1, np.float32)}, ""),
    ("m = Neg(x)  y = Add(m, b)", "float[n, 1]", {"b": np.ones(1, np.float32)}, "b"),
    ("y = Clip(x, low, high)", IMAGE, {"low": np.float32(0), "high": np.float32(6)}, ""),
    ("y = Pow(x, e)", IMAGE, {"e": np.float32(2)}, ""),
    ("y = Pad(x, p, v)", IMAGE, {"p": np.zeros(8, np.int64), "v": np.float32(1)}, ""),
    ("y = Resize(x, none, s)", IMAGE, {"none": np.zeros(0, np.float32), "s": np.ones(4, np.float32)}, ""),
    ("y = Gather(table, x)", "int64[n]", {"table": W}, "table"),
    ("w = Gather(book, i)  y = MatMul(x, w)", "float[n, 4]", {"book": B, "i": np.arange(16).reshape(4, 4) % 4}, "book"),
    ("w = Gather(book, i)  y = Sub(x, w)", "float[n, 4]", {"book": B, "i": np.arange(4)}, ""),
    ("q = QuantizeLinear(w, s, z)  d = DequantizeLinear(q, s, z)  y = MatMul(x, d)", "float[n, 4]",
     {"w": W, "s": np.float32(0.1), "z": np.int8(0)}, "w"),
    ("a = Mul(w, s)  y = MatMul(x, a)", "float[n, 4]", {"w": W, "s": random(1, 4)}, "w s"),
    ("m = MatMul(x, w)  y = Sub(m, w)", "float[4, 4]", {"w": W}, ""),
    ("m = MatMul(x, w)  n = Shape(w)  y = Reshape(m, n)", "float[4, 4]", {"w": W}, "w"),
]  # fmt: skip


@pytest.mark.parametrize("body, shape, stored, trained", ROLES, ids=[role[0] for role in ROLES])
def test_use_decides_what_is_trained(
    body: str, shape: str, stored: dict[str, np.ndarray], trained: str
) -> None:
    dims = "n" if shape.startswith("int64") else shape[shape.index("[") + 1 : -1]
    model = build(f"({shape} x) => (float[{'n, 4' if dims == 'n' else dims}] y) {{ {body} }}", 17, **stored)
    assert set(GraphModule(model).weights()) == set(trained.split())


TOKENS = """(float[n, 3, 8, 8] x) => (float[n, 5, 6] y) {{
    c = Conv <strides = [4, 4]> (x, w)  r = Reshape(c, flat)  t = Transpose <perm = [0, 2, 1]> (r)
    s = Shape(x)  n = Slice(s, zero, one)  size = Concat <axis = 0> (n, one, width)
    e = Expand(token, size)  j = Concat <axis = 1> (e, t)  p = Add(j, table)  {}
}}"""
INTEGERS = {
    name: np.array(value)
    for name, value in {"flat": [0, 6, -1], "zero": [0], "one": [1], "width": [6]}.items()
}
LAYER = "y = LayerNormalization(p, g, b)"
WRITTEN_OUT = """m = ReduceMean <axes = [-1]> (p)  d = Sub(p, m)  q = Mul(d, d)  v = ReduceMean <axes = [-1]> (q)
    o = Sqrt(v)  z = Div(d, o)  h = Mul(z, g)  y = Add(h, b)"""
ANGLES = np.arange(5)[:, None] / 10.0 ** np.arange(3)
EMBEDDINGS = {
    "layer normalization": (LAYER, {}, "token table"),
    "written out": (WRITTEN_OUT, {}, "token table"),
    "a product": ("a = Identity(p)  h = MatMul(a, g2)  y = Add(h, b)", {}, "token table"),
    "attention first": ("h = Transpose <perm = [1, 0, 2]> (p)  k = MatMul(h, g2)  f = Transpose <perm = [1, 0, 2]> (k)  y = Add(p, f)", {},
                        "token table"),
    "a softmax": ("h = Softmax(p)  y = LayerNormalization(h, g, b)", {}, ""),
    "normalized over another axis": (
        "h = Transpose <perm = [0, 2, 1]> (p)  k = LayerNormalization(h, g5, g5)  y = Transpose <perm = [0, 2, 1]> (k)", {}, ""),
    "an output": ("y = Identity(p)", {}, ""),
    "a causal mask": (LAYER, {"table": np.triu(np.full((1, 5, 6), -np.inf), 1)}, "token"),
    "a mask of hundreds": (LAYER, {"table": -100 * random(1, 5, 6) ** 2 - 50}, "token"),
    "a mask of two values": (LAYER, {"table": np.where(random(1, 5, 6) > 0, 0, -9.5)}, "token"),
    "coordinates": (LAYER, {"table": np.arange(30).reshape(5, 6)}, "token"),
    "sines and cosines": (LAYER, {"table": np.concatenate([np.sin(ANGLES), np.cos(ANGLES)], 1)[None]}, "token"),
    "a table for heads": ("u = Reshape(p, four)  h = Add(u, bias)  k = Reshape(h, three)  y = LayerNormalization(k, g, b)",
                          {"four": np.array([0, 1, 5, 6]), "three": np.array([0, 5, 6]), "bias": random(1, 1, 5, 6)}, ""),
    "zeros": (LAYER, {"token": np.zeros((1, 1, 6))}, "table"),
}  # fmt: skip


@pytest.mark.parametrize("body, stored, wanted", EMBEDDINGS.values(), ids=EMBEDDINGS)
def test_a_class_token_and_positions_are_trained_and_masks_are_not(
    body: str, stored: dict[str, np.ndarray], wanted: str
) -> None:
    values = {
        "token": random(1, 1, 6),
        "table": random(1, 5, 6),
        "w": random(6, 3, 4, 4),
        "g": random(6),
        "b": random(6),
    }
    values |= {"g2": random(6, 6), "g5": random(5)} | stored
    typed = {
        name: value if value.dtype == np.int64 and name in ("four", "three") else value.astype(np.float32)
        for name, value in values.items()
    }
    module = GraphModule(build(TOKENS.format(body), 17, **INTEGERS, **typed))
    assert set(module.weights()) & {"token", "table", "bias"} == set(wanted.split())
    if wanted == "token table":
        before = module.values()
        train(module, OPTIMIZERS["sgd"], random(3, 3, 8, 8))
        assert all((module.values()[name] != before[name]).all() for name in ("token", "table"))


def test_what_is_joined_to_the_input_itself_is_not_trained() -> None:
    model = build("(float[n, 4, 6] x) => (float[n, 5, 6] y) { j = Concat <axis = 1> (x, pad)  y = LayerNormalization(j, g, g) }", 17,
                  pad=random(1, 1, 6), g=random(6))  # fmt: skip
    model.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 1
    assert set(GraphModule(model).weights()) == {"g"}


def test_an_output_of_the_model_is_not_trained() -> None:
    model = build("(float[n, 4] x) => (float[n, 4] y, float[4, 4] w) { y = MatMul(x, w) }", w=W)
    assert GraphModule(model).weights() == {}
