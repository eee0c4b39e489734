"""Operators on integers: equal to ONNX Runtime's Q/DQ graph, each fed LiteRT's own inputs; and the rules of scales."""

import ml_dtypes
import numpy as np
import onnx
import pytest

pytest.importorskip("ai_edge_litert")

from onnx_lathe.errors import TargetError
from onnx_lathe.runtime.targets.litert.quantization import broken_rules
from onnx_lathe.runtime.targets.litert.running import REFERENCE, XNNPACK, Opened
from onnx_lathe.runtime.targets.litert.stepwise import Steps, check_steps, steps_by_operator
from onnx_lathe.runtime.targets.litert.tensors import Operator, Quantization, Tensor
from tests.support.builders import build, random
from tests.support.litert import agree, codes, content, refusals, written
from tests.support.litert_int8 import (
    convolution,
    operator,
    parameters,
    tables,
    weight,
    without_identities,
    worst,
)


@pytest.mark.parametrize("kernels", [XNNPACK, REFERENCE])
@pytest.mark.parametrize(
    "attributes, shape, code",
    [
        ("", (5, 3, 3, 3), "CONV_2D"),
        ("pads = [1, 1, 1, 1], strides = [2, 2]", (5, 3, 3, 3), "CONV_2D"),
        ("group = 2, pads = [1, 1, 1, 1]", (6, 4, 3, 3), "CONV_2D"),
        ("group = 6, pads = [1, 1, 1, 1]", (6, 1, 3, 3), "DEPTHWISE_CONV_2D"),
        ("group = 6, dilations = [2, 2]", (12, 1, 3, 3), "DEPTHWISE_CONV_2D"),
    ],
)
def test_convolutions(kernels: str, attributes: str, shape: tuple[int, ...], code: str) -> None:
    table, found = tables(convolution(attributes, shape), kernels)
    assert code in codes(found)
    assert worst({code: table[code]})[code] <= (0 if kernels == XNNPACK else 1)
    bias = found.conversion.network.tensors[
        next(one for one in found.conversion.network.operators if one.code == code).inputs[2]
    ]
    assert bias.type == "INT32"
    assert bias.quantization is not None
    assert len(bias.quantization.scales) == shape[0]


@pytest.mark.parametrize(
    "text, shapes, code, most",
    [
        ("c = Add(x, z)", {"x": "1, 4, 5", "z": "1, 4, 5"}, "ADD", 0),
        ("c = Concat <axis = 1> (x, z)", {"x": "1, 4, 5", "z": "1, 3, 5"}, "QUANTIZE", 1),
        (
            "c = MaxPool <kernel_shape = [3, 3], pads = [1, 1, 1, 1], strides = [2, 2]> (x)",
            {"x": "1, 2, 8, 8"},
            "MAX_POOL_2D",
            0,
        ),
        ("c = AveragePool <kernel_shape = [2, 2]> (x)", {"x": "1, 2, 6, 6"}, "AVERAGE_POOL_2D", 1),
        (  # windows at the edges count fewer values: scaled up in float
            "c = AveragePool <kernel_shape = [3, 3], pads = [1, 1, 1, 1], strides = [2, 2]> (x)",
            {"x": "1, 2, 8, 8"},
            "MUL",
            1,
        ),
        ("c = GlobalAveragePool (x)", {"x": "1, 2, 6, 6"}, "MEAN", 0),
        ("c = Relu (x)", {"x": "1, 2, 6, 6"}, "RELU", 0),
        ("c = Clip (x, low, high)", {"x": "1, 2, 6, 6"}, "MINIMUM", 0),
    ],
)
def test_operators(text: str, shapes: dict[str, str], code: str, most: int) -> None:
    bounds = {"low": np.array(-0.5, np.float32), "high": np.array(1.5, np.float32)} if "Clip" in text else {}
    result = parameters("y") if "MaxPool" in text else parameters("y", 0.0833, 11)
    table, found = tables(operator(text, shapes, result, **bounds))
    assert code in codes(found)
    assert max(worst(table).values()) <= most


def test_what_hands_levels_on_gets_the_scale_of_its_result_first() -> None:
    """MAX_POOL_2D with another scale behind it than before would be wrong without a word."""
    text = "c = MaxPool <kernel_shape = [2, 2]> (x)"
    _, found = tables(operator(text, {"x": "1, 2, 6, 6"}, parameters("y", 0.0833, 11)))
    assert codes(found).count("QUANTIZE") == 2
    _, found = tables(operator(text, {"x": "1, 2, 6, 6"}, parameters("y")))
    assert codes(found).count("QUANTIZE") == 1


