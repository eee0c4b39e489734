"""What TensorRT-RTX itself makes of lowered models: which layers run in INT8, and in how many bits weights
are stored.
"""

import importlib.util
import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from onnx_lathe.passes.core.options import configure
from onnx_lathe.passes.core.registry import find
from onnx_lathe.passes.core.services import Context
from onnx_lathe.passes.graph.model import export_model, import_model
from onnx_lathe.placement import CANONICAL
from onnx_lathe.runtime.running.calibration import StreamingCalibrator
from onnx_lathe.runtime.targets.ort.ort import PLACEMENT
from onnx_lathe.runtime.targets.tensorrt.tensorrt import TensorRTRTX
from tests.support import builders, placement, quantized, tensorrt_log
from tests.support.int8 import Rows
from tests.support.quantized import IMAGES, assert_equal, assert_same, lower, node, stored

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None, reason="tensorrt_rtx is not installed"
)


INT4_FORMS = {
    "(float[2, 64] x) => (float[2, 32] y) { y = MatMul (x, w) }": (64, 32),
    "(float[2, 64] x) => (float[2, 32] y) { y = Gemm <transB = 1> (x, w) }": (32, 64),
    "(float[2, 16, 6, 6] x) => (float[2, 16, 4, 4] y) { y = Conv (x, w) }": (16, 16, 3, 3),
}


def build(model: onnx.ModelProto, folder: Path, **options) -> Path:
    """Builds with TensorRT-RTX and returns the verbose log."""
    onnx.save(model, folder / "lowered.onnx")
    artifact = TensorRTRTX().build(
        folder / "lowered.onnx", folder, TensorRTRTX.Config(log=True, **options), lambda text: None
    )
    return artifact.paths[2]


def test_the_trained_lenet_with_codebook_and_int8(lenet5: Path, tmp_path: Path) -> None:
    model = onnx.load(lenet5)
    for name, options in (("fold", {}), ("codebook", {"bits": 4}), ("int8", {})):
        graph = import_model(model)
        configure(find(name), options).apply(graph, Context(calibrator=StreamingCalibrator(Rows(**IMAGES))))
        model = export_model(graph)
    lowered, report = lower(model)
    assert len(report.edits) == 4
    assert not report.skips
    assert_same(model, lowered, IMAGES)
    layers = [node.name for node in lowered.graph.node if node.op_type in ("Conv", "Gemm")]
    log = build(lowered, tmp_path)
    kernels = tensorrt_log.kernels(log)
    assert {name: kernels[name] for name in layers} == dict.fromkeys(layers, "Int8")
    floats = sum(np.prod(tensor.dims) * 4 for tensor in onnx.load(lenet5).graph.initializer)
    assert tensorrt_log.weight_bytes(log) < 0.27 * floats


@pytest.mark.parametrize("codebook", [False, True])
def test_tensorrt_runs_int8_layers_in_int8(codebook: bool, tmp_path: Path) -> None:
    log = build(lower(quantized.lenet(codebook=codebook))[0], tmp_path)
    kernels = tensorrt_log.kernels(log)
    assert {name: kernels[name] for name in ("conv1", "conv2", "fc")} == dict.fromkeys(
        ("conv1", "conv2", "fc"), "Int8"
    )
    assert tensorrt_log.stored(log, "Int8") >= {576, 3920}  # w1 is padded
    assert not tensorrt_log.stored(log, "Float") & {72, 576, 3920}


def test_with_size_preferred_int8_layers_read_4_bits(tmp_path: Path) -> None:
    """Through the target's own option, as the driver asks for it."""
    model = quantized.lenet()
    options = TensorRTRTX().lowering_options(TensorRTRTX.Config(prefer="size"), model, {})
    log = build(lower(model, **options)[0], tmp_path)
    kernels = tensorrt_log.kernels(log)
    assert {kernels[name] for name in ("conv1", "conv2", "fc")} == {"Int8"}
    proof = json.loads((tmp_path / "model.tensorrt-rtx.engine.json").read_text())["int8"]
    assert (proof["layers"]["int8"], proof["layers"]["kept"]) == (1.0, 1.0)
    assert tensorrt_log.stored(log, "Int4") == {72, 576, 3920}
    assert not tensorrt_log.stored(log, "Int8") & {72, 576, 3920}


