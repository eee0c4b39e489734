"""What the check says of a quantized model: refusals, and layers that would run in float."""

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnx_lathe.errors import TargetError
from onnx_lathe.runtime.targets.core.base import LayerVerdict
from onnx_lathe.runtime.targets.tensorrt.attempts import with_branches
from onnx_lathe.runtime.targets.tensorrt.check import concerns
from onnx_lathe.runtime.targets.tensorrt.messages import tidy_error
from onnx_lathe.runtime.targets.tensorrt.refusals import deciding_inputs
from onnx_lathe.runtime.targets.tensorrt.tensorrt import TensorRT, TensorRTRTX
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
    assert ("Concat stands between its input's pair and it" in layer.reason) != int8


BETWEEN = [("Relu", {}, {}), ("Add", {"b": np.float32(1)}, {}), ("Flatten", {}, {})]


def test_what_stands_between_a_pair_and_its_layer_is_named() -> None:
    """The nearest of them, behind which a pair would do: Flatten hands INT8 on, Relu and Add do not."""
    layer = {"op": "Gemm", "codes": (4096, 8), "axis": 1, "activation": BETWEEN}
    assert verdict(layer).reason == (
        "Add stands between its input's pair and it: the layer runs in float; move the pair behind it"
    )


@pytest.mark.parametrize("cut", ["Conv", "input"])
def test_a_pair_of_another_layer_or_none_is_not_blamed(cut: str) -> None:
    steps = [("Conv", {"k": np.ones((16, 16, 1, 1), np.float32)}, {}), ("Relu", {}, {})]
    model = one_layer(activation=steps[cut == "input" :])
    if cut == "input":
        node(model, "x_dq_Relu").input[0] = "x"
    (layer,) = [one for one in TensorRT().layers(model) if one.node == "layer"]
    assert layer.reason.startswith("only its weight is quantized")


def test_blocks_do_not_go_with_int8() -> None:
    model = one_layer(
        op="MatMul", image=(8, 32), codes=(32, 16), axis=0, block_size=16, scales=np.ones((2, 16), np.float32)
    )
    assert found(model) == [("layer", True)]
    assert "in blocks" in reasons(model)


