"""Convolutions of all kinds as LiteRT's operators, against ONNX Runtime."""

import numpy as np
import onnx
import pytest

pytest.importorskip("ai_edge_litert")

from tests.support.builders import build, random
from tests.support.litert import agree, codes, refusals


def conv(
    attributes: str, weight: tuple[int, ...], source: str, op: str = "Conv", bias: bool = True
) -> onnx.ModelProto:
    outputs = weight[0] if op == "Conv" else weight[1]
    group = (
        int(attributes.split("group = ")[1].split(",")[0]) if "group" in attributes and op != "Conv" else 1
    )
    given = {"w": random(*weight)} | ({"b": random(outputs * group)} if bias else {})
    listed = f"<{attributes}>" if attributes else ""
    shape = ",".join("NCHW"[: source.count(",") + 1])
    return build(
        f"(float[{source}] x) => (float[{shape}] y) {{ [layer] y = {op} {listed} ({', '.join(['x', *given])}) }}",
        **given,
    )


@pytest.mark.parametrize(
    "attributes, weight, source, wanted",
    [
        ("pads = [1, 1, 1, 1]", (5, 3, 3, 3), "1, 3, 9, 7", ["CONV_2D"]),
        ("pads = [1, 1, 1, 1], strides = [2, 2]", (5, 3, 3, 3), "1, 3, 9, 7", ["CONV_2D"]),
        ("pads = [1, 1, 1, 1], strides = [2, 2]", (5, 3, 3, 3), "1, 3, 8, 8", ["PAD", "CONV_2D"]),
        ("pads = [0, 1, 2, 3], strides = [2, 1]", (4, 3, 3, 5), "1, 3, 11, 8", ["PAD", "CONV_2D"]),
        ("dilations = [2, 3]", (4, 3, 3, 2), "1, 3, 11, 9", ["CONV_2D"]),
        ("dilations = [2, 2], pads = [2, 2, 2, 2]", (4, 3, 3, 3), "1, 3, 11, 9", ["CONV_2D"]),
        ('auto_pad = "SAME_UPPER", strides = [2, 2]', (4, 3, 4, 3), "1, 3, 11, 8", ["CONV_2D"]),
        ('auto_pad = "SAME_LOWER", strides = [2, 2]', (4, 3, 4, 3), "1, 3, 11, 8", ["PAD", "CONV_2D"]),
        ('auto_pad = "VALID"', (4, 3, 2, 3), "1, 3, 6, 8", ["CONV_2D"]),
        ("strides = [3, 2]", (4, 3, 2, 2), "1, 3, 9, 8", ["CONV_2D"]),
        ("group = 4", (4, 1, 3, 3), "1, 4, 6, 6", ["DEPTHWISE_CONV_2D"]),
        ("group = 4, dilations = [2, 2]", (8, 1, 3, 3), "1, 4, 7, 6", ["DEPTHWISE_CONV_2D"]),
        ("group = 2, pads = [1, 1, 1, 1]", (6, 2, 3, 3), "1, 4, 6, 6", ["CONV_2D"]),
        ("", (4, 1, 3, 3), "1, 1, 6, 6", ["CONV_2D"]),
        ("pads = [2, 1], strides = [2]", (4, 3, 5), "1, 3, 20", ["EXPAND_DIMS", "PAD", "CONV_2D", "SQUEEZE"]),
        (
            "group = 3, pads = [2, 1]",
            (3, 1, 4),
            "1, 3, 20",
            ["EXPAND_DIMS", "PAD", "DEPTHWISE_CONV_2D", "SQUEEZE"],
        ),
    ],
)
def test_convolutions(attributes: str, weight: tuple[int, ...], source: str, wanted: list[str]) -> None:
    found = codes(agree(conv(attributes, weight, source)))
    assert found == ["TRANSPOSE", *wanted, "TRANSPOSE"]


@pytest.mark.parametrize(
    "attributes, weight, source",
    [
        ("strides = [2, 2]", (3, 4, 2, 2), "1, 3, 5, 6"),
        ("strides = [2, 2], pads = [1, 1, 1, 1]", (3, 4, 4, 4), "1, 3, 5, 6"),
        ("strides = [2, 2], pads = [1, 1, 1, 1], output_padding = [1, 1]", (3, 4, 3, 3), "1, 3, 5, 6"),
        ("strides = [2, 2], pads = [0, 0, 1, 1], output_padding = [1, 1]", (3, 4, 3, 3), "1, 3, 5, 6"),
        ("strides = [2, 2], output_padding = [1, 1]", (3, 4, 2, 2), "1, 3, 5, 6"),
        ("strides = [3, 1], pads = [0, 2, 1, 0]", (3, 4, 4, 3), "1, 3, 5, 6"),
        ("dilations = [2, 1], pads = [1, 1, 1, 1]", (3, 4, 3, 3), "1, 3, 5, 6"),
        ("output_shape = [10, 12], strides = [2, 2]", (3, 4, 3, 3), "1, 3, 5, 6"),
        ('auto_pad = "SAME_UPPER", strides = [2, 2]', (3, 4, 3, 3), "1, 3, 5, 6"),
        ("group = 2, strides = [2, 2]", (4, 3, 2, 2), "1, 4, 5, 6"),
        ("strides = [4], pads = [2, 2]", (3, 4, 8), "1, 3, 9"),
        ("strides = [4]", (3, 4, 4), "1, 3, 9"),
    ],
)
def test_transposed_convolutions(attributes: str, weight: tuple[int, ...], source: str) -> None:
    assert "TRANSPOSE_CONV" in codes(agree(conv(attributes, weight, source, "ConvTranspose")))


