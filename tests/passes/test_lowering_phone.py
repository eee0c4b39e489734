"""The form of the runtimes of phones: every tensor stored in INT8."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx
import pytest

from onnx_lathe.passes.core.services import Context
from onnx_lathe.passes.graph.model import export_model, import_model
from onnx_lathe.passes.lowering.phone import lower_to_phone_form
from onnx_lathe.placement import CANONICAL, PHONE
from onnx_lathe.runtime.running.calibration import StreamingCalibrator
from onnx_lathe.runtime.targets.ort.ort import PLACEMENT
from tests.support.builders import build, random, run
from tests.support.int8 import Form, Rows
from tests.support.phone import QUANTIZERS, Stored, phone_form
from tests.support.placement import IMAGES, MOBILE, RESIDUAL, network, output, quantized, relative
from tests.support.placement import lowered as lowered_for_ort


def one_layer(body: str, opset: int = 17, rank: int = 4, **constants: np.ndarray) -> onnx.ModelProto:
    """x -> Conv c, Relu r [N, 8, 6, 6] -> body, which writes y."""
    sizes = ", ".join("ABCD"[:rank])
    text = (
        f"(float[N, 3, 6, 6] x) => (float[{sizes}] y) "
        + "{ c = Conv <pads = [1, 1, 1, 1]> (x, w, b)  r = Relu (c)  "
        + body
        + " }"
    )
    constants = {name: values for name, values in constants.items() if name in body}
    return build(text, opset, w=random(8, 3, 3, 3), b=random(8), **constants)


SAMPLES = np.random.default_rng(3).standard_normal((8, 3, 6, 6)).astype(np.float32)


@pytest.mark.parametrize("text", [RESIDUAL, MOBILE], ids=["residual", "mobile"])
@pytest.mark.parametrize("opset", [17, 21])
def test_every_tensor_is_stored_and_onnx_runtime_computes_it(text: str, opset: int) -> None:
    model = network(text, opset)
    lowered, report = phone_form(quantized(model, PHONE)[0])
    assert report.metrics["float_layers"] == 0
    assert not report.skips
    form = Form(lowered)
    for node in form.nodes:
        computed = [name for name in node.input if name in form.producers]
        if node.op_type not in QUANTIZERS:
            assert all(form.producers[name].op_type == "DequantizeLinear" for name in computed), node.name
    assert relative(output(model), output(lowered)) < 0.05  # ONNX Runtime, as a user opens it


def test_relus_are_the_end_of_the_range() -> None:
    form = Stored(phone_form(quantized(network(RESIDUAL), PHONE)[0])[0])
    assert "Relu" not in form.ops()
    scale, zero, kind = form.parameters(form.layer("Conv").output[0])
    assert (zero, kind) == (-128, "int8")
    assert scale > 0


def test_a_clip_ends_the_range_too() -> None:
    form = Stored(phone_form(quantized(network(MOBILE), PHONE)[0])[0])
    assert "Clip" not in form.ops()
    scale, zero, _ = form.parameters(form.layer("Conv").output[0])
    assert zero == -128
    assert 255 * scale <= 6 * (1 + 1e-6)


def test_bias_is_int32_in_units_of_both_scales() -> None:
    lowered, _ = phone_form(quantized(network(RESIDUAL), PHONE)[0])
    form = Form(lowered)
    layers = [node for node in form.nodes if node.op_type in ("Conv", "Gemm")]
    assert len(layers) == 4
    for layer in layers:
        source, weight, bias = (form.producers[name] for name in layer.input)
        assert form.constants[bias.input[0]].dtype == np.int32
        wanted = form.constants[source.input[1]] * form.constants[weight.input[1]]
        np.testing.assert_allclose(form.constants[bias.input[1]], wanted, rtol=1e-6)
        assert form.constants[weight.input[0]].dtype == np.int8
        assert form.constants[weight.input[0]].min() >= -127


SAME = {
    "MaxPool": "y = MaxPool <kernel_shape = [2, 2]> (r)",
    "AveragePool": "y = AveragePool <kernel_shape = [2, 2]> (r)",
    "Reshape": "y = Reshape (r, shape)",
    "Transpose": "y = Transpose <perm = [0, 2, 3, 1]> (r)",
    "Slice": "y = Slice (r, one, two, one)",
    "Pad": "y = Pad (r, pads)",
    "Resize": 'y = Resize <mode = "linear"> (r, , sizes)',
    "DepthToSpace": "y = DepthToSpace <blocksize = 2> (r)",
    "Split": "s, y = Split <axis = 1> (r, halves)",
    "Squeeze": "u = Unsqueeze (r, one)  y = Squeeze (u, one)",
    "Flatten": "y = Flatten (r)",
}
CONSTANTS: Mapping[str, np.ndarray] = {
    "shape": np.array([0, 4, -1]),
    "one": np.array([1]),
    "two": np.array([3]),
    "pads": np.array([0, 0, 1, 1, 0, 0, 1, 1]),
    "sizes": np.array([1, 1, 2, 2], np.float32),
    "halves": np.array([4, 4]),
}


@pytest.mark.parametrize("op", SAME)
@pytest.mark.parametrize("opset", [17, 21])
def test_what_hands_values_on_has_one_scale(op: str, opset: int) -> None:
    model = one_layer(SAME[op], opset, {"Reshape": 3, "Flatten": 2}.get(op, 4), **CONSTANTS)
    form = Stored(lowered := phone_form(quantized(model, PHONE, SAMPLES)[0])[0])
    node = form.layer(op)
    assert form.parameters(node.input[0]) == form.parameters(node.output[-1])
    assert relative(output(model, SAMPLES), output(lowered, SAMPLES)) < 0.03


@pytest.mark.parametrize(
    "body, parameters",
    [
        ("y = Sigmoid (r)", (1 / 256, -128, "int8")),
        ("y = Softmax <axis = 1> (r)", (1 / 256, -128, "int8")),
        ("y = Tanh (r)", (1 / 128, 0, "int8")),
    ],
)
def test_gates_have_the_parameters_that_kernels_insist_on(
    body: str, parameters: tuple[float, int, str]
) -> None:
    model = one_layer(body)
    form = Stored(lowered := phone_form(quantized(model, PHONE, SAMPLES)[0])[0])
    node = next(node for node in form.nodes if node.op_type == body.split()[2])
    assert form.parameters(node.output[0]) == parameters
    assert relative(output(model, SAMPLES), output(lowered, SAMPLES)) < 0.1


def test_a_gate_that_a_runtime_lacks_is_a_product_and_a_sum() -> None:
    model = one_layer("y = HardSigmoid <alpha = 0.16666667> (c)")
    quantized_model = quantized(model, PHONE, SAMPLES)[0]
    split, _ = phone_form(quantized_model)
    assert "HardSigmoid" not in Form(split).ops()
    assert "Clip" not in Form(split).ops()  # the range ends at 0 and 1
    whole, _ = phone_form(quantized_model, operators=frozenset({"HardSigmoid"}))
    assert "HardSigmoid" in Form(whole).ops()
    steps = np.rint(np.abs(output(split, SAMPLES) - output(whole, SAMPLES)) * 255)
    assert steps.max() <= 1


@pytest.mark.parametrize(
    "factor, form_of_part",
    [(0.8, "one scale"), (0.2, "another pair in front"), (0.01, "float")],
)
def test_a_concat_has_one_scale_unless_a_part_is_too_small_for_it(factor: float, form_of_part: str) -> None:
    body = "d = Conv (x, v)  p = Mul (d, f)  y = Concat <axis = 1> (d, p)"
    text = f"(float[N, 3, 6, 6] x) => (float[N, 8, 6, 6] y) {{ {body} }}"
    model = build(text, v=random(4, 3, 1, 1), f=np.float32(factor))
    lowered, report = phone_form(quantized(model, PHONE, SAMPLES)[0])
    form = Stored(lowered)
    concat = form.layer("Concat")
    sources = [form.producers[name] for name in concat.input]
    scales = {float(form.constants[node.input[1]]) for node in sources}
    requantized = [node for node in sources if form.chain(node.output[0])[2:3] == ["DequantizeLinear"]]
    if form_of_part == "float":
        assert len(scales) == 2
        assert "y" in concat.output
        assert any("its parts have ranges" in skip.reason for skip in report.skips)
    else:
        assert len(scales) == 1
        assert form.parameters(concat.output[0])[0] in scales
        assert len(requantized) == (form_of_part == "another pair in front")
    found = output(lowered, SAMPLES)
    assert relative(output(model, SAMPLES)[:, 4:], found[:, 4:]) < 0.05


def test_a_relu_whose_input_is_read_elsewhere_stays() -> None:
    model = one_layer("s = Add (c, r)  y = AveragePool <kernel_shape = [2, 2]> (s)")
    form = Stored(lowered := phone_form(quantized(model, PHONE, SAMPLES)[0])[0])
    relu = form.layer("Relu")
    assert form.parameters(relu.input[0])[1] > -128
    assert form.parameters(relu.output[0])[1] == -128
    assert relative(output(model, SAMPLES), output(lowered, SAMPLES)) < 0.03


def test_layers_left_in_float_read_decoded_values() -> None:
    model = network(RESIDUAL, 21)
    lowered, report = phone_form(quantized(model, PHONE, layers={"first": False})[0])
    form = Form(lowered)
    layer = next(node for node in form.nodes if node.input[1:2] == ["first"])
    assert form.chain(layer.input[0])[:2] == ["DequantizeLinear", "QuantizeLinear"]
    assert form.constants["first"].dtype == np.float32
    assert report.metrics["float_layers"] == 1
    assert relative(output(model), output(lowered)) < 0.05


def test_an_operator_without_a_form_in_int8_stays_float_and_is_named() -> None:
    model = one_layer("t = Transpose <perm = [0, 2, 3, 1]> (r)  e = Exp (t)  y = Neg (e)", 21)
    lowered, report = phone_form(quantized(model, PHONE, SAMPLES)[0])
    assert [skip.reason for skip in report.skips] == ["Exp has no form in INT8 here: it computes in float"]
    assert relative(output(model, SAMPLES), output(lowered, SAMPLES)) < 0.05  # loads at opset 21


def test_without_ranges_a_layer_stays_float_and_the_report_says_which_tensor_lacks_one() -> None:
    model = network(RESIDUAL)
    canonical = quantized(model, CANONICAL)[0]
    lowered, report = phone_form(canonical)
    reasons = {skip.node: skip.reason for skip in report.skips}
    assert (
        reasons["Conv_5"]
        == "its result 'd' has no calibrated range; calibrate with this target named, or give data: it computes in float"
    )
    assert report.metrics["float_layers"] > 0
    assert relative(output(model), output(lowered)) < 0.05
    measured, report = phone_form(canonical, StreamingCalibrator(Rows(x=IMAGES)))
    assert report.metrics["float_layers"] == 0
    assert relative(output(model), output(measured)) < 0.05


@pytest.mark.parametrize("text", [RESIDUAL, MOBILE], ids=["residual", "mobile"])
def test_pairs_of_another_form_keep_what_they_store(text: str) -> None:
    """UINT8 with a zero-point that does the work of the ReLUs, as ONNX Runtime's quantizer writes it."""
    model = network(text)
    foreign, _ = lowered_for_ort(quantized(model, PLACEMENT)[0])
    assert "Relu" not in Form(foreign).ops()
    result, report = phone_form(foreign, StreamingCalibrator(Rows(x=IMAGES)))
    assert report.metrics["float_layers"] == 0
    assert relative(output(model), output(result)) < 0.02


