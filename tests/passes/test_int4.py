"""int4: the stored form, its numbers, what is refused, and that runtimes take it."""

from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import pytest

from onnx_lathe.optimizer.step import apply_pass
from onnx_lathe.passes.core import contract
from onnx_lathe.passes.core.options import configure
from onnx_lathe.passes.core.registry import find
from onnx_lathe.passes.core.report import PassReport
from onnx_lathe.passes.core.services import Context
from onnx_lathe.passes.numerics.quantization import affine, int4
from onnx_lathe.runtime.files import model_file
from onnx_lathe.runtime.torch_bridge.parameters import trainable
from tests.support.builders import build, random
from tests.support.quantized import assert_equal, lower, run

LINEAR = "(float[N, 64] x) => (float[N, 32] y) { y = MatMul (x, w) }"
CONV = "(float[N, 8, 6, 6] x) => (float[N, 16, 4, 4] y) { y = Conv (x, w) }"


def quantize(model: onnx.ModelProto, **options: object) -> tuple[onnx.ModelProto, PassReport]:
    after, report = apply_pass(configure(find("int4"), options), model, Context())
    if report.edits:
        contract.check_structure(model, after, "int4")
    onnx.checker.check_model(after, full_check=True)
    return after, report


def stored(model: onnx.ModelProto) -> dict[str, onnx.TensorProto]:
    return {tensor.name: tensor for tensor in model.graph.initializer}


def decoder(model: onnx.ModelProto) -> dict[str, int]:
    node = next(node for node in model.graph.node if node.op_type == "DequantizeLinear")
    return {item.name: item.i for item in node.attribute}


def agreement_db(model: onnx.ModelProto, after: onnx.ModelProto, x: np.ndarray) -> float:
    return affine.signal_to_noise_db(run(model, {"x": x})[0], run(after, {"x": x})[0])


@pytest.mark.parametrize("zero_points", [False, True])
def test_matmul(zero_points: bool) -> None:
    model = build(LINEAR, 21, w=random(64, 32))
    after, _ = quantize(model, zero_points=zero_points)
    tensors = stored(after)
    assert decoder(after) == {"axis": 0, "block_size": 32}
    assert tensors["w_int4"].data_type == (onnx.TensorProto.UINT4 if zero_points else onnx.TensorProto.INT4)
    assert list(tensors["w_scale"].dims) == [2, 32]
    assert len(tensors["w_int4"].raw_data) == 64 * 32 // 2
    assert agreement_db(model, after, random(8, 64)) > 18


def test_gemm_is_grouped_along_its_inputs() -> None:
    model = build(
        "(float[N, 64] x) => (float[N, 32] y) { y = Gemm <transB = 1> (x, w, b) }",
        21,
        w=random(32, 64),
        b=random(32),
    )
    after, _ = quantize(model, group=16)
    assert decoder(after) == {"axis": 1, "block_size": 16}
    assert list(stored(after)["w_scale"].dims) == [32, 4]
    assert agreement_db(model, after, random(8, 64)) > 19


@pytest.mark.parametrize(("group", "attributes"), [(32, {"axis": 1, "block_size": 36}), (0, {"axis": 0})])
def test_a_convolution_is_stored_as_a_matrix(group: int, attributes: dict[str, int]) -> None:
    model = build(CONV, 21, w=random(16, 8, 3, 3))
    after, _ = quantize(model, group=group)
    assert [node.op_type for node in after.graph.node] == ["DequantizeLinear", "Reshape", "Conv"]
    assert decoder(after) == attributes
    assert list(stored(after)["w_int4"].dims) == [16, 72]
    assert agreement_db(model, after, random(2, 8, 6, 6)) > 15


def test_opset_17_is_raised() -> None:
    after, _ = quantize(build(LINEAR, 17, w=random(64, 32)))
    assert after.opset_import[0].version == 21
    assert after.ir_version >= 10


def test_a_model_that_cannot_be_raised_is_left() -> None:
    model = build(
        "(float[N, 64] x) => (float[N, 32] y) { h = MatMul (x, w)  y = Relu (h) }", 17, w=random(64, 32)
    )
    opsets = [onnx.helper.make_opsetid("", 17)]
    body = [onnx.helper.make_node("Relu", ["a"], ["b"])]
    model.functions.append(onnx.helper.make_function("net", "Bound", ["a"], ["b"], body, opsets))
    model.opset_import.append(onnx.helper.make_opsetid("net", 1))
    after, report = quantize(model)
    assert after is model
    assert report.skips[0].reason.startswith(
        "opset 17 has no 4-bit weights and cannot be raised: it has local functions"
    )


def test_refusals() -> None:
    w = random(64, 32)
    bad = w.copy()
    bad[0, 0] = np.nan
    quantized = "(float[N, 64] x) => (float[N, 32] y) { q = QuantizeLinear (x, s, z)  d = DequantizeLinear (q, s, z)  y = MatMul (d, w) }"
    output = "(float[N, 64] x) => (float[N, 32] y, float[64, 32] v) { v = Identity (w)  y = MatMul (x, w) }"
    pair = {"s": np.array(0.1, np.float32), "z": np.array(0, np.int8)}
    for model, options, reason in (
        (build(quantized, 21, w=w, **pair), {}, "its input is INT8, which does not multiply with INT4"),
        (build(output, 21, w=w), {}, "its weight is also read by Identity_0"),
        (build(LINEAR, 21, w=bad), {}, "its weight holds NaN or infinity"),
        (build(LINEAR, 21, w=w), {"layers": {"w": False}}, "the option layers leaves it in float"),
        (
            build(LINEAR, 21, w=w),
            {"min_size": 5000},
            "its weight has 2048 elements, fewer than min_size=5000",
        ),
    ):
        after, report = quantize(model, **options)
        assert after is model
        assert [skip.reason for skip in report.skips] == [reason]


