"""int8(existing=...): models that carry Q/DQ already, in the forms that other quantizers write."""

import json

import numpy as np
import onnx
import pytest

from onnx_lathe import metadata
from onnx_lathe.passes.core.options import configure
from onnx_lathe.passes.core.services import Context
from onnx_lathe.passes.graph.model import export_model, import_model
from onnx_lathe.passes.int8.int8 import Int8
from onnx_lathe.passes.lowering import find_lowering
from onnx_lathe.passes.numerics.quantization import affine
from tests.support.builders import build, random, run
from tests.support.int8 import CONV, FixedCalibrator, Form, quantize
from tests.support.seeds import generator

X = random(8, 3, 8, 8)
SHAPES = {"w1": (6, 3, 3, 3), "w2": (5, 6, 3, 3), "w3": (5, 4)}
WEIGHTS = {name: random(*shape) / np.float32(4) for name, shape in SHAPES.items()}
BIASES = {name: random(size) / np.float32(8) for name, size in (("b1", 6), ("b2", 5), ("b3", 4))}
SCALES = {"x": 8 / 255, "r": 3 / 255, "c": 8 / 255, "g": 4 / 255}
ZEROS = {"x": 128, "r": 0, "c": 121, "g": 100}
STRIP = {"existing": "strip", "layers": {"*": False}}

NET = """(float[N, 3, 8, 8] x) => (float[N, 4] y) {
    x_q = QuantizeLinear (x, x_s, x_z)  x_d = DequantizeLinear (x_q, x_s, x_z)
    w1 = DequantizeLinear (w1_q, w1_s, w1_z)  b1 = DequantizeLinear (b1_q, b1_s, b_z)
    r = Conv (x_d, w1, b1)
    r_q = QuantizeLinear (r, r_s, r_z)  r_d = DequantizeLinear (r_q, r_s, r_z)
    w2 = DequantizeLinear (w2_q, w2_s, w2_z)  b2 = DequantizeLinear (b2_q, b2_s, b_z)
    c = Conv (r_d, w2, b2)
    c_q = QuantizeLinear (c, c_s, c_z)  c_d = DequantizeLinear (c_q, c_s, c_z)
    p = GlobalAveragePool (c_d)  g = Flatten (p)
    g_q = QuantizeLinear (g, g_s, g_z)  g_d = DequantizeLinear (g_q, g_s, g_z)
    w3 = DequantizeLinear (w3_q, w3_s, w3_z)  b3 = DequantizeLinear (b3_q, b3_s, b_z)
    y = Gemm (g_d, w3, b3) }"""
FLOAT = """(float[N, 3, 8, 8] x) => (float[N, 4] y) {
    r = Conv (x, w1, b1)  a = Relu (r)  c = Conv (a, w2, b2)  p = GlobalAveragePool (c)  g = Flatten (p)  y = Gemm (g, w3, b3) }"""


def foreign() -> onnx.ModelProto:
    """As onnxruntime's quantize_static writes it by default: UINT8 activations with zero-points, INT8
    weights with one scale each, biases INT32 in units of both; the ReLU behind the first convolution is
    in its zero-point.
    """
    constants: dict[str, np.ndarray] = {"b_z": np.int32(0)}
    for name, scale in SCALES.items():
        constants |= {f"{name}_s": np.float32(scale), f"{name}_z": np.uint8(ZEROS[name])}
    for name, weight in WEIGHTS.items():
        scale = np.abs(weight).max() / np.float32(127)
        constants |= {
            f"{name}_q": affine.quantize(weight, scale),
            f"{name}_s": scale,
            f"{name}_z": np.int8(0),
        }
    for name, source, weight in (("b1", "x", "w1"), ("b2", "r", "w2"), ("b3", "g", "w3")):
        scale = constants[f"{source}_s"] * constants[f"{weight}_s"]
        constants |= {f"{name}_q": np.rint(BIASES[name] / scale).astype(np.int32), f"{name}_s": scale}
    return build(NET, **constants)