def conditional(
    condition: list[onnx.NodeProto], then_body: list[onnx.NodeProto], rank: int = 2
) -> onnx.ModelProto:
    """y = If(c): what `then_body` makes of x [2, 4], else Abs(x); `rank`: of the first."""
    value = helper.make_tensor_value_info
    shapes = [[2, 4][-rank:], [2, 4]]
    bodies = [
        helper.make_graph(nodes, name, [], [value(nodes[-1].output[0], TensorProto.FLOAT, shape)])
        for nodes, name, shape in (
            (then_body, "yes", shapes[0]),
            ([helper.make_node("Abs", ["x"], ["b"], "abs")], "no", shapes[1]),
        )
    ]
    choose = helper.make_node("If", ["c"], ["y"], "choose", then_branch=bodies[0], else_branch=bodies[1])
    constants = {
        "zero": np.float32(0), "first": np.array(0), "two": np.array(2), "axes": np.array([0]), "s": np.float32(0.1),
        "z16": np.int16(0), "z": np.int8(0), "wz": np.zeros(4, np.int8), "w": np.ones((4, 4), np.int8), "ws": np.ones(4, np.float32),
    }  # fmt: skip
    tensors = [numpy_helper.from_array(np.asarray(array), name) for name, array in constants.items()]
    graph = helper.make_graph(
        [*condition, choose], "net", [value("x", TensorProto.FLOAT, ["n", 4])], [value("y", TensorProto.FLOAT, ["a", "b"])], tensors
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


ON_VALUES = [
    helper.make_node("ReduceSum", ["x"], ["sum"], "sum", keepdims=0),
    helper.make_node("Greater", ["sum", "zero"], ["c"], "greater"),
]
ON_SHAPES = [
    helper.make_node("Shape", ["x"], ["shape"], "shape"),
    helper.make_node("Gather", ["shape", "first"], ["size"], "size"),
    helper.make_node("Equal", ["size", "two"], ["c"], "equal"),
]
INT8_LAYER = [
    helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"], "q"),
    helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"], "dq"),
    helper.make_node("DequantizeLinear", ["w", "ws", "wz"], ["weight"], "w_dq", axis=1),
    helper.make_node("MatMul", ["d", "weight"], ["a"], "layer"),
]


def test_bodies_are_looked_into() -> None:
    wrong = [
        helper.make_node("QuantizeLinear", ["x", "s", "z16"], ["q"], "q"),
        helper.make_node("DequantizeLinear", ["q", "s", "z16"], ["a"], "dq"),
    ]
    assert found(conditional(ON_VALUES, wrong)) == [("q", True), ("dq", True)]
    right = conditional(ON_VALUES, INT8_LAYER)
    assert found(right) == []
    assert [(one.node, one.int8) for one in TensorRT().layers(right)] == [("layer", True)]


def refused(model: onnx.ModelProto, target: type = TensorRT, **options: str) -> list[tuple[str, str]]:
    config = target.Config(**options)
    return [(name, reason) for name, _, reason in target().refusals(model, config)]


@pytest.mark.parametrize(
    "condition, advice",
    [
        (
            ON_VALUES,
            ", and they follow from the values of input 'x': make a constant of that by --fix-input NAME=VALUE",
        ),
        (ON_SHAPES, ": pass fold, and sizes that are fixed, may take them out"),
    ],
    ids=["values", "shapes"],
)
def test_what_decides_a_branch_that_is_refused_is_named(condition: list[onnx.NodeProto], advice: str) -> None:
    branches = deciding_inputs(conditional(condition, INT8_LAYER).graph)
    said = str(with_branches(TargetError("graphScope.cpp: failed"), branches))
    assert f"TensorRT has to know the conditions of choose when it builds{advice}" in said
    assert str(with_branches(TargetError("out of memory"), branches)) == "out of memory"


def test_a_body_that_does_not_run_at_the_sizes_names_what_decides_it() -> None:
    text = "reshape changes volume to multiple of original non-zero volume. Reshaping [1,128,2] to [1,128]"
    refused = TargetError(
        tidy_error(f"{text}. In operator() at /_src/optimizer/common/shape/shapeContext.cpp:4633")
    )
    said = str(with_branches(refused, deciding_inputs(conditional(ON_VALUES, INT8_LAYER).graph)))
    assert said.startswith(f"{text}; all bodies of choose are built, for the same sizes")
    assert "the values of input 'x'" in said
    assert with_branches(refused, deciding_inputs(conditional(ON_SHAPES, INT8_LAYER).graph)) is refused


def test_branches_of_unlike_ranks_are_refused_where_a_value_decides() -> None:
    squeeze = [helper.make_node("ReduceSum", ["x", "axes"], ["a"], "reduce", keepdims=0)]
    (name, reason), *more = refused(conditional(ON_VALUES, squeeze, rank=1))
    assert (name, more) == ("choose", [])
    assert "1 dimension and 2 dimensions" in reason
    assert refused(conditional(ON_SHAPES, squeeze, rank=1)) == []
    assert refused(conditional(ON_VALUES, INT8_LAYER)) == []


def test_fp8_runs_in_fp8_on_gpus_that_have_it() -> None:
    kind = ml_dtypes.float8_e4m3fn
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"], "q"),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"], "dq"),
        helper.make_node("DequantizeLinear", ["codes", "s", "z"], ["w"], "w_dq"),
        helper.make_node("MatMul", ["d", "w"], ["y"], "product"),
    ]
    constants = {"s": np.float32(0.1), "z": np.array(0, kind), "codes": np.ones((4, 4), kind)}
    model = quantized.model(nodes, {"x": [2, 4]}, {"y": [2, 4]}, constants)
    (verdict,) = TensorRT().layers(model)
    assert (verdict.int8, verdict.reason) == (False, "it runs in FP8")
    assert refused(model, TensorRTRTX, compute="sm89+sm120") == []
    (name, reason), *more = refused(model, TensorRTRTX, compute="sm86+sm89")
    assert (name, more) == ("q", [])
    assert reason == "it is FP8, which needs sm89 or later, and this build is for sm86"
    assert refused(model) == []  # TensorRT builds for the GPU at hand, which it knows itself


@pytest.mark.parametrize("scale", [1e-40, 1e-45])
def test_a_scale_that_a_gpu_takes_for_zero(scale: float) -> None:
    model = quantized.lenet(codebook=False)
    replace(model, "p1_scale", np.float32(scale))
    assert found(model) == [("p1_Q", True), ("p1_DQ", True)]
    replace(model, "p1_scale", np.float32(2e-38))
    assert found(model) == []


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_weights_that_are_no_numbers(value: float) -> None:
    weight = np.ones((4, 4), np.float32)
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"], "product")]
    assert refused(quantized.model(nodes, {"x": [2, 4]}, {"y": [2, 4]}, {"w": weight})) == []
    weight[3, 3] = value
    (name, reason), *more = refused(quantized.model(nodes, {"x": [2, 4]}, {"y": [2, 4]}, {"w": weight}))
    assert (name, more) == ("product", [])
    assert "its weight 'w' has values that are NaN or infinite" in reason


def test_an_input_that_decides_a_shape_by_way_of_others() -> None:
    nodes = [
        helper.make_node("Unsqueeze", ["size", "axes"], ["row"], "row"),
        helper.make_node("Concat", ["row", "rest"], ["shape"], "concat", axis=0),
        helper.make_node("Reshape", ["x", "shape"], ["y"], "reshape"),
    ]
    constants = {"axes": np.array([0]), "rest": np.array([-1])}
    inputs = {"x": [2, 4], "size": ([], TensorProto.INT64)}
    model = quantized.model(nodes, inputs, {"y": [None, None]}, constants)
    assert [name for name, _ in refused(model)] == ["input 'size'"]
