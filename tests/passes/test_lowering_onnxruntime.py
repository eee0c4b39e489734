"""The ONNX Runtime lowering: that integers are computed with, counted in ONNX Runtime's own graph, and how
near the outputs stay.
"""

import json

import ml_dtypes
import numpy as np
import onnx
import pytest

from onnx_lathe import metadata
from onnx_lathe.optimizer.step import apply_pass
from onnx_lathe.passes.core.options import configure
from onnx_lathe.passes.core.services import Context
from onnx_lathe.passes.int8.int8 import Int8
from onnx_lathe.passes.lowering.ort_integers.floats import OUTPUT_RESULT, UNQUANTIZED_RESULT
from onnx_lathe.placement import CANONICAL
from onnx_lathe.runtime.running import ort
from onnx_lathe.runtime.targets.ort.ort import PLACEMENT
from tests.support.builders import build, random
from tests.support.int8 import FixedCalibrator, Form
from tests.support.placement import (
    CONSTANTS,
    IMAGES,
    MOBILE,
    RESIDUAL,
    kernels,
    lowered,
    network,
    output,
    quantized,
    relative,
)

NEAR = 0.06
"""Relative error that 8 bits cost these networks, which have 8 channels and random weights."""


@pytest.mark.parametrize("opset", [13, 17, 21, 24])
@pytest.mark.parametrize(
    "text, found",
    [
        (RESIDUAL, {"QLinearConv": 3, "QLinearAdd": 1, "QLinearGlobalAveragePool": 1, "QGemm": 1}),
        (
            MOBILE,
            {"QLinearConv": 7, "QLinearAdd": 1, "QLinearMul": 2, "QLinearSigmoid": 2, "QLinearGlobalAveragePool": 2, "QLinearConcat": 1},
        ),
    ],
    ids=["residual", "mobile"],
)  # fmt: skip
def test_every_layer_and_all_between_them_is_computed_on_integers(
    text: str, found: dict[str, int], opset: int
) -> None:
    model = network(text, opset)
    result, report = lowered(quantized(model)[0])
    assert not report.skips
    counts = kernels(result)
    assert {op: counts[op] for op in found} == found
    # one at the input; the Gemm writes float
    assert (counts["QuantizeLinear"], counts["DequantizeLinear"]) == (1, 0)
    assert not {"Conv", "FusedConv", "Gemm", "Add", "Mul", "Relu", "Clip"} & set(counts)
    assert relative(output(model), output(result)) < NEAR


def test_the_canonical_form_as_it_is_would_run_in_float() -> None:
    counts = kernels(quantized(network(RESIDUAL), CANONICAL)[0])
    assert (
        counts["QLinearConv"],
        counts["DequantizeLinear->Conv"] + counts["DequantizeLinear->FusedConv"],
    ) == (0, 3)


def test_a_relu_becomes_the_zero_point_and_twice_the_resolution() -> None:
    canonical = quantized(network(RESIDUAL))[0]
    before, after = Form(canonical), Form(lowered(canonical)[0])
    relu = next(node for node in before.nodes if node.op_type == "QuantizeLinear" and node.input[0] == "cr")
    folded = next(node for node in after.nodes if node.op_type == "QuantizeLinear" and node.input[0] == "c")
    low, high = json.loads(next(entry.value for entry in relu.metadata_props if entry.key == metadata.RANGE))
    assert low == 0
    assert after.constants[folded.input[1]] == pytest.approx(high / 255)
    zero = after.constants[folded.input[2]]
    assert (zero.dtype, int(zero)) == (np.uint8, 0)
    assert "Relu" not in after.ops()


def test_a_clip_caps_the_range() -> None:
    body = "a = Conv <pads = [1, 1, 1, 1]> (x, stem)  r = Clip (a, zero, six)  y = Conv (r, w)"
    text = f"(float[N, 3, 12, 12] x) => (float[N, 5, 12, 12] y) {{ {body} }}"
    model = build(
        text, stem=20 * CONSTANTS["stem"], w=random(5, 8, 1, 1), zero=np.float32(0), six=np.float32(6)
    )
    canonical, _ = quantized(model)
    for node in canonical.graph.node:
        for entry in node.metadata_props:
            if entry.key == metadata.RANGE and node.input[0] == "r":
                entry.value = "[0.0, 6.4]"  # such as a range rounded up to the end of a histogram's bin
    form = Form(lowered(canonical)[0])
    quantizer = next(node for node in form.nodes if node.op_type == "QuantizeLinear" and node.input[0] == "a")
    assert form.constants[quantizer.input[1]] == pytest.approx(6 / 255, rel=1e-5)
    assert "Clip" not in form.ops()


