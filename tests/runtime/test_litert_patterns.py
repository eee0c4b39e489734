"""Several nodes that are one operator of LiteRT, and what only looks like them."""

import numpy as np
import pytest

from tests.support.builders import build, random
from tests.support.litert_operators import agree

pytest.importorskip("ai_edge_litert")

STORED = {
    "one": np.float32(1),
    "half": np.float32(0.5),
    "root": np.float32(2**0.5),
    "inverse": np.float32(0.5**0.5),
}


def codes(body: str, outputs: str = "float[2, 8] y", **stored: np.ndarray) -> list[str]:
    values = {**STORED, **stored}
    used = {name: value for name, value in values.items() if f" {name})" in body or f"({name}," in body}
    return agree(build(f"(float[2, 8] x) => ({outputs}) {{ {body} }}", **used))


@pytest.mark.parametrize(
    "body",
    [
        "a = Div(x, root) e = Erf(a) s = Add(e, one) p = Mul(x, s) y = Mul(p, half)",
        "a = Mul(x, inverse) e = Erf(a) s = Add(one, e) h = Mul(x, half) y = Mul(h, s)",
        "a = Div(x, root) e = Erf(a) s = Add(e, one) h = Mul(s, half) y = Mul(x, h)",
        "a = Mul(inverse, x) e = Erf(a) s = Add(e, one) p = Mul(s, x) y = Mul(half, p)",
    ],
)
def test_gelu(body: str) -> None:
    assert codes(body) == ["GELU"]


@pytest.mark.parametrize(
    "body, outputs",
    [
        ("a = Div(x, half) e = Erf(a) s = Add(e, one) p = Mul(x, s) y = Mul(p, half)", "float[2, 8] y"),
        ("a = Div(x, root) e = Erf(a) s = Add(e, half) p = Mul(x, s) y = Mul(p, half)", "float[2, 8] y"),
        ("a = Div(x, root) e = Erf(a) s = Add(e, one) p = Mul(a, s) y = Mul(p, half)", "float[2, 8] y"),
        ("a = Div(x, root) e = Erf(a) s = Add(e, one) p = Mul(x, s) y = Mul(p, root)", "float[2, 8] y"),
        (
            "a = Div(x, root) e = Erf(a) s = Add(e, one) p = Mul(x, s) y = Mul(p, half)",
            "float[2, 8] y, float[2, 8] s",
        ),
        (
            "a = Div(x, root) e = Erf(a) s = Add(e, one) p = Mul(x, s) q = Mul(p, half) y = Mul(q, s)",
            "float[2, 8] y",
        ),
        ("a = Div(root, x) e = Erf(a) s = Add(e, one) p = Mul(x, s) y = Mul(p, half)", "float[2, 8] y"),
    ],
)
def test_what_only_looks_like_gelu_is_written_as_it_is(body: str, outputs: str) -> None:
    assert codes(body, outputs).count("GELU") == 1
    assert "SIGN" in codes(body, outputs)


def test_what_is_added_to_a_product_is_its_bias() -> None:
    weight, bias = random(8, 8), random(8)
    assert codes("p = MatMul(x, w) y = Add(p, b)", w=weight, b=bias) == ["FULLY_CONNECTED"]
    assert codes("p = MatMul(x, w) s = Add(b, p) y = Relu(s)", w=weight, b=bias[None]) == ["FULLY_CONNECTED"]
    assert codes("p = MatMul(x, w) y = Add(p, b)", w=weight, b=random(2, 8)) == ["FULLY_CONNECTED", "ADD"]
    assert codes("p = MatMul(x, w) y = Add(p, x)", w=weight) == ["FULLY_CONNECTED", "ADD"]
    assert codes("p = MatMul(x, w) y = Add(p, b)", "float[2, 8] y, float[2, 8] p", w=weight, b=bias) == [
        "FULLY_CONNECTED",
        "ADD",
    ]
