"""The TensorRT lowering: structure, and equal outputs in ONNX Runtime. test_lowering_tensorrt_builds.py
asks TensorRT itself.
"""

import json

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnx_lathe import metadata
from onnx_lathe.runtime.targets.tensorrt.tensorrt import TensorRT
from tests.support import quantized
from tests.support.quantized import IMAGES, assert_equal, assert_same, lower, node, run, stored


def ops(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]


def test_canonical_int8_needs_nothing() -> None:
    _, report = lower(quantized.lenet(codebook=False))
    assert not report.edits
    assert not report.skips


@pytest.mark.parametrize("opset", [17, 21])
def test_int8_on_a_codebook_becomes_an_int8_initializer(opset: int) -> None:
    model = quantized.lenet(opset)
    model.metadata_props.add(key=metadata.SPARSE, value=json.dumps({"w2": "unstructured"}))
    lowered, report = lower(model)
    assert {edit.node for edit in report.edits} == {"w1_DQ", "w2_DQ", "w3_DQ"}
    assert not {"Gather", "Cast"} & set(ops(lowered))
    decode = node(lowered, "w2_DQ")
    codes = stored(lowered)[decode.input[0]]
    assert (codes.data_type, list(codes.dims), list(decode.output)) == (
        TensorProto.INT8,
        [8, 8, 3, 3],
        ["w2"],
    )
    assert next(attribute.i for attribute in decode.attribute if attribute.name == "axis") == 0
    assert list(node(lowered, "conv2").input) == ["p1_dq", "w2"]
    # the DequantizeLinear took over the name
    assert metadata.read_sparse(lowered.metadata_props) == {"w2": "unstructured"}
    assert not {"w2_codebook", "w2_indices"} & set(stored(lowered))
    assert_same(model, lowered, IMAGES)


@pytest.mark.parametrize("opset, kind, offset", [(21, TensorProto.INT4, 8), (17, TensorProto.INT8, 128)])
def test_a_codebook_in_float_is_decoded_from_int4_or_int8(opset: int, kind: int, offset: int) -> None:
    model = quantized.lenet(opset, int8=False)
    lowered, report = lower(model)
    assert {edit.node for edit in report.edits} == {"w1_gather", "w2_gather", "w3_gather"}
    decode = next(
        n for n in lowered.graph.node if n.op_type == "DequantizeLinear" and n.output[0].startswith("w2")
    )
    codes = stored(lowered)[decode.input[0]]
    assert codes.data_type == kind
    # INT4 wants an even last dimension
    assert list(codes.dims) == ([8, 72] if kind == TensorProto.INT4 else [8, 8, 3, 3])
    before = numpy_helper.to_array(stored(model)["w2_indices"]).astype(int)
    np.testing.assert_array_equal(
        numpy_helper.to_array(codes).astype(int).reshape(before.shape) + offset, before
    )
    assert numpy_helper.to_array(stored(lowered)[decode.input[1]]) == 1.0
    assert node(lowered, "w2_gather").output[0] == "w2"
    # w3 has an even last dimension already
    assert ops(lowered).count("Reshape") == (3 if kind == TensorProto.INT4 else 1)
    assert_same(model, lowered, IMAGES)


