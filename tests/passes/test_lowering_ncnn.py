"""The lowering for ncnn: which layers stay INT8, where their pairs stand, and equal outputs in ONNX Runtime."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnx_lathe import metadata
from onnx_lathe.placement import Placement
from tests.support import quantized
from tests.support.quantized import IMAGES, assert_same, node, run, stored

PLACEMENT = Placement(joins=False)


def lower(model: onnx.ModelProto, placement: Placement = PLACEMENT):
    return quantized.lower(model, "ncnn", placement)


def ops(model: onnx.ModelProto) -> list[str]:
    return [one.op_type for one in model.graph.node]


def test_pairs_of_layers_stay_and_weights_are_integers() -> None:
    lowered, report = lower(quantized.lenet())
    assert not report.skips
    for name in ("conv1", "conv2", "fc"):
        decoder = next(one for one in lowered.graph.node if one.output[0] == node(lowered, name).input[1])
        assert decoder.op_type == "DequantizeLinear"
        assert stored(lowered)[decoder.input[0]].data_type == TensorProto.INT8
    assert "Gather" not in ops(lowered)
    assert_same(quantized.lenet(), lowered, IMAGES)


def test_a_pair_moves_behind_what_changes_no_value() -> None:
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"], "q"),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"], "d"),
        helper.make_node("Reshape", ["d", "shape"], ["flat"], "flatten"),
        helper.make_node("DequantizeLinear", ["w", "ws", "wz"], ["wd"], "wd", axis=0),
        helper.make_node("Gemm", ["flat", "wd"], ["y"], "fc", transB=1),
    ]
    constants = {
        "s": np.float32(0.02), "z": np.int8(0), "shape": np.array([1, 12], np.int64),
        "w": np.random.default_rng(0).integers(-127, 128, (5, 12)).astype(np.int8),
        "ws": np.linspace(0.01, 0.02, 5, dtype=np.float32), "wz": np.zeros(5, np.int8),
    }  # fmt: skip
    model = quantized.model(nodes, {"x": [1, 3, 2, 2]}, {"y": [1, 5]}, constants)
    lowered, _ = lower(model)
    before = next(one for one in lowered.graph.node if one.output[0] == node(lowered, "fc").input[0])
    assert before.op_type == "DequantizeLinear"
    assert ops(lowered).count("QuantizeLinear") == 1
    feeds = {"x": np.random.default_rng(1).standard_normal((1, 3, 2, 2)).astype(np.float32)}
    assert_same(model, lowered, feeds)


def test_a_pair_that_serves_no_layer_goes() -> None:
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"], "q"),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"], "d"),
        helper.make_node("Relu", ["d"], ["y"], "relu"),
    ]
    constants = {"s": np.float32(0.02), "z": np.int8(0)}
    lowered, report = lower(quantized.model(nodes, {"x": [1, 4]}, {"y": [1, 4]}, constants))
    assert ops(lowered) == ["Clip", "Relu"]
    assert [(edit.node, edit.what) for edit in report.edits] == [("relu", "reads x in float")]
    feeds = {"x": np.array([[-1, 0.013, 0.5, 200]], np.float32)}
    assert np.allclose(run(lowered, feeds)[0], [[0, 0.013, 0.5, 127 * 0.02]])


def test_a_pair_of_ours_goes_without_a_trace() -> None:
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"], "q"),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"], "d"),
        helper.make_node("Relu", ["d"], ["y"], "relu"),
    ]
    nodes[0].metadata_props.add(key=metadata.RANGE, value="[-2.54, 2.54]")
    constants = {"s": np.float32(0.02), "z": np.int8(0)}
    lowered, _ = lower(quantized.model(nodes, {"x": [1, 4]}, {"y": [1, 4]}, constants))
    assert ops(lowered) == ["Relu"]


@pytest.mark.parametrize("zero", [np.uint8(0), np.int8(-128), None])
def test_a_relu_that_a_quantizer_does_is_not_lost(zero: np.generic | None) -> None:
    """As ONNX Runtime's quantizer writes a ReLU in front of UINT8: it leaves it out."""
    pair = ["s"] if zero is None else ["s", "z"]
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], "first"),
        helper.make_node("QuantizeLinear", ["c", *pair], ["q"], "q"),
        helper.make_node("DequantizeLinear", ["q", *pair], ["d"], "d"),
        helper.make_node("DequantizeLinear", ["codes", "ws", "wz"], ["v"], "v", axis=0),
        helper.make_node("Conv", ["d", "v"], ["y"], "second"),
    ]
    generator = np.random.default_rng(0)
    constants = {
        "s": np.float32(0.02), "w": generator.standard_normal((4, 4, 1, 1)).astype(np.float32),
        "codes": generator.integers(-127, 128, (4, 4, 1, 1)).astype(np.int8),
        "ws": np.full(4, 0.01, np.float32), "wz": np.zeros(4, np.int8),
    } | ({} if zero is None else {"z": zero})  # fmt: skip
    model = quantized.model(nodes, {"x": [1, 4, 8, 8]}, {"y": [1, 4, 8, 8]}, constants)
    lowered, _ = lower(model)
    assert "QuantizeLinear" not in ops(lowered)
    feeds = {"x": generator.standard_normal((1, 4, 8, 8)).astype(np.float32)}
    wanted, got = run(model, feeds)[0], run(lowered, feeds)[0]
    assert np.abs(wanted - got).max() <= 4 * 127 * 0.01 * 0.01  # half a step of each of four products