@dataclass
class Likeness:
    """Fidelity to one model's output on IMAGES."""

    original: onnx.ModelProto

    def sqnr(self, model: onnx.ModelProto, plain: bool = False) -> float:
        return -20 * np.log10(relative(output(self.original), output(model)))


def test_biases_that_make_up_for_another_form_are_moved_where_that_helps() -> None:
    model = network(RESIDUAL)
    canonical = quantized(model, CANONICAL | PHONE)[0]  # biases make up for INT8 with zero-point 0
    graph = import_model(canonical)
    calibrator, likeness = StreamingCalibrator(Rows(x=IMAGES)), Likeness(model)
    alone, _ = phone_form(canonical, calibrator)
    report = lower_to_phone_form(graph, Context(placement=PHONE, calibrator=calibrator, fidelity=likeness))
    chosen = export_model(graph)
    assert likeness.sqnr(chosen) >= likeness.sqnr(alone)
    moved = any("bias moved" in edit.what for edit in report.edits)
    assert moved == (likeness.sqnr(chosen) > likeness.sqnr(alone))


def test_a_bias_that_int32_could_not_hold_widens_the_scale_of_its_weights() -> None:
    weight = random(8, 3, 1, 1)
    weight[2] *= 1e-9  # as batch normalization switches a channel off
    model = build(
        "(float[N, 3, 6, 6] x) => (float[N, 8, 6, 6] y) { y = Conv (x, w, b) }", w=weight, b=10 + random(8)
    )
    form = Form(lowered := phone_form(quantized(model, PHONE, SAMPLES)[0])[0])
    bias = form.producers[form.layer("Conv").input[2]]
    assert np.abs(form.constants[bias.input[0]].astype(np.int64)).max() <= (1 << 30) + 1
    expected, found = output(model, SAMPLES)[:, 2], output(lowered, SAMPLES)[:, 2]
    assert np.abs(expected - found).max() < 0.06  # half a step of a range of 25