def test_an_asymmetric_range_gets_a_zero_point() -> None:
    canonical, _ = quantized(network(RESIDUAL), data=IMAGES * 0.5 + 1)
    form = Form(lowered(canonical)[0])
    quantizer = next(node for node in form.nodes if node.op_type == "QuantizeLinear" and node.input[0] == "x")
    scale, zero = (form.constants[name] for name in quantizer.input[1:])
    values = IMAGES * 0.5 + 1
    assert scale == pytest.approx((values.max() - values.min()) / 255, rel=1e-5)
    assert zero == np.rint(-values.min() / scale)


def test_a_trained_scale_widens_the_range() -> None:
    canonical, _ = quantized(network(RESIDUAL))
    before = Form(lowered(canonical)[0])
    name = next(
        node.input[1]
        for node in canonical.graph.node
        if node.op_type == "QuantizeLinear" and node.input[0] == "cr"
    )
    scale = next(tensor for tensor in canonical.graph.initializer if tensor.name == name)
    scale.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(scale) * np.float32(1.5), name))
    after = Form(lowered(canonical)[0])

    def found(form: Form) -> float:
        return float(
            form.constants[
                next(
                    node for node in form.nodes if node.op_type == "QuantizeLinear" and node.input[0] == "c"
                ).input[1]
            ]
        )

    assert found(after) == pytest.approx(1.5 * found(before), rel=1e-5)


def pair(name: str, kind: type = np.int8, zero: int = 0) -> tuple[str, dict[str, np.ndarray]]:
    text = f"{name}_q = QuantizeLinear ({name}, {name}_s, {name}_z)  {name}_d = DequantizeLinear ({name}_q, {name}_s, {name}_z)"
    return text, {f"{name}_s": np.float32(0.02), f"{name}_z": kind(zero)}


def test_pairs_without_a_range_keep_their_scale() -> None:
    text, constants = pair("a")
    model = build(f"(float[4] x) => (float[4] y) {{ a = Neg (x)  {text}  y = Abs (a_d) }}", **constants)
    result, report = lowered(model)
    form = Form(result)
    quantizer = form.layer("QuantizeLinear")
    assert form.constants[quantizer.input[1]] == np.float32(0.02)
    assert (form.constants[quantizer.input[2]].dtype, int(form.constants[quantizer.input[2]])) == (
        np.uint8,
        128,
    )
    assert [edit.node for edit in report.edits] == ["QuantizeLinear_1"]
    x = np.array([-2.0, -0.03, 0.015, 2.4], np.float32)
    np.testing.assert_allclose(output(result, x), output(model, x), atol=1e-6)


@pytest.mark.parametrize(
    "middle, zero, scale, left",
    [
        ("a = Relu (x)", 0, 0.02, False),
        ("a = Clip (x, zero, six)", 0, 6 / 127, False),
        ("a = Clip (x, zero, six)", -128, 12 / 255, True),
    ],
)
def test_saturation_stays_where_it_was_without_a_range(
    middle: str, zero: int, scale: float, left: bool
) -> None:
    text, constants = pair("a", zero=zero)
    constants |= {"a_s": np.float32(scale)} | (
        {"zero": np.float32(0), "six": np.float32(6)} if "six" in middle else {}
    )
    model = build(f"(float[6] x) => (float[6] y) {{ {middle}  {text}  y = Neg (a_d) }}", **constants)
    result, _ = lowered(model)
    assert bool({"Relu", "Clip"} & set(Form(result).ops())) is left
    x = np.array([-2.0, 0.03, 1.5, 2.5, 5.9, 50.0], np.float32)
    np.testing.assert_allclose(output(result, x), output(model, x), atol=0.8 * scale)


@pytest.mark.parametrize(
    "other, size", [("z = Exp (p)", "2, 2, 2"), ("f = Flatten (x)  {pair}  z = Neg (f_d)", "32")]
)
def test_a_range_is_not_handed_to_what_others_read(other: str, size: str) -> None:
    """Another reader of the pooled tensor, and another chain with a range of its own from the tensor
    before.
    """
    (first, constants), (second, more) = pair("p"), pair("f")
    if "pair" in other:
        constants |= more | {"f_s": np.float32(0.1)}
    body = f"x = Neg (x0)  p = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (x)  {first}  y = Abs (p_d)  {other.format(pair=second)}"
    model = build(
        f"(float[N, 2, 4, 4] x0) => (float[N, 2, 2, 2] y, float[N, {size}] z) {{ {body} }}", **constants
    )
    result, _ = lowered(model)
    x = np.linspace(-9, 9, 64, dtype=np.float32).reshape(2, 2, 4, 4)
    for mine, right in zip(
        *(ort.run(ort.session(one), {"x0": x}).values() for one in (result, model)), strict=True
    ):
        np.testing.assert_allclose(mine, right, rtol=1e-5, atol=1e-5)


