"""What TensorRT has no type or shape for: bodies, blocks, odd rows of INT4, integers at the ends, 64-bit floats,
dimensions of one name. Each is stored otherwise and computes the same.
"""

import importlib.util
from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from onnx_lathe.optimizer.cli import main
from onnx_lathe.optimizer.step import apply_pass
from onnx_lathe.passes.core.options import configure
from onnx_lathe.passes.core.registry import find
from onnx_lathe.passes.core.services import Context
from onnx_lathe.passes.graph.bodies import graph_protos
from onnx_lathe.passes.graph.model import export_model, import_model
from onnx_lathe.passes.lowering.tensorrt import Lowering
from onnx_lathe.runtime.targets.tensorrt.tensorrt import TensorRTRTX
from tests.support import bodies, quantized, tensorrt_log
from tests.support.quantized import assert_equal, lower, node, run, stored

needs_builder = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None, reason="tensorrt_rtx is not installed"
)


def fresh() -> np.random.Generator:
    return np.random.default_rng(5)


def builds(model: onnx.ModelProto, folder: Path) -> bool:
    onnx.save(model, folder / "lowered.onnx")
    config = TensorRTRTX.Config(batch="4")
    return TensorRTRTX().build(folder / "lowered.onnx", folder, config, lambda text: None).size_bytes > 0


def kinds(graph: onnx.GraphProto) -> set[str]:
    return {TensorProto.DataType.Name(tensor.data_type) for tensor in graph.initializer}


@pytest.mark.parametrize("name, options", [("codebook", {"bits": 4}), ("int4", {"group": 16})])
@pytest.mark.parametrize("make", [bodies.branches, bodies.loop, bodies.scan])
def test_what_passes_store_in_bodies_is_lowered_there(make, name: str, options: dict) -> None:
    model = make(opset=21)
    model.ir_version = 10
    small, _ = apply_pass(configure(find(name), options), model, Context())
    lowered, report = lower(small)
    for graph in graph_protos(lowered.graph):
        assert not kinds(graph) & {"UINT4", "UINT8"}
        assert not any(
            node.op_type == "Cast" and node.input[0] in {tensor.name for tensor in graph.initializer}
            for node in graph.node
        )
    assert bool(report.edits) == (name == "codebook")
    for condition in (True, False):
        assert_equal(small, lowered, bodies.feeds(model, condition))


@needs_builder
@pytest.mark.parametrize("make", [bodies.branches, bodies.loop])
def test_bodies_with_codebooks_build(make, tmp_path: Path) -> None:
    model = make(opset=21)
    model.ir_version = 10
    small, _ = apply_pass(configure(find("codebook"), {"bits": 4}), model, Context())
    lowered, _ = lower(small)
    assert builds(lowered, tmp_path)


def body_of(kind: type, zero: int) -> onnx.ModelProto:
    """If c: x + DQ(codes), the integers of `kind`, around `zero`."""
    branch = helper.make_graph(
        [
            helper.make_node("Constant", [], ["codes"], "stored", value=tensor("codes", CODES.astype(kind))),
            helper.make_node("DequantizeLinear", ["codes", "s", "z"], ["w"], "dq"),
            helper.make_node("Add", ["x", "w"], ["a"], "add"),
        ],
        "yes",
        [],
        [helper.make_tensor_value_info("a", TensorProto.FLOAT, [6, 4])],
    )
    other = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["b"], "same")],
        "no",
        [],
        [helper.make_tensor_value_info("b", TensorProto.FLOAT, [6, 4])],
    )
    node = helper.make_node("If", ["c"], ["y"], "choose", then_branch=branch, else_branch=other)
    constants = {"s": np.float32(0.1), "z": np.array(zero, kind)}
    inputs = {"x": [6, 4], "c": ([], TensorProto.BOOL)}
    return quantized.model([node], inputs, {"y": [6, 4]}, constants)


CODES = np.random.default_rng(4).integers(0, 200, (6, 4))


def tensor(name: str, array: np.ndarray) -> onnx.TensorProto:
    return onnx.numpy_helper.from_array(array, name)