def decoded(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    stored = Form(model).constants
    return {
        name: stored[f"{name}_q"].astype(np.float32) * stored[f"{name}_s"] for name in [*WEIGHTS, *BIASES]
    }


def test_stripped_it_is_the_float_model_again() -> None:
    model = foreign()
    assert configure(Int8, STRIP).needs == ()
    result, report = quantize(model, **STRIP)
    form = Form(result)
    assert form.ops() == ["Conv", "Conv", "Flatten", "Gemm", "GlobalAveragePool", "Relu"]
    for name, values in decoded(model).items():
        np.testing.assert_array_equal(form.constants[name], values)
    np.testing.assert_allclose(
        run(result, {"x": X})["y"], run(build(FLOAT, **decoded(model)), {"x": X})["y"], rtol=1e-5, atol=1e-6
    )
    assert affine.signal_to_noise_db(run(result, {"x": X})["y"], run(model, {"x": X})["y"]) > 25
    assert report.metrics == {"stripped": 10, "layers": 0}
    assert [skip.reason for skip in report.skips] == ["the option layers leaves it in float"] * 3


def test_stripped_and_quantized_afresh() -> None:
    calibrator = FixedCalibrator()
    result, report = quantize(foreign(), calibrator, existing="strip")
    form = Form(result)
    assert calibrator.asked[0] == "x"
    assert len(calibrator.asked) == 3
    assert {
        form.constants[name].dtype
        for node in form.nodes
        if node.op_type == "QuantizeLinear"
        for name in node.input[2:]
    } == {np.dtype(np.int8)}
    assert form.constants["w1_scale"].shape == (6,)
    assert form.constants["b1"].dtype == np.float32
    assert report.metrics["layers"] == 3


def test_kept_it_does_not_change_and_says_what_tensorrt_refuses() -> None:
    model = foreign()
    calibrator = FixedCalibrator()
    result, report = quantize(model, calibrator)
    assert result == export_model(import_model(model))
    assert not report.edits
    assert not calibrator.asked
    skips = {skip.node: skip.reason for skip in report.skips}
    refused = "TensorRT takes INT8 with zero-point 0 only, which existing=complete makes of it"
    assert skips["QuantizeLinear_0"] == f"kept as UINT8 with zero-point 128; {refused}"
    assert [reason for reason in skips.values() if reason == "already quantized"] == ["already quantized"] * 3


def test_completed_it_is_in_the_canonical_form() -> None:
    model = foreign()
    calibrator = FixedCalibrator()
    result, report = quantize(model, calibrator, existing="complete")
    form = Form(result)
    assert not calibrator.asked
    pairs = {node.input[0]: node for node in form.nodes if node.op_type == "QuantizeLinear"}
    assert set(pairs) == {"x", "r_relu", "c", "g"}
    for name, node in zip("xrcg", pairs.values(), strict=True):
        scale, zero = (form.constants[tensor] for tensor in node.input[1:])
        low, high = -ZEROS[name] * np.float32(SCALES[name]), (255 - ZEROS[name]) * np.float32(SCALES[name])
        assert (scale.shape, zero.dtype, int(zero)) == ((), np.int8, 0)
        assert scale == pytest.approx(SCALES[name] if name == "x" else max(-low, high) / 127, rel=1e-6)
        found = next(json.loads(entry.value) for entry in node.metadata_props if entry.key == metadata.RANGE)
        assert found == pytest.approx([low, high], rel=1e-6)
    assert form.producers["r_relu"].op_type == "Relu"
    np.testing.assert_array_equal(form.constants["b1"], decoded(model)["b1"])
    assert form.constants["w1_q"].dtype == np.int8
    edits = {edit.node: edit.what for edit in report.edits}
    assert (
        edits["QuantizeLinear_0"]
        == "UINT8 with zero-point 128 became INT8 with zero-point 0: the same values"
    )
    assert (
        edits["QuantizeLinear_5"]
        == "UINT8 with zero-point 0 became INT8 with zero-point 0: range 0 to 3 kept, steps 2.01x as wide"
    )
    assert affine.signal_to_noise_db(run(model, {"x": X})["y"], run(result, {"x": X})["y"]) > 25
    lowered = find_lowering("tensorrt")().apply(import_model(result), Context())
    assert not lowered.skips


def test_a_half_quantized_model_is_completed() -> None:
    """The first layer has a weight but no pair, the second a pair but no weight, the third nothing."""
    text = """(float[N, 4] x) => (float[N, 4] y) {
        a = DequantizeLinear <axis = 1> (a_q, a_s)  h = MatMul (x, a)
        q = QuantizeLinear (h, s, z)  d = DequantizeLinear (q, s, z)  i = MatMul (d, b)  y = MatMul (i, c) }"""
    scale = np.full(4, 0.01, np.float32)
    model = build(
        text,
        a_q=affine.quantize(random(4, 4), scale, 1),
        a_s=scale,
        b=random(4, 4),
        c=random(4, 4),
        s=np.float32(0.05),
        z=np.int8(0),
    )
    kept = quantize(model)[1]
    assert {skip.node: skip.reason for skip in kept.skips} == {
        "MatMul_1": "its weight is quantized already; existing=complete quantizes what it reads, too",
        "MatMul_4": "what it reads is quantized already; existing=complete quantizes its weight, too",
    }
    calibrator = FixedCalibrator()
    result, report = quantize(model, calibrator, existing="complete")
    form = Form(result)
    assert calibrator.asked == ["x", "i"]
    assert {
        form.chain(tensor)[0] for node in form.nodes if node.op_type == "MatMul" for tensor in node.input
    } == {"DequantizeLinear"}
    np.testing.assert_array_equal(form.constants["a_s"], scale)
    assert form.constants["s"] == np.float32(0.05)
    assert report.metrics["layers"] == 3
    again, second = quantize(result, existing="complete")
    assert not second.edits
    assert Form(again).ops() == form.ops()


def test_the_floats_behind_a_fake_quantized_weight_come_back() -> None:
    """PyTorch's quantization-aware training exports float weights with a pair each, and scales as Constant
    nodes.
    """
    text = (
        CONV.format(
            nodes="""s = Constant <value = float {{0.02}}> ()  z = Constant <value = int8 {{0}}> ()
        q = QuantizeLinear (w, s, z)  d = DequantizeLinear (q, s, z)  y = Conv (x, d)"""
        )
        .replace("{{", "{")
        .replace("}}", "}")
    )
    weight = random(6, 4, 3, 3) * np.float32(0.5)
    model = build(text, w=weight)
    form = Form(quantize(model, **STRIP)[0])
    assert form.ops() == ["Conv"]
    np.testing.assert_array_equal(form.constants[form.layer("Conv").input[1]], weight)
    complete, _ = quantize(model, existing="complete", activations=False)
    form = Form(complete)
    assert form.ops() == ["Conv", "DequantizeLinear"]
    assert (
        affine.quantize(weight, np.float32(0.02)).tolist()
        == form.constants[form.producers[form.layer("Conv").input[1]].input[0]].tolist()
    )
    feeds = {"x": random(2, 4, 8, 8)}
    np.testing.assert_allclose(run(complete, feeds)["y"], run(model, feeds)["y"], rtol=1e-5, atol=1e-5)


def test_unsigned_weights_are_centred_or_quantized_again() -> None:
    text = """(float[N, 4] x) => (float[N, 6] y) {
        a = DequantizeLinear (a_q, s, z)  h = MatMul (x, a)  b = DequantizeLinear (b_q, s, t)  y = MatMul (h, b) }"""
    codes = {
        "a_q": generator().integers(60, 180, (4, 4)).astype(np.uint8),
        "b_q": generator().integers(0, 256, (4, 6)).astype(np.uint8),
    }
    model = build(text, **codes, s=np.float32(0.01), z=np.uint8(120), t=np.uint8(3))
    result, report = quantize(model, existing="complete", activations=False)
    form = Form(result)
    first, second = (form.producers[form.layer("MatMul", index).input[1]] for index in range(2))
    np.testing.assert_array_equal(form.constants[first.input[0]], codes["a_q"].astype(np.int16) - 120)
    assert form.constants[second.input[1]].shape == (6,)
    assert form.constants[second.input[0]].dtype == np.int8
    assert [edit.what for edit in report.edits[:2]] == [
        "a was UINT8 with zero-point 120, became INT8 with zero-point 0: the same values",
        "b was UINT8 with zero-point 3, became float",
    ]
    feeds = {"x": random(3, 4)}
    assert affine.signal_to_noise_db(run(model, feeds)["y"], run(result, feeds)["y"]) > 35


@pytest.mark.parametrize("producer, relus", [("Relu", 1), ("Sigmoid", 0), ("Tanh", 1)])
def test_a_zero_point_becomes_a_relu_only_where_it_clips(producer: str, relus: int) -> None:
    text = f"""(float[N, 4] x) => (float[N, 4] y) {{
        r = {producer} (x)  q = QuantizeLinear (r, s, z)  d = DequantizeLinear (q, s, z)  y = Tanh (d) }}"""
    model = build(text, s=np.float32(0.01), z=np.uint8(0))
    result, _ = quantize(model, existing="strip")
    assert Form(result).ops().count("Relu") == relus
    feeds = {"x": random(4, 4)}
    np.testing.assert_allclose(run(result, feeds)["y"], run(model, feeds)["y"], atol=0.02)


def test_beside_a_weight_in_blocks_activations_stay_float() -> None:
    """ONNX Runtime makes of an INT8 one and a pair a node that it cannot run."""
    text = "(float[N, 8] x) => (float[N, 8] y) { w = DequantizeLinear <axis = 0, block_size = 4> (w_q, s)  y = MatMul (x, w) }"
    model = build(
        text,
        21,
        w_q=generator().integers(-127, 128, (8, 8)).astype(np.int8),
        s=np.full((2, 8), 0.01, np.float32),
    )
    result, report = quantize(model, existing="complete")
    reason = "its weight is quantized in blocks, which runtimes do not multiply with INT8 activations"
    assert [skip.reason for skip in report.skips] == [reason]
    feeds = {"x": random(3, 8)}
    np.testing.assert_array_equal(run(result, feeds)["y"], run(model, feeds)["y"])


@pytest.mark.parametrize("existing", ["strip", "complete"])
def test_a_zero_point_clips_the_models_input_too(existing: str) -> None:
    text = "(float[N, 4] x) => (float[N, 4] y) { q = QuantizeLinear (x, s, z)  d = DequantizeLinear (q, s, z)  y = Neg (d) }"
    model, feeds = build(text, s=np.float32(0.02), z=np.uint8(0)), {"x": random(8, 4)}
    result, _ = quantize(model, existing=existing)
    np.testing.assert_allclose(run(result, feeds)["y"], run(model, feeds)["y"], atol=0.04)


def test_a_range_of_six_becomes_a_clip() -> None:
    text = """(float[N, 4] x) => (float[N, 4] y) {
        c = MatMul (x, w)  q = QuantizeLinear (c, s, z)  d = DequantizeLinear (q, s, z)  y = Neg (d) }"""
    model = build(text, w=random(4, 4) * np.float32(9), s=np.float32(6 / 255), z=np.uint8(0))
    result, _ = quantize(model, existing="strip", layers={"*": False})
    assert Form(result).ops() == ["Clip", "MatMul", "Neg"]
    feeds = {"x": random(16, 4)}
    np.testing.assert_allclose(run(result, feeds)["y"], run(model, feeds)["y"], atol=6 / 255)


@pytest.mark.parametrize("scale", [0.05, 6 / 255])
@pytest.mark.parametrize("options", [STRIP, {"existing": "complete"}])
def test_pairs_in_float16(scale: float, options: dict[str, object]) -> None:
    text = """(float16[N, 4] x) => (float16[N, 4] y) {
        c = MatMul (x, w)  q = QuantizeLinear (c, s, z)  d = DequantizeLinear (q, s, z)  y = MatMul (d, w) }"""
    model = build(text, 21, w=random(4, 4).astype(np.float16), s=np.float16(scale), z=np.uint8(0))
    result, _ = quantize(model, **options)
    assert ("Clip" if scale < 0.03 else "Relu") in Form(result).ops()
    feeds = {"x": random(16, 4).astype(np.float16)}
    expected, found = run(model, feeds)["y"], run(result, feeds)["y"]
    assert affine.signal_to_noise_db(expected.astype(np.float32), found) > 25


@pytest.mark.parametrize("options", [STRIP, {"existing": "complete"}])
def test_a_pair_without_zero_points(options: dict[str, object]) -> None:
    """Both are UINT8 with zero-point 0 then, and the DequantizeLinear does not say so."""
    text = """(float[N, 4] x) => (float[N, 4] y) {
        c = MatMul (x, w)  q = QuantizeLinear (c, s)  d = DequantizeLinear (q, s)  y = Neg (d) }"""
    model = build(text, w=random(4, 4), s=np.float32(0.05))
    result, report = quantize(
        model, layers={"*": False}, **{key: value for key, value in options.items() if key != "layers"}
    )
    assert "Relu" in Form(result).ops()
    assert len(report.edits) == 1
    feeds = {"x": random(16, 4)}
    np.testing.assert_allclose(run(result, feeds)["y"], run(model, feeds)["y"], atol=0.08)


def test_sixteen_bits_clip_as_eight_do() -> None:
    text = """(float[N, 4] x) => (float[N, 4] y) {
        c = MatMul (x, w)  q = QuantizeLinear (c, s, z)  d = DequantizeLinear (q, s, z)  y = Neg (d) }"""
    model = build(text, 21, w=random(4, 4), s=np.float32(0.0005), z=np.uint16(0))
    result, _ = quantize(model, **STRIP)
    feeds = {"x": random(16, 4)}
    np.testing.assert_allclose(run(result, feeds)["y"], run(model, feeds)["y"], atol=1e-3)
    kept = quantize(model, layers={"*": False})[1]
    assert (
        kept.skips[0].reason == "kept as UINT16 with zero-point 0; TensorRT takes INT8 with zero-point 0 only"
    )


def test_a_scale_of_zero_is_left_alone() -> None:
    text = "(float[N, 4] x) => (float[N, 4] y) { q = QuantizeLinear (x, s, z)  d = DequantizeLinear (q, s, z)  y = Neg (d) }"
    _, report = quantize(build(text, s=np.float32(0), z=np.uint8(0)), existing="complete")
    assert [skip.reason for skip in report.skips] == ["kept: its scale is not positive"]


def test_a_pair_at_the_output_leaves_its_name() -> None:
    text = "(float[N, 4] x) => (float[N, 4] y) { t = Tanh (x)  q = QuantizeLinear (t, s, z)  y = DequantizeLinear (q, s, z) }"
    result, _ = quantize(build(text, s=np.float32(0.01), z=np.int8(3)), existing="strip")
    assert Form(result).ops() == ["Identity", "Tanh"]


@pytest.mark.parametrize(
    "nodes, constants, reason",
    [
        (
            "q = QuantizeLinear (x, s, z)  y = DequantizeLinear (q, t, z)",
            {},
            "stays: it does not give back what its QuantizeLinear was given",
        ),
        (
            "q, s2, z2 = DynamicQuantizeLinear (x)  y = DequantizeLinear (q, s2, z2)",
            {},
            "stays: its integers come from DynamicQuantizeLinear_0",
        ),
    ],
)
def test_what_cannot_be_stripped(nodes: str, constants: dict[str, np.ndarray], reason: str) -> None:
    model = build(
        f"(float[N, 4] x) => (float[N, 4] y) {{ {nodes} }}",
        s=np.float32(0.1),
        t=np.float32(0.2),
        z=np.uint8(3),
        **constants,
    )
    result, report = quantize(model, existing="strip")
    assert [node.op_type for node in result.graph.node] == [node.op_type for node in model.graph.node]
    assert any(skip.reason.startswith(reason) for skip in report.skips)
    assert not report.edits


def test_what_cannot_be_completed() -> None:
    text = """(float[N, 4] x) => (float[N, 4] y, float[N, 4] u, int8[N, 4] k) {
        q = QuantizeLinear (x, s, z)  y = DequantizeLinear (q, t, z)
        p = QuantizeLinear <axis = 1> (x, v, n)  u = DequantizeLinear <axis = 1> (p, v, n)
        k = QuantizeLinear (x, s, m)  l = DequantizeLinear (k, s, m) }"""
    constants = {"v": np.full(4, 0.1, np.float32), "n": np.zeros(4, np.int8), "m": np.int8(1)}
    result, report = quantize(
        build(text, s=np.float32(0.1), t=np.float32(0.2), z=np.uint8(3), **constants), existing="complete"
    )
    assert {skip.node: skip.reason for skip in report.skips} == {
        "QuantizeLinear_0": "kept: DequantizeLinear_1 has another scale or zero-point",
        "QuantizeLinear_2": "kept as INT8 with zero-point 0: only a pair of 8 bits with one scale has a canonical form",
        "QuantizeLinear_4": "kept: its integers are read elsewhere too",
    }
    assert not report.edits
    assert "QuantizeLinear" in Form(result).ops()


def test_what_a_branch_reads_by_name_keeps_it() -> None:
    text = """(float[N, 4] x, bool b) => (float[N, 4] y) {
        q = QuantizeLinear (x, s, z)  d = DequantizeLinear (q, s, z)  w = DequantizeLinear (w_q, s)  c = MatMul (d, w)
        y = If (b) <then_branch = t () => (float[N, 4] u) { u = Add (d, c) },
                    else_branch = e () => (float[N, 4] v) { v = MatMul (d, w) }> }"""
    model = build(text, w_q=affine.quantize(random(4, 4), np.float32(0.02)), s=np.float32(0.02), z=np.int8(0))
    result, _ = quantize(model, existing="strip", layers={"*": False})
    assert not {"QuantizeLinear", "DequantizeLinear"} & {*Form(result).ops()}
    for choice in (True, False):
        feeds = {"x": random(2, 4) * np.float32(0.5), "b": np.array(choice)}
        np.testing.assert_allclose(run(result, feeds)["y"], run(model, feeds)["y"], atol=0.1)