def test_tensorrt_stores_a_float_codebook_in_4_bits(tmp_path: Path) -> None:
    log = build(lower(quantized.lenet(int8=False))[0], tmp_path)
    assert tensorrt_log.kernels(log)["conv2"] == "Float"
    assert tensorrt_log.stored(log, "Int4") == {72, 576, 3920}
    assert tensorrt_log.weight_bytes(log) < 4 * (72 + 576 + 3920) / 4


def test_another_tools_quantization_builds_in_int8(tmp_path: Path) -> None:
    """UINT8 around 128 on a weight and an activation, and an INT32 bias."""
    model = quantized.lenet(codebook=False)
    tensors = stored(model)
    for name, array in {
        "p1_zero": np.array(128, np.uint8),
        "w2_q": (numpy_helper.to_array(tensors["w2_q"]).astype(int) + 128).astype(np.uint8),
        "w2_zero": np.full(8, 128, np.uint8),
        "b1": np.arange(8, dtype=np.int32),
    }.items():
        tensors[name].CopyFrom(numpy_helper.from_array(array, name))
    tensors["b1"].name = "b1_codes"
    model.graph.node.insert(
        0, helper.make_node("DequantizeLinear", ["b1_codes", "p1_scale"], ["b1"], "b1_DQ")
    )
    onnx.checker.check_model(model, full_check=True)
    lowered, report = lower(model)
    assert {edit.node for edit in report.edits} == {"p1_Q", "w2_DQ", "b1_DQ"}
    assert_equal(model, lowered, IMAGES)
    kernels = tensorrt_log.kernels(build(lowered, tmp_path))
    assert {kernels[name] for name in ("conv1", "conv2", "fc")} == {"Int8"}


def test_a_scale_of_shape_1_would_cost_int8(tmp_path: Path) -> None:
    model = quantized.lenet(codebook=False)
    scale = next(tensor for tensor in model.graph.initializer if tensor.name == "p1_scale")
    scale.dims.append(1)
    zero = next(tensor for tensor in model.graph.initializer if tensor.name == "p1_zero")
    zero.dims.append(1)
    for name in (
        "p1_Q",
        "p1_DQ",
    ):  # of the one channel axis that has a single element there is none: per tensor is meant
        node(model, name).attribute.append(helper.make_attribute("axis", 0))
    assert tensorrt_log.kernels(build(model, tmp_path))["conv2"] == "Float"
    assert tensorrt_log.kernels(build(lower(model)[0], tmp_path))["conv2"] == "Int8"


def test_dimensions_of_no_name_build(tmp_path: Path) -> None:
    nodes = [helper.make_node("Relu", ["x"], ["y"], "relu")]
    model = quantized.model(nodes, {"x": ["?", "?"]}, {"y": ["?", "?"]}, {})
    log = build(lower(model)[0], tmp_path, shapes={"x": "1x3:1x4:2x8"})
    assert log.exists()


@pytest.mark.parametrize("text", list(INT4_FORMS))
@pytest.mark.parametrize(
    ("options", "kind"), [({}, "Int4"), ({"group": 0}, "Int4"), ({"zero_points": True}, "Int8")]
)
def test_int4_weights_stay_small(text: str, options: dict[str, object], kind: str, tmp_path: Path) -> None:
    """What becomes INT4 of a MatMul, a Gemm and a convolution, in groups and by channels; with zero-points
    it is INT8.
    """
    weight = builders.random(*INT4_FORMS[text])
    graph = import_model(builders.build(text, 21, w=weight))
    configure(find("int4"), options).apply(graph, Context())
    log = build(lower(export_model(graph))[0], tmp_path)
    assert weight.size in tensorrt_log.stored(log, kind)
    assert weight.size not in tensorrt_log.stored(log, "Float")