def test_a_constant_in_a_branch_is_stored_as_int8() -> None:
    model = body_of(np.uint8, 100)
    lowered, report = lower(model)
    assert {edit.node for edit in report.edits} == {"dq"}
    assert "INT8" in set().union(*map(kinds, graph_protos(lowered.graph)[1:]))
    for condition in (True, False):
        assert_equal(model, lowered, {"x": np.ones((6, 4), np.float32), "c": np.array(condition)})


def convolution(codes: np.ndarray, scale: np.ndarray, **attributes: int) -> onnx.ModelProto:
    nodes = [
        helper.make_node("DequantizeLinear", ["codes", "scale"], ["w"], "dq", **attributes),
        helper.make_node("Conv", ["x", "w"], ["y"], "conv"),
    ]
    size = [1, codes.shape[1], 8, 8]
    result = [1, codes.shape[0], 9 - codes.shape[2], 9 - codes.shape[3]]
    return quantized.model(nodes, {"x": size}, {"y": result}, {"codes": codes, "scale": scale})


@pytest.mark.parametrize(
    "axis, kind, size, dims, stored_as",
    [
        (1, np.int8, 3, [6, 8, 9], TensorProto.INT8),
        (1, ml_dtypes.int4, 3, [6, 8, 9], TensorProto.INT8),
        (1, ml_dtypes.int4, 2, [6, 8, 4], TensorProto.INT4),
        (0, ml_dtypes.int4, 2, [6, 32], TensorProto.INT4),
        (3, np.int8, 2, [96, 2], TensorProto.INT8),
    ],
)
def test_blocks_of_a_convolutions_weight(
    axis: int, kind: type, size: int, dims: list, stored_as: int, tmp_path: Path
) -> None:
    codes = fresh().integers(-8, 8, (6, 8, size, size)).astype(kind)
    shape = [length // 2 if index == axis else length for index, length in enumerate(codes.shape)]
    model = convolution(codes, fresh().random(shape, np.float32), axis=axis, block_size=2)
    lowered, _ = lower(model)
    found = stored(lowered)[node(lowered, "dq").input[0]]
    assert (list(found.dims), found.data_type) == (dims, stored_as)
    assert_equal(model, lowered, {"x": fresh().random((1, 8, 8, 8), np.float32)})
    if importlib.util.find_spec("tensorrt_rtx") is not None:
        assert builds(lowered, tmp_path)


@pytest.mark.parametrize("block, why", [(5, "whole blocks"), (1, "one value each")])
def test_blocks_that_no_shape_helps_become_float(block: int, why: str) -> None:
    codes = fresh().integers(-8, 8, (6, 8, 3, 3)).astype(np.int8)
    model = convolution(
        codes, fresh().random((6, -(-8 // block), 3, 3), np.float32), axis=1, block_size=block
    )
    lowered, report = lower(model)
    assert [node.op_type for node in lowered.graph.node] == ["Conv"]
    assert why in report.edits[0].what
    assert_equal(model, lowered, {"x": fresh().random((1, 8, 8, 8), np.float32)})


def test_odd_rows_of_int4_stay_int4() -> None:
    codes = fresh().integers(-8, 8, (6, 8, 3, 3)).astype(ml_dtypes.int4)
    model = convolution(codes, fresh().random(6, np.float32), axis=0)
    lowered, _ = lower(model)
    found = stored(lowered)[node(lowered, "dq").input[0]]
    assert (list(found.dims), found.data_type) == ([6, 72], TensorProto.INT4)
    assert_equal(model, lowered, {"x": fresh().random((1, 8, 8, 8), np.float32)})


def test_a_scale_that_does_not_fit_is_left_alone() -> None:
    model = convolution(np.ones((6, 8, 3, 3), np.uint8), np.ones(6, np.float32), axis=0)
    stored(model)["scale"].CopyFrom(tensor("scale", np.ones(5, np.float32)))
    graph = import_model(model)
    report = Lowering().apply(graph, Context())
    assert [skip.node for skip in report.skips] == ["dq"]


def ends(kind: type, zero: int, scale: np.ndarray) -> onnx.ModelProto:
    """Integers in -> DQ -> Relu -> Q -> integers out."""
    element = helper.np_dtype_to_tensor_dtype(np.dtype(kind))
    nodes = [
        helper.make_node("DequantizeLinear", ["x", "s", "z"], ["d"], "in", axis=1),
        helper.make_node("Relu", ["d"], ["r"], "relu"),
        helper.make_node("QuantizeLinear", ["r", "s", "z"], ["y"], "out", axis=1),
    ]
    constants = {"s": scale, "z": np.full(scale.shape, zero, kind)}
    return quantized.model(nodes, {"x": ([40, 4], element)}, {"y": ([40, 4], element)}, constants)


@pytest.mark.parametrize(
    "scale", [np.float32(0.1), np.array([0.1, 0.02, 3, 0.5], np.float32)], ids=["tensor", "channel"]
)
@pytest.mark.parametrize("kind, zero", [(np.uint8, 0), (np.uint8, 3), (np.uint8, 128), (np.int8, -5)])
def test_integers_at_the_ends_are_computed(kind: type, zero: int, scale: np.ndarray, tmp_path: Path) -> None:
    model = ends(kind, zero, scale)
    lowered, report = lower(model)
    assert [edit.node for edit in report.edits] == ["in", "out"]
    assert not report.skips
    assert not {"QuantizeLinear", "DequantizeLinear"} & {node.op_type for node in lowered.graph.node}
    low = np.iinfo(kind).min
    every = (np.arange(160) * 256 // 160 + low).astype(kind).reshape(40, 4)
    assert_equal(model, lowered, {"x": every})
    if importlib.util.find_spec("tensorrt_rtx") is not None and zero == 3:
        assert builds(lowered, tmp_path)


def test_an_activation_in_uint8_between_layers_is_refused_with_what_to_do() -> None:
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"], "q"),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"], "dq"),
    ]
    model = quantized.model(nodes, {"x": [2, 4]}, {"y": [2, 4]}, {"s": np.float32(0.1), "z": np.uint8(3)})
    lowered, report = lower(model)
    assert [skip.node for skip in report.skips] == ["q", "dq"]
    assert "int8(existing=complete)" in report.skips[0].reason
    assert [node.op_type for node in lowered.graph.node] == ["QuantizeLinear", "DequantizeLinear"]


def test_a_stored_weight_that_is_an_output_stays_as_it_is() -> None:
    """Its INT8 form has a name of its own."""
    nodes = [
        helper.make_node("DequantizeLinear", ["codes", "s", "z"], ["w"], "dq"),
        helper.make_node("Add", ["x", "w"], ["y"], "add"),
    ]
    outputs = {"y": [6, 4], "codes": ([6, 4], TensorProto.UINT8)}
    constants = {"codes": CODES.astype(np.uint8), "s": np.float32(0.1), "z": np.uint8(100)}
    model = quantized.model(nodes, {"x": [6, 4]}, outputs, constants)
    lowered, _ = lower(model)
    assert_equal(model, lowered, {"x": np.ones((6, 4), np.float32)})
    assert stored(lowered)[node(lowered, "dq").input[0]].data_type == TensorProto.INT8


def doubles(weight: np.ndarray, inside: bool) -> onnx.ModelProto:
    """x -> MatMul(w) + fill -> y in float64; `inside`: cast there and back, x and y in float32."""
    kind = TensorProto.FLOAT if inside else TensorProto.DOUBLE
    fill = helper.make_tensor("fill", TensorProto.DOUBLE, [1], [0.1])
    nodes = [helper.make_node("Cast", ["x"], ["c"], "in", to=TensorProto.DOUBLE)] if inside else []
    nodes += [
        helper.make_node("MatMul", ["c" if inside else "x", "w"], ["m"], "product"),
        helper.make_node("ConstantOfShape", ["one"], ["f"], "fill", value=fill),
        helper.make_node("Add", ["m", "f"], ["a" if inside else "y"], "add"),
    ]
    nodes += [helper.make_node("Cast", ["a"], ["y"], "out", to=TensorProto.FLOAT)] if inside else []
    constants = {"w": weight, "one": np.array([1])}
    return quantized.model(nodes, {"x": ([2, 4], kind)}, {"y": ([2, 3], kind)}, constants)


@pytest.mark.parametrize("inside", [False, True])
def test_floats_of_64_bits_become_those_of_32(inside: bool, tmp_path: Path) -> None:
    model = doubles(fresh().random((4, 3)), inside)
    lowered, report = lower(model)
    assert "DOUBLE" not in kinds(lowered.graph)
    assert {"product", "fill"} & {edit.node for edit in report.edits}
    kind = model.graph.input[0].type.tensor_type.elem_type
    assert [value.type.tensor_type.elem_type for value in (*lowered.graph.input, *lowered.graph.output)] == [
        kind,
        kind,
    ]
    inner = onnx.shape_inference.infer_shapes(lowered).graph.value_info
    assert {value.type.tensor_type.elem_type for value in inner} == {TensorProto.FLOAT}
    feeds = {"x": fresh().random((2, 4)).astype(np.float32 if inside else np.float64)}
    np.testing.assert_allclose(run(lowered, feeds)[0], run(model, feeds)[0], rtol=1e-6)
    if importlib.util.find_spec("tensorrt_rtx") is not None:
        assert builds(lowered, tmp_path)


@pytest.mark.parametrize("first", ["Cast", "Identity"])
def test_an_output_of_64_bits_that_is_read_on_keeps_its_type(first: str) -> None:
    """Of TensorRT's types is what is computed from it, and of the model's own what comes out."""
    double = TensorProto.DOUBLE
    to = {"to": double} if first == "Cast" else {}
    nodes = [
        helper.make_node(first, ["x"], ["y"], "first", **to),
        helper.make_node("Mul", ["y", "k"], ["z"], "mul"),
    ]
    kind = TensorProto.FLOAT if first == "Cast" else double
    outputs = {name: ([2, 4], double) for name in ("y", "z")}
    model = quantized.model(nodes, {"x": ([2, 4], kind)}, outputs, {"k": np.full(4, 1.5)})
    lowered, _ = lower(model)
    onnx.checker.check_model(lowered, full_check=True)
    feeds = {"x": fresh().random((2, 4)).astype(helper.tensor_dtype_to_np_dtype(kind))}
    for before, after in zip(run(model, feeds), run(lowered, feeds), strict=True):
        assert after.dtype == np.float64
        np.testing.assert_allclose(after, before, rtol=1e-6)


def test_an_initializer_of_64_bits_that_is_an_output_keeps_its_type() -> None:
    nodes = [helper.make_node("Mul", ["x", "k"], ["z"], "mul")]
    double = TensorProto.DOUBLE
    outputs = {"z": ([2, 4], double), "k": ([4], double)}
    model = quantized.model(nodes, {"x": ([2, 4], double)}, outputs, {"k": np.full(4, 0.1)})
    lowered, report = lower(model)
    onnx.checker.check_model(lowered, full_check=True)
    assert "DOUBLE" not in kinds(lowered.graph)
    assert "k" in {edit.node for edit in report.edits}
    product, constant = run(lowered, {"x": np.ones((2, 4))})
    assert (product.dtype, constant.dtype) == (np.float64, np.float64)
    np.testing.assert_allclose(constant, np.full(4, 0.1), rtol=1e-6)
    np.testing.assert_allclose(product, np.full((2, 4), 0.1), rtol=1e-6)


def test_floats_beyond_those_of_32_bits_are_said() -> None:
    lowered, report = lower(doubles(np.full((4, 3), 1e300), True))
    assert report.warnings == [
        "w: 12 of its 64-bit floats are beyond those of 32 bits, and become the largest of them"
    ]
    values = onnx.numpy_helper.to_array(stored(lowered)["w"])
    assert values.dtype == np.float32
    assert np.all(np.isfinite(values))


def named(shapes: dict[str, str]) -> list[list[str]]:
    nodes = [helper.make_node("Relu", ["a"], ["y"], "relu")]
    model = quantized.model(nodes, {"a": ["n", "s", "s"], "b": ["n", "t", "s"]}, {"y": ["n", "s", "s"]}, {})
    graph = import_model(model)
    Lowering(Lowering.Config(shapes=shapes)).apply(graph, Context())
    lowered = export_model(graph)
    return [[dim.dim_param for dim in value.type.tensor_type.shape.dim] for value in lowered.graph.input]


def test_one_name_of_several_sizes_is_taken_away() -> None:
    assert named({}) == [["n", "s", "s"], ["n", "t", "s"]]
    assert named({"a": "1x8x8:4x16x16"}) == [["n", "s", "s"], ["n", "t", "s"]]
    assert named({"a": "1x8x8|4x8x9"}) == named({"a": "1x8x9"})
    assert named({"a": "1x8x9"}) == [["n", "", ""], ["n", "t", ""]]
    assert named({"a": "1x8x8", "b": "2x5x8"}) == [["", "s", "s"], ["", "t", "s"]]


@needs_builder
def test_a_layer_in_a_loop_runs_in_int8(tmp_path: Path) -> None:
    value = helper.make_tensor_value_info
    body = helper.make_graph(
        [
            helper.make_node("QuantizeLinear", ["h", "s", "z"], ["q"], "q"),
            helper.make_node("DequantizeLinear", ["q", "s", "z"], ["d"], "dq"),
            helper.make_node("DequantizeLinear", ["codes", "scales"], ["w"], "w_dq", axis=1),
            helper.make_node("MatMul", ["d", "w"], ["next"], "product"),
            helper.make_node("Identity", ["on"], ["on_out"], "same"),
        ],
        "step",
        [value("i", TensorProto.INT64, []), value("on", TensorProto.BOOL, []), value("h", 1, [64, 64])],
        [value("on_out", TensorProto.BOOL, []), value("next", 1, [64, 64])],
    )
    constants = {
        "trips": np.array(3), "yes": np.array(True), "s": np.float32(0.1), "z": np.array(128, np.uint8),
        "codes": fresh().integers(0, 100, (64, 64)).astype(np.uint8), "scales": np.full(64, 0.1, np.float32),
    }  # fmt: skip
    loop = helper.make_node("Loop", ["trips", "yes", "x"], ["y"], "loop", body=body)
    model = quantized.model([loop], {"x": [64, 64]}, {"y": [64, 64]}, constants)
    lowered, _ = lower(model)
    assert_equal(model, lowered, {"x": fresh().random((64, 64), np.float32)})
    onnx.save(lowered, tmp_path / "lowered.onnx")
    config = TensorRTRTX.Config(log=True)
    made = TensorRTRTX().build(tmp_path / "lowered.onnx", tmp_path, config, lambda text: None)
    assert tensorrt_log.kernels(made.paths[2])["product"] == "Int8"


@needs_builder
@pytest.mark.parametrize("shape", [["n", 3, "s", "s"], ["?", 3, "?", "?"]], ids=["equal", "unknown"])
def test_data_that_parts_a_name_builds(
    shape: list, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Height and width have one name in the model, and the data's pictures are no squares."""
    nodes = [helper.make_node("Relu", ["image"], ["y"], "relu")]
    onnx.save(quantized.model(nodes, {"image": shape}, {"y": shape}, {}), tmp_path / "model.onnx")
    np.savez(tmp_path / "data.npz", image=fresh().random((8, 3, 16, 24), np.float32))
    arguments = [str(tmp_path / "model.onnx"), "--passes", "fold", "--data", str(tmp_path / "data.npz")]
    options = ["--target", "tensorrt-rtx", "--out", str(tmp_path / "out"), "--no-latency", "--quiet"]
    assert main([*arguments, *options]) == 0, capsys.readouterr()
    assert (tmp_path / "out" / "model.tensorrt-rtx.engine").exists()