@pytest.mark.parametrize("opset", [17, 21])
@pytest.mark.parametrize("rows, op", [("", "Gemm"), ("5, ", "MatMul")], ids=["matrix", "rows"])
def test_a_bias_behind_a_product_is_part_of_it(opset: int, rows: str, op: str) -> None:
    text = f"(float[N, {rows}6] x) => (float[N, {rows}4] y) {{ m = MatMul (x, w)  a = Add (m, b)  y = Relu (a) }}"
    model = build(text, opset, w=random(6, 4), b=random(4))
    data = np.random.default_rng(1).standard_normal((8, 5, 6) if rows else (40, 6)).astype(np.float32)
    form = Stored(lowered := phone_form(quantized(model, PHONE, data)[0])[0])
    layer = form.layer(op)
    added = layer.input[2] if op == "Gemm" else form.layer("Add").input[1]
    assert form.constants[form.producers[added].input[0]].dtype == np.int32
    last = layer if op == "Gemm" else form.layer("Add")
    assert form.parameters(last.output[0])[1:] == (-128, "int8")
    assert form.ops().count("QuantizeLinear") == 2
    assert relative(output(model, data), output(lowered, data)) < 0.03


def test_a_weight_of_minus_128_is_rounded_again() -> None:
    model = quantized(one_layer("y = Neg (r)"), PHONE, SAMPLES)[0]
    form = Form(model)
    name = form.producers[form.layer("Conv").input[1]].input[0]
    stored = next(tensor for tensor in model.graph.initializer if tensor.name == name)
    codes = onnx.numpy_helper.to_array(stored).copy()
    codes[codes == -127] = -128
    codes[0, 0, 0, 0] = -128
    stored.CopyFrom(onnx.numpy_helper.from_array(codes, name))
    after = Form(lowered := phone_form(model)[0])
    weight = after.producers[after.layer("Conv").input[1]]
    assert after.constants[weight.input[0]].min() == -127
    assert relative(output(model, SAMPLES), output(lowered, SAMPLES)) < 0.03