@pytest.mark.parametrize(
    "zero, scales, group, weight, reason",
    [
        (
            np.uint8(128),
            1,
            1,
            (4, 4, 3, 3),
            "its input is not quantized to INT8 with one scale and zero-point 0",
        ),
        (
            np.int8(3),
            1,
            1,
            (4, 4, 3, 3),
            "its input is not quantized to INT8 with one scale and zero-point 0",
        ),
        (np.int8(0), 4, 2, (4, 2, 3, 3), "groups of several channels"),
        (np.int8(0), 1, 1, (4, 4, 3, 3, 3), "INT8 convolutions have one or two dimensions"),
    ],
)
def test_what_ncnn_has_no_integers_for_is_float(
    zero: np.generic, scales: int, group: int, weight: tuple[int, ...], reason: str
) -> None:
    size = [1, 4, *[6] * (len(weight) - 2)]
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"], "q"),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"], "d"),
        helper.make_node("DequantizeLinear", ["w", "ws", "wz"], ["wd"], "wd", axis=0),
        helper.make_node("Conv", ["d", "wd"], ["y"], "conv", group=group),
    ]
    constants = {
        "s": np.float32(0.02), "z": zero,
        "w": np.random.default_rng(0).integers(-127, 128, weight).astype(np.int8),
        "ws": np.linspace(0.01, 0.02, scales, dtype=np.float32).reshape([scales] if scales > 1 else []),
        "wz": np.zeros([scales] if scales > 1 else [], np.int8),
    }  # fmt: skip
    model = quantized.model(nodes, {"x": size}, {"y": [1, 4, *[4] * (len(weight) - 2)]}, constants)
    lowered, report = lower(model)
    assert ops(lowered) == ["Clip", "Conv"]
    (skip,) = report.skips
    assert skip.node == "conv"
    assert reason in skip.reason
    feeds = {"x": np.random.default_rng(1).standard_normal(size).astype(np.float32)}
    wanted, got = run(model, feeds)[0], run(lowered, feeds)[0]
    assert np.abs(wanted - got).max() < 0.02 * 127 * 0.02 * 36  # half a step of each product's input, at most


def test_a_depthwise_layer_is_float_where_the_placement_says_so() -> None:
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"], "q"),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"], "d"),
        helper.make_node("DequantizeLinear", ["w", "ws", "wz"], ["wd"], "wd", axis=0),
        helper.make_node("Conv", ["d", "wd"], ["y"], "conv", group=4),
    ]
    constants = {
        "s": np.float32(0.02), "z": np.int8(0), "ws": np.full(4, 0.01, np.float32), "wz": np.zeros(4, np.int8),
        "w": np.random.default_rng(0).integers(-127, 128, (4, 1, 3, 3)).astype(np.int8),
    }  # fmt: skip
    model = quantized.model(nodes, {"x": [1, 4, 6, 6]}, {"y": [1, 4, 4, 4]}, constants)
    lowered, report = lower(model)
    assert ops(lowered) == ["Clip", "Conv"]
    assert [skip.reason for skip in report.skips] == ["a depthwise convolution stays float"]
    kept, report = lower(model, Placement(joins=False, depthwise=True))
    assert not report.skips
    assert "QuantizeLinear" in ops(kept)


def test_float16_becomes_float32() -> None:
    """The report says so: without an edit, the driver goes on with the model as it was."""
    weight = np.random.default_rng(0).standard_normal((4, 3, 3, 3)).astype(np.float16)
    nodes = [helper.make_node("Conv", ["x", "w"], ["y"], "conv")]
    half = TensorProto.FLOAT16
    model = quantized.model(nodes, {"x": ([1, 3, 6, 6], half)}, {"y": ([1, 4, 4, 4], half)}, {"w": weight})
    lowered, report = lower(model)
    assert report.edits
    values = [numpy_helper.to_array(one) for one in lowered.graph.initializer]
    assert any(one.dtype == np.float32 and np.array_equal(one, weight.astype(np.float32)) for one in values)