def test_a_node_with_a_float_result_computes_in_float() -> None:
    model = convolution()
    del model.graph.node[-3:-1]
    model.graph.node[-1].input[0] = "c"
    model = without_identities(model)
    model.graph.node[-1].output[0] = "out"
    found = codes_of(model)
    assert "CONV_2D" in found
    assert found.count("DEQUANTIZE") == 2  # the image, and the weight


def codes_of(model: onnx.ModelProto) -> list[str]:
    return codes(written(model))


def test_int16_activations_with_int8_weights() -> None:
    changed = {**parameters("x", 0.0004, 0, np.int16), **parameters("y", 0.0009, 0, np.int16)}
    weights = weight(5, 3, 3, 3)
    scales = (np.float32(0.0004) * weights["w_scale"]).astype(np.float32)
    bias = {"b_q": np.rint(random(5) / scales).astype(np.int32), "b_scale": scales}
    model = convolution(**changed, **weights, **bias)
    model.opset_import[0].version = 21
    table, found = tables(model, REFERENCE)
    assert worst(table)["CONV_2D"] <= 2
    layer = next(one for one in found.conversion.network.operators if one.code == "CONV_2D")
    assert [found.conversion.network.tensors[place].type for place in layer.inputs] == [
        "INT16",
        "INT8",
        "INT64",
    ]


@pytest.mark.parametrize(
    "changed, reason",
    [
        (lambda given: {"w_q": np.full_like(given["w_q"], -128)}, "its weight 'w_q' has levels below -127"),
        (
            lambda given: {"b_q": np.full_like(given["b_q"], 2**31 - 5)},
            "its sums with bias 'b' can pass what 32 bits hold",
        ),
        (
            lambda given: {"y_scale": np.array(0.0, np.float32)},
            "'y_q_image' has a scale that is no positive number",
        ),
    ],
)
def test_broken_rules_of_layers(changed: object, reason: str) -> None:
    weights = weight(5, 3, 3, 3)
    scales = (np.float32(0.0512347) * weights["w_scale"]).astype(np.float32)
    given = {**weights, "b_q": np.zeros(5, np.int32), "b_scale": scales}
    found = refusals(without_identities(convolution(**{**given, **changed(given)})))  # type: ignore[operator]
    assert found[0] == f"layer: {reason}"


def one_operator(code: str, *tensors: Tensor) -> list[str]:
    made = Operator(code, list(range(len(tensors) - 1)), [len(tensors) - 1], nodes=("layer",))
    return [reason for _, _, reason in broken_rules([made], tensors)]


def stored(name: str, scale: float = 0.1, zero: int = 0, kind: str = "INT8") -> Tensor:
    return Tensor(name, kind, (4,), (), Quantization((scale,), (zero,)))


@pytest.mark.parametrize(
    "code, tensors, reason",
    [
        (
            "RESHAPE",
            (stored("x"), stored("y", 0.2)),
            "'x' has another scale or zero point than 'y', and RESHAPE hands levels on",
        ),
        (
            "SOFTMAX",
            (stored("x"), stored("y", 0.002, -128)),
            "'y' has scale 0.002 and zero point -128; SOFTMAX writes 0.00390625 and -128",
        ),
        (
            "TANH",
            (stored("x"), stored("y", 1 / 128, 1)),
            "'y' has scale 0.0078125 and zero point 1; TANH writes 0.0078125 and 0",
        ),
        ("ADD", (stored("x"), stored("z"), Tensor("y", "INT8", (4,))), "'y' has no scale"),
        (
            "ADD",
            (stored("x"), stored("z", zero=3, kind="INT16"), stored("y")),
            "'z' is INT16 and has a zero point, which LiteRT's kernels have not",
        ),
        ("ADD", (stored("x", kind="UINT8"), stored("z"), stored("y")), "it reads and writes INT8 and UINT8"),
        (
            "ADD",
            (stored("x", zero=200), stored("z"), stored("y")),
            "'x' has a zero point that INT8 does not hold",
        ),
    ],
)
def test_broken_rules(code: str, tensors: tuple[Tensor, ...], reason: str) -> None:
    assert one_operator(code, *tensors) == [reason]


