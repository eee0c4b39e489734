"""Which weights are found: decoded ones at the opset of their graph, and why others are not."""

import numpy as np
import onnx
import pytest

from onnx_lathe.passes.graph.layers import constant_value, weights, zeros_of
from onnx_lathe.passes.graph.model import import_model
from tests.support.builders import build, random


def refusals(model: onnx.ModelProto) -> dict[str, str]:
    found: dict[str, str] = {}
    list(weights(import_model(model), found.__setitem__))
    return found


@pytest.mark.parametrize(
    "text, stored, shape",
    [
        ("v = Unsqueeze <axes = [3]> (w)", random(6, 4, 3), (6, 4, 3, 1)),
        ("v = Squeeze <axes = [0]> (w)", random(1, 6, 1, 3, 3), (6, 1, 3, 3)),
    ],
)
def test_a_weight_is_decoded_by_the_rules_of_its_opset(
    text: str, stored: np.ndarray, shape: tuple[int, ...]
) -> None:
    model = build(
        f"(float[N, {shape[1]}, 8, 8] x) => (float[N, a, b, c] y) {{ {text} y = Conv (x, v) }}", 11, w=stored
    )
    (weight,) = weights(import_model(model), refuse=pytest.fail)
    assert constant_value(weight.tensor, weight.opset).shape == shape
    assert weight.axis == 0
    assert zeros_of(weight.tensor, weight.opset) == (0, shape)


@pytest.mark.parametrize("opset", [10, 13, 21])
def test_int8_weights_are_decoded_at_any_opset(opset: int) -> None:
    text = "(float[N, 4] x) => (float[N, 6] y) { w = DequantizeLinear (q, s) y = MatMul (x, w) }"
    model = build(text, opset, q=np.full((4, 6), 3, np.int8), s=np.float32(0.5))
    (weight,) = weights(import_model(model), refuse=pytest.fail)
    np.testing.assert_array_equal(
        constant_value(weight.tensor, weight.opset), np.full((4, 6), 1.5, np.float32)
    )


def test_a_weight_that_cannot_be_decoded_is_a_reason() -> None:
    text = "(float[N, 4] x) => (float[N, 6] y) { v = Reshape (w, s) y = MatMul (x, v) }"
    model = build(text, w=random(5, 5), s=np.array([4, 6]))
    assert refusals(model)["MatMul_1"].startswith("its weight cannot be computed: ")


@pytest.mark.parametrize("layer", ["MatMul", "Gemm"])
def test_a_constant_node_is_to_be_folded(layer: str) -> None:
    text = f"(float[N, 2] x) => (float[N, 2] y) {{ w = Constant <value = float[2, 2] {{1., 2., 3., 4.}}> () y = {layer} (x, w) }}"
    assert refusals(build(text)) == {f"{layer}_1": "its weight is a Constant node; fold first"}


def test_a_weight_on_the_left_is_named() -> None:
    assert refusals(build("(float[4, N] x) => (float[6, N] y) { y = MatMul (w, x) }", w=random(6, 4))) == {
        "MatMul_0": "its weight is the left operand"
    }


def test_a_product_of_activations_is_no_layer() -> None:
    assert refusals(build("(float[4, 4] x) => (float[4, 4] y) { y = MatMul (x, x) }")) == {}


def test_a_weight_of_repeated_numbers_is_found_where_it_is_asked_for() -> None:
    text = "(float[N, 8] x) => (float[N, 16] y) { w = Expand (v, s)  y = MatMul (x, w) }"
    model = build(text, v=random(1, 16), s=np.array([8, 16]))
    assert refusals(model) == {"MatMul_1": "its weight is written by Expand from fewer numbers than it has"}
    (weight,) = weights(import_model(model), refuse=pytest.fail, filled=True)
    assert constant_value(weight.tensor, weight.opset).shape == (8, 16)