def test_float16_builds_in_float16(lenet5: Path, tmp_path: Path) -> None:
    graph = import_model(onnx.load(lenet5))
    configure(find("float16"), {}).apply(graph, Context())
    log = build(lower(export_model(graph))[0], tmp_path)
    floats = sum(np.prod(tensor.dims) * 4 for tensor in onnx.load(lenet5).graph.initializer)
    assert tensorrt_log.weight_bytes(log) < 0.52 * floats


@pytest.mark.parametrize(
    "move, shape",
    [
        ("Transpose <perm = [0, 2, 3, 1]> (a)", "4, 8, 8, 8"),
        ("MaxPool <kernel_shape = [2, 2]> (a)", "4, 8, 7, 7"),
        ("Unsqueeze (a, first)", "4, 1, 8, 8, 8"),
    ],
)
def test_pairs_on_both_sides_of_a_move_leave_layers_in_int8(move: str, shape: str, tmp_path: Path) -> None:
    """As int8 writes them from opset 21 on, for an output of the model as well."""
    text = f"(float[4, 8, 8, 8] x) => (float[{shape}] y) {{ [k] c = Conv (x, w)  [l] a = Conv (c, v)  y = {move} }}"
    constants = {"w": builders.random(8, 8, 1, 1), "v": builders.random(8, 8, 1, 1)}
    constants |= {"first": np.array([1])} if "first" in move else {}
    made = builders.build(text, 21, **constants)
    placed = placement.quantized(made, PLACEMENT | CANONICAL, builders.random(4, 8, 8, 8))[0]
    behind = [node.op_type for node in placed.graph.node][-3:]
    assert behind == [move.split()[0], "QuantizeLinear", "DequantizeLinear"]
    kernels = tensorrt_log.kernels(build(lower(placed)[0], tmp_path))
    assert {name: kernels[name] for name in "kl"} == {"k": "Int8", "l": "Int8"}


@pytest.mark.parametrize("rows", ["2, 16, ", ""], ids=["a bias of two axes", "a vector"])
def test_a_product_as_onnxruntime_keeps_it_is_int8(rows: str, tmp_path: Path) -> None:
    text = f"(float[{rows}32] x) => (float[{rows}64] y) {{ [k] p = MatMul (x, w)  s = Add (p, b)  y = Relu (s) }}"
    made = builders.build(text, 21, w=builders.random(32, 64), b=builders.random(64))
    sizes = [dim.dim_value for dim in made.graph.input[0].type.tensor_type.shape.dim]
    placed = placement.quantized(made, CANONICAL, builders.random(*sizes))[0]
    assert tensorrt_log.kernels(build(lower(placed)[0], tmp_path))["k"] == "Int8"


def test_indices_from_the_end_of_a_long_table_build(tmp_path: Path) -> None:
    """-1 is the index 299, which 8 bits do not hold."""
    nodes = [
        helper.make_node("Cast", ["indices"], ["index"], "cast", to=TensorProto.INT32),
        helper.make_node("Gather", ["table", "index"], ["w"], "gather"),
        helper.make_node("Add", ["x", "w"], ["y"], "add"),
    ]
    constants = {"table": np.arange(300, dtype=np.float32), "indices": np.array([-1, 0, 5, -128], np.int8)}
    lowered, report = lower(quantized.model(nodes, {"x": [4]}, {"y": [4]}, constants))
    assert quantized.run(lowered, {"x": np.zeros(4, np.float32)})[0].tolist() == [299, 0, 5, 172]
    assert [edit.node for edit in report.edits] == ["gather"]
    assert build(lowered, tmp_path).exists()