def test_reduce_range_leaves_a_weight_with_a_zero_point() -> None:
    text, constants = pair("x", np.uint8, 128)
    weight = "w = DequantizeLinear <axis = 0> (w_q, w_s, w_z)  y = Gemm <transB = 1> (x_d, w)"
    constants |= {
        "w_q": np.arange(-12, 12, dtype=np.int8).reshape(6, 4),
        "w_s": np.full(6, 0.1, np.float32),
        "w_z": np.full(6, 40, np.int8),
    }
    model = build(f"(float[N, 4] x) => (float[N, 6] y) {{ {text}  {weight} }}", **constants)
    result, report = lowered(model, reduce_range=True)
    assert "the zero-point of its weight is not 0, and its weight keeps 8 bits" in {
        skip.reason for skip in report.skips
    }
    x = random(3, 4)
    np.testing.assert_allclose(output(result, x), output(model, x), rtol=1e-4, atol=1e-4)


def test_a_product_of_two_activations_has_no_bias_to_store() -> None:
    texts, constants = zip(*(pair(name, np.uint8, 128) for name in ("a", "b")), strict=True)
    body = f"a = Neg (x)  b = Transpose <perm = [1, 0]> (x)  {texts[0]}  {texts[1]}  m = MatMul (a_d, b_d)  y = Add (m, c)"
    model = build(
        f"(float[4, 4] x) => (float[4, 4] y) {{ {body} }}", **constants[0], **constants[1], c=random(4)
    )
    result, _ = lowered(model)
    x = random(4, 4)
    np.testing.assert_allclose(output(result, x), output(model, x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "tail, reason",
    [
        ("y = Conv (x, w)", OUTPUT_RESULT),
        ("c = Conv (x, w)  y = HardSwish (c)", UNQUANTIZED_RESULT),
    ],
)
def test_a_convolution_that_would_run_in_float_is_float_again(tail: str, reason: str) -> None:
    model = build(f"(float[N, 3, 12, 12] x) => (float[N, 5, 12, 12] y) {{ {tail} }}", w=random(5, 3, 1, 1))
    canonical, _ = quantized(model, CANONICAL)
    result, report = lowered(canonical)
    assert [(skip.node, skip.reason) for skip in report.skips] == [("Conv_0", reason)]
    assert not {"QuantizeLinear", "DequantizeLinear"} & set(Form(result).ops())
    assert relative(output(model), output(result)) < 0.02  # the weight's rounding stays


def test_what_only_a_float_operator_reads_is_computed_on_integers_too() -> None:
    model = build(
        "(float[N, 3, 12, 12] x) => (float[N, 5, 12, 12] y) { c = Conv (x, w)  y = HardSwish (c) }",
        w=random(5, 3, 1, 1),
    )
    result, report = lowered(quantized(model)[0])
    assert not report.skips
    assert kernels(result)["QLinearConv"] == 1


MATRICES = {"m": random(4, 7), "b": random(7), "n": random(7, 7)}
INTEGER = ("QGemm", "QLinearMatMul", "MatMulIntegerToFloat")


@pytest.mark.parametrize(
    "text, names",
    [
        ("y = MatMul (x, m)", "m"),
        ("a = MatMul (x, m)  y = Add (a, b)", "mb"),
        ("a = MatMul (x, m)  y = Add (b, a)", "mb"),
        ("a = MatMul (x, m)  r = Relu (a)  y = MatMul (r, n)", "mn"),
    ],
)
@pytest.mark.parametrize("middle", ["", "3, "], ids=["2-D", "3-D"])
def test_matrix_products_are_computed_on_integers(text: str, names: str, middle: str) -> None:
    constants = {name: MATRICES[name] for name in names}
    model = build(f"(float[N, {middle}4] x) => (float[N, {middle}7] y) {{ {text} }}", **constants)
    rows = random(6, 3, 4) if middle else random(6, 4)
    result, _ = lowered(quantized(model, data=rows)[0])
    counts = kernels(result)
    assert sum(counts[op] for op in INTEGER) == text.count("MatMul")
    assert not {"MatMul", "Gemm", "FusedMatMul", "FusedGemm"} & set(counts)
    assert relative(output(model, rows), output(result, rows)) < 0.03


@pytest.mark.parametrize("attributes", ["alpha = 2.0", "beta = 0.5"])
def test_a_scaled_bias_stays_float(attributes: str) -> None:
    model = build(
        f"(float[N, 4] x) => (float[N, 7] y) {{ y = Gemm <{attributes}> (x, m, b) }}",
        m=random(4, 7),
        b=random(7),
    )
    rows = random(6, 4)
    result, _ = lowered(quantized(model, data=rows)[0])
    assert not any(tensor.data_type == onnx.TensorProto.INT32 for tensor in result.graph.initializer)
    assert relative(output(model, rows), output(result, rows)) < 0.03


def test_a_codebook_weight_becomes_an_int8_initializer() -> None:
    table, indices = np.sort(random(16)), np.random.default_rng(3).integers(0, 16, (8, 3, 3, 3))
    text = (
        "(float[N, 3, 12, 12] x) => (float[N, 5, 10, 10] y) { index = Cast <to = 6> (codes)  w = Gather <axis = 0> (table, index) "
        "a = Conv (x, w)  r = Relu (a)  y = Conv (r, v) }"
    )
    model = build(text, 21, table=table, codes=indices.astype(ml_dtypes.uint4), v=random(5, 8, 1, 1))
    result, _ = lowered(quantized(model)[0])
    assert not {"Gather", "Cast"} & set(Form(result).ops())
    assert kernels(result)["QLinearConv"] == 1
    assert relative(output(model), output(result)) < NEAR


def test_reduce_range_keeps_weights_within_7_bits() -> None:
    model = network(RESIDUAL)
    canonical, _ = quantized(model)
    result, report = lowered(canonical, reduce_range=True)
    stored = [
        onnx.numpy_helper.to_array(t)
        for t in result.graph.initializer
        if t.data_type == onnx.TensorProto.INT8 and len(t.dims) > 1
    ]
    assert len(stored) == 4
    assert all(np.abs(values.astype(int)).max() <= 64 for values in stored)
    assert sum(edit.what == "weight has 7 bits" for edit in report.edits) == 4
    assert kernels(result)["QLinearConv"] == 3
    assert relative(output(model), output(result)) < 2 * NEAR


def test_a_shared_weight_is_reduced_once() -> None:
    canonical, _ = quantized(network(MOBILE))
    plain, reduced = (Form(lowered(canonical, reduce_range=flag)[0]) for flag in (False, True))
    name = next(
        node.input[1]
        for node in reduced.nodes
        if node.op_type == "DequantizeLinear" and node.output[0] == "point"
    )
    before = next(
        node.input[1]
        for node in plain.nodes
        if node.op_type == "DequantizeLinear" and node.output[0] == "point"
    )
    np.testing.assert_allclose(reduced.constants[name], 2 * plain.constants[before])


def test_a_tensor_that_a_body_reads_stays_float() -> None:
    text = """(float[N, 3, 12, 12] x, bool c) => (float[N, 5, 12, 12] y, float[N, 5, 12, 12] z) {
        a = Conv (x, w)  r = Relu (a)  y = Conv (r, v)
        z = If (c) <then_branch = g1 () => (float[N, 5, 12, 12] t) { t = Neg (r) },
            else_branch = g2 () => (float[N, 5, 12, 12] e) { e = Abs (r) }> }"""
    model = build(text, w=random(5, 3, 1, 1), v=random(5, 5, 1, 1))
    options = {"method": "minmax", "bias_correction": False}
    canonical, _ = apply_pass(
        configure(Int8, options), model, Context(calibrator=FixedCalibrator(), placement=PLACEMENT)
    )
    result, report = lowered(canonical)
    assert "Conv_0" in {skip.node for skip in report.skips}
    assert "Relu" in Form(result).ops()


def test_lowering_twice_changes_nothing_more() -> None:
    once, _ = lowered(quantized(network(MOBILE))[0])
    twice, report = lowered(once)
    np.testing.assert_array_equal(output(twice), output(once))
    assert not report.skips


def test_a_uint8_pair_of_another_tool_is_handed_on_as_uint8() -> None:
    text, constants = pair("a", np.uint8, 7)
    model = build(
        f"(float[N, 2, 4] x) => (float[N, 8] y) {{ b = Neg (x)  a = Flatten (b)  {text}  y = Abs (a_d) }}",
        **constants,
    )
    result, report = lowered(model)
    assert [edit.what for edit in report.edits] == ["b is quantized before Flatten_1"]
    x = np.linspace(-2, 2, 16, dtype=np.float32).reshape(2, 2, 4)
    np.testing.assert_array_equal(output(result, x), output(model, x))


@pytest.mark.parametrize("target", ["onnxruntime", "tensorrt"])
def test_a_decoded_tensor_that_is_an_output_stays(target: str) -> None:
    text, constants = pair("s")
    model = build(
        f"(float[N, 4] x) => (float[N, 4] s_d, float[N, 4] z) {{ s = Softmax (x)  {text}  z = Neg (s_d) }}",
        **constants,
    )
    quantizer = next(node for node in model.graph.node if node.op_type == "QuantizeLinear")
    quantizer.metadata_props.add(key=metadata.RANGE, value="[0.0, 1.0]")
    result, _ = lowered(model, target, PLACEMENT if target == "onnxruntime" else CANONICAL)
    x = random(3, 4)
    for mine, right in zip(
        *(ort.run(ort.session(one), {"x": x}).values() for one in (result, model)), strict=True
    ):
        np.testing.assert_allclose(mine, right, atol=0.02)