@pytest.mark.parametrize(
    "shape, codes, kind, dims",
    [
        ((4, 6), 16, TensorProto.INT4, [4, 6]),
        ((4, 3, 1, 1), 16, TensorProto.INT4, [6, 2]),
        ((5, 2, 3, 3), 16, TensorProto.INT4, [5, 18]),
        ((3, 5), 16, TensorProto.INT8, [3, 5]),
        ((4, 6), 200, TensorProto.INT8, [4, 6]),
    ],
    ids=["even", "odd rows", "kernel", "odd count", "more than 16"],
)
def test_how_indices_are_stored(shape, codes, kind, dims) -> None:
    table = np.linspace(-1, 1, codes, dtype=np.float32)
    indices = np.random.default_rng(1).integers(0, codes, shape)
    indices.reshape(-1)[0] = codes - 1
    nodes = [
        helper.make_node("Cast", ["indices"], ["index"], "cast", to=TensorProto.INT32),
        helper.make_node("Gather", ["codebook", "index"], ["w"], "gather"),
        helper.make_node("Add", ["x", "w"], ["y"], "add"),
    ]
    constants = {"codebook": table, "indices": indices.astype(ml_dtypes.uint4 if codes <= 16 else np.uint8)}
    model = quantized.model(nodes, {"x": list(shape)}, {"y": list(shape)}, constants)
    lowered, _ = lower(model)
    found = next(
        tensor
        for tensor in lowered.graph.initializer
        if tensor.data_type in (TensorProto.INT4, TensorProto.INT8)
    )
    assert (found.data_type, list(found.dims)) == (kind, dims)
    np.testing.assert_array_equal(run(lowered, {"x": np.zeros(shape, np.float32)})[0], table[indices])


def test_with_size_preferred_int8_layers_keep_their_codebooks_in_4_bits() -> None:
    model = quantized.lenet()
    lowered, report = lower(model, prefer="size")
    assert_same(model, lowered, IMAGES)
    for name in ("w1", "w2", "w3"):
        assert stored(lowered)[f"{name}_int4"].data_type == TensorProto.INT4
        assert node(lowered, f"{name}_Q").input[0] == name
    assert {edit.node for edit in report.edits} == {"w1_gather", "w2_gather", "w3_gather"}
    assert not report.skips
    assert TensorRT().check(lowered, TensorRT.Config()) == []
    assert all(layer.int8 for layer in TensorRT().layers(lowered))


@pytest.mark.parametrize(
    ("opset", "many", "unsigned"), [(19, False, False), (21, True, False), (21, False, True)]
)
def test_what_4_bits_do_not_hold_is_int8_with_size_preferred_too(
    opset: int, many: bool, unsigned: bool
) -> None:
    """By the opset, by the number of values, and by a zero-point that TensorRT does not take."""
    model = quantized.lenet(opset)
    tensors = stored(model)
    if many:
        indices = (np.arange(576) % 17).astype(np.uint8).reshape(8, 8, 3, 3)
        for name, array in (
            ("w2_indices", indices),
            ("w2_codebook", np.linspace(-1, 1, 17, dtype=np.float32)),
        ):
            tensors[name].CopyFrom(numpy_helper.from_array(array, name))
    if unsigned:
        tensors["w2_zero"].CopyFrom(numpy_helper.from_array(np.full(8, 128, np.uint8), "w2_zero"))
    lowered, _ = lower(model, prefer="size")
    assert_same(model, lowered, IMAGES)
    assert stored(lowered)[node(lowered, "w2_DQ").input[0]].data_type == TensorProto.INT8


def test_int4_asks_for_an_ir_version_that_has_it() -> None:
    model = quantized.lenet(int8=False)
    for name in ("w1", "w2", "w3"):
        tensor = stored(model)[f"{name}_indices"]
        tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.uint8), tensor.name))
    model.ir_version = 9
    lowered, _ = lower(model)
    assert lowered.ir_version == 10
    assert sum(tensor.data_type == TensorProto.INT4 for tensor in lowered.graph.initializer) == 3
    assert_same(model, lowered, IMAGES)


def dequantized(
    codes: np.ndarray, zero: np.ndarray | None, scale: np.ndarray, opset: int = 21, **attributes
) -> onnx.ModelProto:
    """x [n, c] -> x + DequantizeLinear(codes [n, c])."""
    inputs = ["codes", "scale"] + ([] if zero is None else ["zero"])
    nodes = [
        helper.make_node("DequantizeLinear", inputs, ["w"], "dq", **attributes),
        helper.make_node("Add", ["x", "w"], ["y"], "add"),
    ]
    constants = {"codes": codes, "scale": scale} | ({} if zero is None else {"zero": zero})
    return quantized.model(nodes, {"x": list(codes.shape)}, {"y": list(codes.shape)}, constants, opset)


