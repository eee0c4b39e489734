"""What the check says of a quantized model: refusals, and layers that would run in float."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnx_lathe.runtime.targets.core.base import LayerVerdict
from onnx_lathe.runtime.targets.tensorrt.check import concerns
from onnx_lathe.runtime.targets.tensorrt.tensorrt import TensorRT
from tests.support import quantized
from tests.support.one_layer import BAD, GOOD, one_layer
from tests.support.quantized import node, stored


def replace(model: onnx.ModelProto, name: str, array: object) -> None:
    stored(model)[name].CopyFrom(numpy_helper.from_array(np.asarray(array), name))


def found(model: onnx.ModelProto) -> list[tuple[str, bool]]:
    return [(concern.node, concern.fatal) for concern in concerns(model)]


def reasons(model: onnx.ModelProto) -> str:
    return "; ".join(concern.reason for concern in concerns(model))


@pytest.mark.parametrize("int8", [False, True])
def test_a_good_model_raises_none(int8: bool) -> None:
    assert TensorRT().check(quantized.lenet(codebook=False, int8=int8), TensorRT.Config()) == []


@pytest.mark.parametrize(
    "zero, words",
    [
        (np.uint8(0), "it is UINT8"),
        (np.uint8(128), "it is UINT8"),
        (np.int16(0), "INT16"),
        (np.int8(3), "zero-point is not 0"),
    ],
)
def test_other_integers_are_refused(zero: np.generic, words: str) -> None:
    model = quantized.lenet(codebook=False)
    replace(model, "p1_zero", zero)
    assert found(model) == [("p1_Q", True), ("p1_DQ", True)]
    assert words in reasons(model)
    assert "quantize the float model with 'int8'" in reasons(model)


def test_a_quantizer_without_zero_point_is_uint8() -> None:
    model = quantized.lenet(codebook=False)
    del node(model, "p1_Q").input[2:]
    assert ("p1_Q", True) in found(model)
    node(model, "p1_Q").attribute.append(helper.make_attribute("output_dtype", TensorProto.INT8))
    assert found(model) == []


def test_an_int32_bias_is_refused() -> None:
    model = quantized.lenet(codebook=False)
    replace(model, "b1", np.zeros(8, np.float32))
    stored(model)["b1"].name = "b1_float"
    model.graph.initializer.append(numpy_helper.from_array(np.zeros(8, np.int32), "b1_codes"))
    model.graph.node.insert(
        0, helper.make_node("DequantizeLinear", ["b1_codes", "w1_scale"], ["b1"], "b1_DQ", axis=0)
    )
    assert found(model) == [("b1_DQ", True)]
    assert "it is INT32" in reasons(model)


@pytest.mark.parametrize("scale", [0.0, -1.0, np.nan, np.inf])
def test_scales_must_be_positive(scale: float) -> None:
    model = quantized.lenet(codebook=False)
    replace(model, "p1_scale", np.float32(scale))
    assert found(model) == [("p1_Q", True), ("p1_DQ", True)]
    assert "a scale is not positive and finite" in reasons(model)


def test_a_scale_of_run_time_is_refused() -> None:
    model = quantized.lenet(codebook=False)
    model.graph.node.insert(
        0, helper.make_node("ReduceMax", ["image"], ["image_scale_now"], "max", keepdims=0)
    )
    for name in ("image_Q", "image_DQ"):
        node(model, name).input[1] = "image_scale_now"
    assert found(model) == [("image_Q", True), ("image_DQ", True)]
    assert "crashes" in reasons(model)


def test_a_scale_in_a_constant_node_is_a_constant() -> None:
    model = quantized.lenet(codebook=False)
    scale = stored(model)["p1_scale"]
    model.graph.node.insert(0, helper.make_node("Constant", [], ["p1_scale"], "constant", value=scale))
    model.graph.initializer.remove(scale)
    assert found(model) == []


def test_operators_that_tensorrt_has_not() -> None:
    nodes = [helper.make_node("DynamicQuantizeLinear", ["x"], ["q", "s", "z"], "dynamic")]
    model = quantized.model(nodes, {"x": [2, 3]}, {"q": ([2, 3], TensorProto.UINT8)}, {})
    assert found(model) == [("dynamic", True)]


def test_a_scale_of_shape_1_puts_layers_in_float() -> None:
    model = quantized.lenet(codebook=False)
    replace(model, "p1_scale", np.full(1, 0.02, np.float32))
    assert found(model) == [("p1_Q", False), ("p1_DQ", False)]
    assert "run in float" in reasons(model)


def test_half_quantized_layers_run_in_float() -> None:
    model = quantized.lenet(codebook=False)
    node(model, "conv2").input[0] = "p1"
    assert found(model) == [("conv2", False)]
    assert "only its weight is quantized" in reasons(model)
    model = quantized.lenet(codebook=False)
    node(model, "conv2").input[1] = "float_weight"
    model.graph.initializer.append(
        numpy_helper.from_array(np.zeros((8, 8, 3, 3), np.float32), "float_weight")
    )
    assert found(model) == [("conv2", False)]
    assert "only its input is quantized" in reasons(model)


@pytest.mark.parametrize("layer, axis", [("w2", 1), ("w3", 1)])
def test_a_weight_quantized_along_its_input_runs_in_float(layer: str, axis: int) -> None:
    model = quantized.lenet(codebook=False)
    size = stored(model)[f"{layer}_q"].dims[axis]
    replace(model, f"{layer}_scale", np.full(size, 0.01, np.float32))
    replace(model, f"{layer}_zero", np.zeros(size, np.int8))
    node(model, f"{layer}_DQ").attribute[0].i = axis
    assert found(model) == [({"w2": "conv2", "w3": "fc"}[layer], False)]
    assert "per output channel" in reasons(model)


def test_depthwise_and_transposed_layers() -> None:
    model = quantized.lenet(codebook=False)
    node(model, "conv2").attribute.append(helper.make_attribute("group", 8))
    replace(model, "w2_q", np.ones((8, 1, 3, 3), np.int8))
    assert found(model) == [("conv2", False)]
    assert "depthwise" in reasons(model)
    model = quantized.lenet(codebook=False)
    node(model, "conv2").op_type = "ConvTranspose"
    assert "no INT8 transposed convolution" in reasons(model)


def verdict(layer: dict) -> LayerVerdict:
    (found,) = TensorRT().layers(one_layer(**layer))
    return found


@pytest.mark.parametrize("name", GOOD)
def test_operators_that_hand_int8_on(name: str) -> None:
    assert verdict(GOOD[name]) == LayerVerdict("layer", GOOD[name].get("op", "Conv"), True)
    assert found(one_layer(**GOOD[name])) == []


@pytest.mark.parametrize("name", BAD)
def test_operators_that_do_not(name: str) -> None:
    layer, rule = BAD[name]
    assert not verdict(layer).int8
    assert rule in verdict(layer).reason


@pytest.mark.parametrize("scale, int8", [(0.05, True), (0.08, False)])
def test_a_concat_hands_on_what_has_one_scale(scale: float, int8: bool) -> None:
    model = one_layer(codes=(32, 32, 3, 3), activation=[("Concat", {}, {"axis": 1})])
    model.graph.initializer.append(numpy_helper.from_array(np.float32(scale), "s2"))
    second = [onnx.NodeProto() for _ in range(2)]
    for copy, original in zip(second, model.graph.node, strict=False):
        copy.CopyFrom(original)
        copy.name += "2"
        copy.output[0] += "2"
        copy.input[1] = "s2"
    second[1].input[0] += "2"
    model.graph.node.insert(2, second[1])
    model.graph.node.insert(2, second[0])
    node(model, "x_dq_Concat").input.append("x_dq2")
    (layer,) = TensorRT().layers(model)
    assert layer.int8 == int8


def test_blocks_do_not_go_with_int8() -> None:
    model = one_layer(
        op="MatMul", image=(8, 32), codes=(32, 16), axis=0, block_size=16, scales=np.ones((2, 16), np.float32)
    )
    assert found(model) == [("layer", True)]
    assert "in blocks" in reasons(model)