@pytest.mark.parametrize("batch", [1, 3])
def test_a_batch_stays_open(batch: int) -> None:
    model = build(
        "(float[N, 3, 8, 8] x) => (float[N, 5, 4, 4] y) { [layer] y = Conv <strides = [2, 2], pads = [1, 1, 1, 1]> (x, w) }",
        w=random(5, 3, 3, 3),
    )
    assert agree(model, {"x": random(batch, 3, 8, 8)}).batch


def test_a_transposed_convolution_leaves_the_batch_open() -> None:
    model = build(
        "(float[N, 3, 8, 8] x) => (float[N, 5, 16, 16] y) { [layer] y = ConvTranspose <strides = [2, 2]> (x, w) }",
        w=random(3, 5, 2, 2),
    )
    assert agree(model, {"x": random(1, 3, 8, 8)}).batch


def test_what_fixes_the_batch_is_said() -> None:
    text = (
        "(float[N, 6] x) => (float[N, 2] y) { v, i = TopK(x, k) [pick] y = GatherElements<axis = 1>(x, i) }"
    )
    found = agree(build(text, k=np.array([2])), {"x": random(1, 6)})
    assert not found.batch
    assert (
        "of node 'pick' (GatherElements) the sizes of its indices depend on the size of the input"
        in found.reason
    )


def sandwich(activation: str) -> onnx.ModelProto:
    return build(
        "(float[1, 8, 8, 3] x) => (float[1, 8, 8, 5] y) { a = Transpose <perm = [0, 3, 1, 2]> (x)"
        f" b = Conv <pads = [1, 1, 1, 1]> (a, w) c = {activation} y = Transpose <perm = [0, 2, 3, 1]> (c) }}",
        w=random(5, 3, 3, 3),
        six=np.array(6, np.float32),
        one=np.array(1, np.float32),
        less=np.array(-1, np.float32),
        zero=np.array(0, np.float32),
    )


@pytest.mark.parametrize(
    "activation, word",
    [("Relu(b)", "RELU"), ("Clip(b, zero, six)", "RELU6"), ("Clip(b, less, one)", "RELU_N1_TO_1")],
)
def test_a_sandwich_is_one_operator(activation: str, word: str) -> None:
    found = agree(sandwich(activation))
    assert codes(found) == ["CONV_2D"]
    assert found.conversion.network.operators[0].fields["fusedActivationFunction"] == word


def test_another_activation_is_an_operator_of_its_own() -> None:
    model = build(
        "(float[1, 3, 8, 8] x) => (float[1, 5, 6, 6] y) { b = Conv(x, w) y = Clip(b, zero, one) }",
        w=random(5, 3, 3, 3),
        one=np.array(1, np.float32),
        zero=np.array(0, np.float32),
    )
    assert codes(agree(model)) == ["TRANSPOSE", "CONV_2D", "TRANSPOSE", "RELU_0_TO_1"]


def test_an_activation_that_others_read_around_stays() -> None:
    model = build(
        "(float[1, 3, 8, 8] x) => (float[1, 5, 6, 6] y, float[1, 5, 6, 6] z) { y = Conv(x, w) z = Relu(y) }",
        w=random(5, 3, 3, 3),
    )
    assert codes(agree(model)).count("RELU") == 1


def test_float16_weights_are_half_the_file() -> None:
    found = agree(sandwich("Relu(b)"), half=True, tolerance=2e-3)
    assert codes(found) == ["DEQUANTIZE", "CONV_2D"]
    assert found.conversion.network.tensors[found.conversion.network.operators[0].inputs[0]].type == "FLOAT16"


def test_what_float16_does_not_hold_stays_float32() -> None:
    model = sandwich("Relu(b)")
    weight = onnx.numpy_helper.from_array(1e5 * random(5, 3, 3, 3), "w")
    model.graph.initializer[0].CopyFrom(weight)
    found = agree(model, half=True)
    assert codes(found) == ["CONV_2D"]
    assert found.conversion.network.beyond_half == ["w"]


def test_three_dimensions_are_refused_by_name() -> None:
    model = build(
        "(float[1, 3, 5, 5, 5] x) => (float[N, C, D, H, W] y) { [layer] y = Conv (x, w) }",
        w=random(4, 3, 2, 2, 2),
    )
    assert refusals(model) == ["layer: it has 3 spatial dimensions; LiteRT's CONV_2D has 1 or 2"]


def test_a_computed_weight_is_refused_by_name() -> None:
    model = build(
        "(float[1, 3, 5, 5] x, float[2, 3, 3, 3] w) => (float[N, C, H, W] y) { [layer] y = Conv (x, w) }"
    )
    assert refusals(model) == ["layer: its weight is computed at run time"]