BYTES = np.random.default_rng(2).integers(0, 256, (6, 4)).astype(np.uint8)
NIBBLES = np.random.default_rng(3).integers(0, 16, (6, 4))
ROWS = np.linspace(0.01, 0.02, 6, dtype=np.float32)


@pytest.mark.parametrize(
    "codes, zero, attributes, kind",
    [
        (BYTES, np.uint8(128), {}, TensorProto.INT8),
        (BYTES // 2, np.uint8(0), {}, TensorProto.INT8),
        (BYTES // 2, None, {}, TensorProto.INT8),
        ((BYTES // 2).astype(np.uint8), np.arange(6, dtype=np.uint8), {"axis": 0}, TensorProto.INT8),
        ((BYTES // 4).astype(np.int8), np.int8(-3), {}, TensorProto.INT8),
        (BYTES, np.uint8(3), {}, None),
        (BYTES.astype(np.int32), None, {}, None),
        (BYTES.astype(np.int16), np.int16(0), {}, None),
        (NIBBLES.astype(ml_dtypes.uint4), np.array(8, ml_dtypes.uint4), {}, TensorProto.INT4),
        (NIBBLES.astype(ml_dtypes.uint4), None, {}, TensorProto.INT8),
        (NIBBLES[:, :3].astype(ml_dtypes.uint4), np.array(8, ml_dtypes.uint4), {}, TensorProto.INT8),
        ((NIBBLES[:, :3] - 8).astype(ml_dtypes.int4), None, {}, TensorProto.INT8),
        ((NIBBLES - 8).astype(ml_dtypes.int4), None, {}, TensorProto.INT4),
    ],
    ids=[
        "uint8 128", "uint8 0", "uint8", "uint8 per channel", "int8 -3", "uint8 3 does not fit", "int32", "int16", "uint4 8",
        "uint4 does not fit int4", "uint4 odd", "int4 odd", "int4 stays",
    ],
)  # fmt: skip
def test_constants_get_zero_point_0_or_become_float(codes, zero, attributes, kind) -> None:
    scale = ROWS if attributes else np.array(0.05, np.float32)
    model = dequantized(codes, None if zero is None else np.asarray(zero), scale, **attributes)
    lowered, report = lower(model)
    if kind is None:
        assert ops(lowered) == ["Add"]
        assert stored(lowered)["w"].data_type == TensorProto.FLOAT
    else:
        decode = node(lowered, "dq")
        assert stored(lowered)[decode.input[0]].data_type == kind
        assert len(decode.input) == 2
    assert bool(report.edits) == (codes.dtype != ml_dtypes.int4 or kind != TensorProto.INT4)
    assert_same(model, lowered, {"x": np.ones(codes.shape, np.float32)})


def test_constants_in_nodes_are_constants_too() -> None:
    model = dequantized(BYTES, np.array(128, np.uint8), np.array(0.05, np.float32))
    for tensor in list(model.graph.initializer):
        model.graph.node.insert(
            0, helper.make_node("Constant", [], [tensor.name], f"{tensor.name}_node", value=tensor)
        )
    del model.graph.initializer[:]
    lowered, _ = lower(model)
    assert ops(lowered) == ["DequantizeLinear", "Add"]
    assert stored(lowered)[node(lowered, "dq").input[0]].data_type == TensorProto.INT8
    assert_same(model, lowered, {"x": np.ones(BYTES.shape, np.float32)})


def test_blocks_keep_their_zero_points() -> None:
    codes = np.random.default_rng(4).integers(60, 120, (6, 6)).astype(np.uint8)
    zero = np.arange(18, dtype=np.uint8).reshape(6, 3) + 60
    model = dequantized(codes, zero, np.full((6, 3), 0.5, np.float32), axis=1, block_size=2)
    lowered, _ = lower(model)
    assert stored(lowered)[node(lowered, "dq").input[0]].data_type == TensorProto.INT8
    assert_same(model, lowered, {"x": np.zeros(codes.shape, np.float32)})


def test_an_int32_bias_becomes_float_and_keeps_its_name() -> None:
    model = quantized.lenet(codebook=False)
    bias = next(tensor for tensor in model.graph.initializer if tensor.name == "b1")
    bias.CopyFrom(numpy_helper.from_array(np.arange(-4, 4, dtype=np.int32), "b1_codes"))
    model.graph.initializer.append(numpy_helper.from_array(np.full(8, 0.001, np.float32), "b1_scale"))
    model.graph.node.insert(
        0, helper.make_node("DequantizeLinear", ["b1_codes", "b1_scale"], ["b1"], "b1_DQ", axis=0)
    )
    lowered, report = lower(model)
    np.testing.assert_array_equal(
        numpy_helper.to_array(stored(lowered)["b1"]), np.arange(-4, 4, dtype=np.float32) * np.float32(0.001)
    )
    assert [edit.node for edit in report.edits] == ["b1_DQ"]
    # with its optimizations ONNX Runtime takes the bias for one of scale s_x * s_w, which it is not
    assert_equal(model, lowered, IMAGES)


def test_an_int4_weight_meets_int8_activations_as_int8() -> None:
    model = quantized.lenet(codebook=False)
    codes = next(tensor for tensor in model.graph.initializer if tensor.name == "w3_q")
    codes.CopyFrom(
        numpy_helper.from_array((numpy_helper.to_array(codes) // 16).astype(ml_dtypes.int4), "w3_q")
    )
    zero = next(tensor for tensor in model.graph.initializer if tensor.name == "w3_zero")
    zero.CopyFrom(numpy_helper.from_array(np.zeros(10, ml_dtypes.int4), "w3_zero"))
    lowered, _ = lower(model)
    assert stored(lowered)["w3_q"].data_type == TensorProto.INT8
    assert_same(model, lowered, IMAGES)


def activation(
    kind: type, zero: object, readers: int = 1, opset: int = 21, shape: tuple[int, ...] = ()
) -> onnx.ModelProto:
    """x -> Relu -> Q -> DQ (one per reader) -> Neg."""
    nodes = [
        helper.make_node("Relu", ["x"], ["r"], "relu"),
        helper.make_node("QuantizeLinear", ["r", "scale", "zero"], ["q"], "q"),
    ]
    for index in range(readers):
        nodes.append(
            helper.make_node("DequantizeLinear", ["q", "scale", "zero"], [f"d{index}"], f"dq{index}")
        )
        nodes.append(helper.make_node("Neg", [f"d{index}"], [f"y{index}"], f"neg{index}"))
    constants = {"scale": np.full(shape, 0.02, np.float32), "zero": np.full(shape, zero, kind)}
    return quantized.model(
        nodes, {"x": [2, 3]}, {f"y{index}": [2, 3] for index in range(readers)}, constants, opset
    )


X = {"x": np.array([[-4.0, -0.01, 0.0], [0.013, 1.27, 9.0]], np.float32)}


def test_uint8_activations_around_128_become_int8() -> None:
    model = activation(np.uint8, 128, readers=2)
    lowered, report = lower(model)
    zeros = {n.input[2] for n in lowered.graph.node if n.op_type.endswith("Linear")}
    assert len(zeros) == 1
    assert stored(lowered)[zeros.pop()].data_type == TensorProto.INT8
    assert [edit.node for edit in report.edits] == ["q"]
    assert not report.skips
    assert_same(model, lowered, X)


@pytest.mark.parametrize(
    "kind, zero, reason",
    [
        (np.uint8, 0, "it is UINT8"),
        (np.uint8, 7, "it is UINT8"),
        (np.int8, 5, "zero-point is not 0"),
        (np.uint16, 0, "it is UINT16"),
    ],
)
def test_other_activations_are_refused_by_name(kind, zero, reason) -> None:
    lowered, report = lower(activation(kind, zero))
    assert [(skip.node, reason in skip.reason) for skip in report.skips] == [("q", True), ("dq0", True)]
    assert all("quantize the float model with 'int8'" in skip.reason for skip in report.skips)
    assert not report.edits
    assert len(lowered.graph.node) == 4


@pytest.mark.parametrize(
    "reader",
    [
        helper.make_node("Cast", ["q"], ["seen"], "other", to=TensorProto.FLOAT),
        helper.make_node("Clip", ["q", "zero", "zero"], ["seen"], "other"),
    ],
    ids=["cast", "third input like a zero-point"],
)
def test_uint8_that_others_read_is_refused(reader: onnx.NodeProto) -> None:
    model = activation(np.uint8, 128)
    model.graph.node.append(reader)
    kind = TensorProto.FLOAT if reader.op_type == "Cast" else TensorProto.UINT8
    model.graph.output.append(helper.make_tensor_value_info("seen", kind, [2, 3]))
    lowered, report = lower(model)
    assert [skip.node for skip in report.skips] == ["q", "dq0"]
    assert not report.edits
    assert_same(model, lowered, X)


def test_a_quantizer_without_zero_point_writes_uint8() -> None:
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "scale"], ["q"], "q"),
        helper.make_node("DequantizeLinear", ["q", "scale"], ["y"], "dq"),
    ]
    model = quantized.model(nodes, {"x": [2, 3]}, {"y": [2, 3]}, {"scale": np.float32(0.1)})
    _, report = lower(model)
    assert ("q", True) in [(skip.node, "it is UINT8" in skip.reason) for skip in report.skips]


@pytest.mark.parametrize("as_node", [False, True])
def test_scales_of_shape_1_become_scalars(as_node: bool) -> None:
    model = activation(np.int8, 0, shape=(1,))
    if as_node:
        scale = stored(model)["scale"]
        model.graph.node.insert(0, helper.make_node("Constant", [], ["scale"], "constant", value=scale))
        model.graph.initializer.remove(scale)
    lowered, report = lower(model)
    for name in ("q", "dq0"):
        assert [list(stored(lowered)[tensor].dims) for tensor in node(lowered, name).input[1:]] == [[], []]
        assert not node(lowered, name).attribute
    assert {edit.node for edit in report.edits} == {"q", "dq0"}
    assert_same(model, lowered, X)


def test_only_names_that_say_nothing_are_taken_from_dimensions() -> None:
    nodes = [helper.make_node("Add", ["a", "b"], ["y"], "add")]
    model = quantized.model(
        nodes, {"a": ["batch", "?", 3], "b": ["?", "-1", 3]}, {"y": ["batch", None, 3]}, {}
    )
    lowered, report = lower(model)
    dims = {
        v.name: [
            d.dim_param or (d.dim_value if d.HasField("dim_value") else None)
            for d in v.type.tensor_type.shape.dim
        ]
        for v in lowered.graph.input
    }
    assert dims == {"a": ["batch", None, 3], "b": [None, None, 3]}
    assert {edit.node for edit in report.edits} == {"a", "b"}


def test_a_decoded_weight_that_others_read_keeps_its_codebook() -> None:
    model = quantized.lenet()
    model.graph.node.append(helper.make_node("Neg", ["w1"], ["seen"], "neg"))
    model.graph.output.append(helper.make_tensor_value_info("seen", TensorProto.FLOAT, [8, 1, 3, 3]))
    lowered, report = lower(model)
    assert {edit.node for edit in report.edits} == {"w1_DQ", "w2_DQ", "w3_DQ", "w1_gather"}
    assert node(lowered, "w1_DQ").output[0] == "w1_dequantized"
    assert node(lowered, "neg").input[0] == "w1"
    assert_same(model, lowered, IMAGES)