def test_zeros_stay_and_new_ones_are_told() -> None:
    w = random(64, 32)
    w[::2] = 0
    model = build(LINEAR, 21, w=w)
    model.metadata_props.add(key="lathe.sparse", value='{"w": "unstructured"}')
    after, report = quantize(model)
    levels = onnx.numpy_helper.to_array(stored(after)["w_int4"]).astype(int)
    assert not levels[::2].any()
    fell = int(np.count_nonzero(levels[1::2] == 0))
    assert f"{fell} small values became zero beside those that must stay" in report.edits[0].what


def test_a_shared_weight_is_stored_once() -> None:
    model = build(
        "(float[N, 64] x) => (float[N, 64] y) { h = MatMul (x, w)  y = MatMul (h, w) }", 21, w=random(64, 64)
    )
    after, report = quantize(model)
    assert [node.op_type for node in after.graph.node].count("DequantizeLinear") == 1
    assert len(report.edits) == 2


def test_integers_do_not_train(lenet5: Path) -> None:
    after, _ = quantize(model_file.load(lenet5))
    assert not {name for name in trainable(after.graph) if "int4" in name}
    assert "fc1.bias" in trainable(after.graph)


def test_what_is_stored_in_4_bits_is_not_said_to_be_of_int8() -> None:
    once, _ = quantize(build(LINEAR, 21, w=random(64, 32)))
    for name, reason in (
        ("int4", "its weight is stored as int4 already"),
        ("svd", "its weight is stored as int4; svd before int4"),
    ):
        _, report = apply_pass(configure(find(name), {}), once, Context())
        assert [skip.reason for skip in report.skips] == [reason]


def test_float16_halves_the_scales() -> None:
    model = build("(float[N, 256] x) => (float[N, 64] y) { y = MatMul (x, w) }", 21, w=random(256, 64))
    after, _ = quantize(model)
    halved, _ = apply_pass(configure(find("float16"), {}), after, Context())
    kinds = {name: tensor.data_type for name, tensor in stored(halved).items()}
    assert kinds == {"w_int4": onnx.TensorProto.INT4, "w_scale": onnx.TensorProto.FLOAT16}
    assert agreement_db(after, halved, random(8, 256)) > 40


@pytest.mark.parametrize(
    ("zero_points", "kind"), [(False, onnx.TensorProto.INT4), (True, onnx.TensorProto.INT8)]
)
@pytest.mark.parametrize("text", [LINEAR, CONV])
def test_the_lowering_for_tensorrt(text: str, zero_points: bool, kind: int) -> None:
    weight, x = (
        (random(64, 32), random(2, 64)) if text is LINEAR else (random(16, 8, 3, 3), random(2, 8, 6, 6))
    )
    model, _ = quantize(build(text, 21, w=weight), zero_points=zero_points)
    lowered, _ = lower(model)
    assert stored(lowered)["w_int4"].data_type == kind
    assert_equal(model, lowered, {"x": x})


@pytest.mark.parametrize("symmetric", [True, False])
def test_searching_beats_the_largest_value(symmetric: bool) -> None:
    matrix = random(64, 96)
    found = [
        affine.signal_to_noise_db(matrix, int4.encode(matrix, 32, symmetric, search).restored())
        for search in (False, True)
    ]
    assert found[0] < found[1]
    assert found[1] > 20


def test_numbers_on_the_grid_come_back_exactly() -> None:
    levels = np.random.default_rng(1).integers(-7, 8, (8, 32))
    levels[:, 0] = 7
    encoded = int4.encode((levels * 0.25).astype(np.float32), 32, symmetric=True, search=False)
    assert encoded.levels.dtype == ml_dtypes.int4
    np.testing.assert_array_equal(encoded.restored(), levels * 0.25)


@pytest.mark.parametrize("symmetric", [True, False])
@pytest.mark.parametrize("size", [1e-30, 1e-9, 1e20, 1e37])
def test_levels_do_not_depend_on_how_large_the_weights_are(symmetric: bool, size: float) -> None:
    matrix = random(8, 64) / 8
    power = np.float32(2.0 ** np.floor(np.log2(size)))
    plain, scaled = (int4.encode(values, 32, symmetric, search=True) for values in (matrix, matrix * power))
    np.testing.assert_array_equal(scaled.levels.astype(int), plain.levels.astype(int))
    np.testing.assert_array_equal(scaled.scale, plain.scale * power)


def test_a_group_of_zeros_has_a_positive_scale() -> None:
    for symmetric in (True, False):
        encoded = int4.encode(np.zeros((2, 16), np.float32), 8, symmetric, search=True)
        assert (encoded.scale > 0).all()
        assert not encoded.restored().any()


def test_the_group_is_a_divisor() -> None:
    assert [int4.divisor_near(size, 32) for size in (784, 300, 144, 127, 64)] == [28, 30, 36, None, 32]