def test_a_kernel_that_rounds_otherwise_is_named() -> None:
    table = Steps()
    table.counts.update({0: 98, 2: 2})
    table.worst.append(("layer", 2, 0.02, "int8"))
    with pytest.raises(
        TargetError,
        match=r"node layer \(CONV_2D\) computes other levels .* by up to 2 steps, where 1 are rounding",
    ):
        check_steps({"CONV_2D": table}, XNNPACK)
    check_steps({"RESIZE_BILINEAR": table}, XNNPACK)


def test_ties_are_told_apart() -> None:
    """x + 3 stored in steps of 6/255: 3 lies in the middle, and so does every x that is a whole number of steps."""
    scale = np.float32(6 / 255)
    constant = {"three_q": np.array(127, np.int8), "three_scale": np.array(3 / 127, np.float32)}
    text = "three = DequantizeLinear (three_q, three_scale) c = Add (x, three)"
    result = {**parameters("x", float(2 * scale), 0), **parameters("y", float(scale), -128)}
    table, _ = tables(operator(text, {"x": "1, 40, 50"}, result, **constant))
    found = table["ADD"]
    assert max(found.counts) == 1
    assert found.ties == found.counts[1] > 100
    assert found.worst[0][2] == 0.0
    check_steps({"ADD": found}, XNNPACK)


def test_a_wrong_weight_is_found_by_name() -> None:
    """Steps are those of the graph that is compared with, not of the network itself."""
    model = without_identities(convolution())
    found = written(model)
    opened = Opened(content(model, found), "model.tflite", keep=True)
    feeds = {"image": random(1, 3, 9, 8)}
    opened.run(feeds)
    weights = next(one for one in model.graph.initializer if one.name == "w_q")
    weights.CopyFrom(onnx.numpy_helper.from_array(-onnx.numpy_helper.to_array(weights), "w_q"))
    with pytest.raises(TargetError, match="node layer"):
        check_steps(steps_by_operator(model, found, opened, feeds), XNNPACK)


@pytest.mark.parametrize("bits, kind", [(8, "INT8"), (4, "INT4")])
def test_a_weight_alone_is_stored_in_integers(bits: int, kind: str) -> None:
    weights = weight(6, 5, axis=0, bits=bits)
    values = weights["w_q"] if bits == 8 else weights["w_q"].astype(ml_dtypes.int4)
    model = build(
        "(float[2, 5] x) => (float[2, 6] y) { w = DequantizeLinear <axis = 0> (w_q, w_scale) y = Gemm <transB = 1> (x, w) }",
        opset=21,
        w_q=values,
        w_scale=weights["w_scale"],
    )
    found = agree(model, tolerance=1e-6)
    assert codes(found) == ["DEQUANTIZE", "FULLY_CONNECTED"]
    assert found.conversion.network.tensors[found.conversion.network.operators[0].inputs[0]].type == kind


def test_a_square_weight_with_scales_along_its_inputs_is_stored_in_float() -> None:
    """As many scales as outputs tell nothing of their axis."""
    weights = weight(6, 6, axis=0)
    weights["w_scale"] *= np.geomspace(0.01, 1, 6, dtype=np.float32)
    model = build(
        "(float[2, 6] x) => (float[2, 6] y) { w = DequantizeLinear <axis = 0> (w_q, w_scale) y = MatMul (x, w) }",
        opset=21,
        **weights,
    )
    assert codes(agree(model, tolerance=1e-6)) == ["FULLY_CONNECTED"]


@pytest.mark.parametrize("zero", [-128, 5])
def test_a_tensor_is_decoded_with_another_scale_than_it_was_stored_with(zero: int) -> None:
    model = build(
        """(float[2, 6] x) => (float[2, 6] y) {
        q = QuantizeLinear (x, s, z) d = DequantizeLinear (q, other, z_other) y = Relu (d) }""",
        s=np.array(0.05, np.float32),
        other=np.array(0.11, np.float32),
        z=np.array(5, np.int8),
        z_other=np.array(zero, np.int8),
    )
    codes_of_it = codes(agree(model, tolerance=1e-6))
    assert codes_of_it[:3] == ["QUANTIZE", "DEQUANTIZE", "MUL"]