@pytest.mark.parametrize("factor", [0.5, 5.0])
def test_a_concat_holds_its_constant_parts_too(factor: float) -> None:
    part = (factor * random(1, 8, 6, 6)).astype(np.float32)
    model = one_layer("t = Concat <axis = 0> (r, part)  y = Conv (t, w1)", part=part, w1=random(4, 8, 1, 1))
    lowered = phone_form(quantized(model, PHONE, SAMPLES)[0])[0]
    assert relative(output(model, SAMPLES), output(lowered, SAMPLES)) < 0.03


def test_a_constant_part_beyond_a_share_gives_the_concat_another_range() -> None:
    part = 3 * random(1, 8, 6, 6)
    model = one_layer(
        "s = Sigmoid (c)  t = Concat <axis = 0> (s, part)  y = Conv (t, w1)", part=part, w1=random(4, 8, 1, 1)
    )
    lowered = phone_form(quantized(model, PHONE, SAMPLES)[0])[0]
    assert relative(output(model, SAMPLES), output(lowered, SAMPLES)) < 0.03


def test_a_model_without_quantized_layers_stays() -> None:
    model = network(RESIDUAL)
    lowered, report = phone_form(model)
    assert not report.edits
    x = {"x": IMAGES}
    np.testing.assert_array_equal(run(model, x)["y"], run(lowered, x)["y"])


@pytest.mark.parametrize("op, sign", [("Add", 1), ("Sub", -1)])
def test_zeros_do_not_lie_between_two_levels_of_a_sum_with_a_constant(op: str, sign: int) -> None:
    """HardSwish in parts: 3 is 127.5 steps of 6/255, which ONNX rounds to even and LiteRT up or down."""
    body = f"s = {op}(c, three) k = Clip(s, none, six) y = Mul(r, k)"
    model = one_layer(
        body,
        three=np.array(3 * sign, np.float32),
        none=np.array(0, np.float32),
        six=np.array(6, np.float32),
    )
    form = Stored(phone_form(quantized(model, PHONE, SAMPLES)[0])[0])
    total = form.layer(op)
    scale, zero, _ = form.parameters(total.output[0])
    assert (scale, zero) == (pytest.approx(6 / 255), -128)
    decoder = form.producers[total.input[1]]
    levels, step, origin = (form.constants[name].astype(np.float64) for name in decoder.input)
    steps = abs(float((levels - origin) * step)) / scale
    assert 0.01 < steps - 127.5 < 0.03
