"""int8: which layers stay float and why, options, older opsets, and how much accuracy it costs."""

import numpy as np
import pytest

from onnx_lathe import metadata
from onnx_lathe.errors import PassError, UsageError
from onnx_lathe.passes.core.options import configure
from onnx_lathe.passes.core.services import Context
from onnx_lathe.passes.graph.model import import_model
from onnx_lathe.passes.int8.int8 import Int8
from onnx_lathe.passes.numerics.quantization import affine
from onnx_lathe.runtime.running.calibration import StreamingCalibrator
from tests.support.builders import build, random, run
from tests.support.int8 import CONV, HIGH, RESIDUAL, Fixed, FixedCalibrator, Form, Rows, quantize

ODD = {
    "u": random(4, 4),
    "m": random(4, 6),
    "w": random(6, 4, 3, 3),
    "t": random(4, 6, 3, 3),
    "d": random(4, 1, 3, 3),
}
HALF = np.ones((6, 4, 3, 3), np.float16)


@pytest.mark.parametrize(
    "text, skips",
    [
        (
            "(float[N, 4, 8, 8] x) => (float[N, 8, 6, 6] y) { y = Conv <group = 4> (x, e) }",
            {"Conv_0": "a depthwise convolution stays float"},
        ),
        (
            "(float[N, 4, 4, 4] x) => (float[N, 6, 6, 6] y) { y = ConvTranspose (x, t) }",
            {"ConvTranspose_0": "a transposed convolution stays float"},
        ),
        (
            "(float[N, 2, 5, 4] x) => (float[N, 2, 5, 6] y) { y = MatMul (x, batched) }",
            {
                "MatMul_0": "its weight is a batch of matrices, for which ONNX Runtime has no scale per channel"
            },
        ),
        (
            CONV.format(nodes="v = Relu (w)  y = Conv (x, v)"),
            {"Conv_1": "its weight is computed at run time"},
        ),
        (
            CONV.format(nodes="v = Mul (w, nan)  y = Conv (x, broken)"),
            {"Conv_1": "its weight holds NaN or infinity"},
        ),
        (
            "(float[N, 4] x) => (float[N, 6] y, float[4, 6] z) { y = MatMul (x, m)  z = Relu (m) }",
            {"MatMul_0": "its weight is also read by Relu_1"},
        ),
        (
            "(float[N, 4] x) => (float[N, 6] y, float[4, 6] m) { y = MatMul (x, m) }",
            {"MatMul_0": "its weight is an output of the model"},
        ),
        (
            "(float[N, 4] x) => (float[N, 6] y) { c = MatMul (u, m)  k = ReduceSum (c)  p = MatMul (x, q)  y = Add (p, k) }",
            {"MatMul_0": "its input is constant"},
        ),
        (
            "(float[N, 4] x) => (float[N, 4] y) { a = Gemm (x, u)  y = Gemm <transB = 1> (a, u) }",
            dict.fromkeys(
                ("Gemm_0", "Gemm_1"),
                "its weight is shared with a layer that has its output channels on another axis",
            ),
        ),
        (
            "(float16[N, 4, 8, 8] x) => (float16[N, 6, 6, 6] y) { y = Conv (x, h) }",
            {"Conv_0": "its weight is float16, not float32"},
        ),
    ],
)
def test_refusals(text: str, skips: dict[str, str]) -> None:
    broken = ODD["w"].copy()
    broken[0, 0, 0, 0] = np.inf
    model = build(
        text,
        **ODD,
        e=random(8, 1, 3, 3),
        broken=broken,
        nan=np.float32(1),
        q=random(4, 6),
        batched=random(2, 4, 6),
        h=HALF,
    )
    report = quantize(model)[1]
    assert {skip.node: skip.reason for skip in report.skips} == skips
    assert set(skips).isdisjoint(edit.node for edit in report.edits)


def test_an_input_that_is_always_zero_keeps_its_layer_in_float() -> None:
    text = "(float[N, 4] x) => (float[N, 6] y) { r = Relu (x)  y = MatMul (r, w) }"
    result, report = quantize(build(text, w=random(4, 6)), FixedCalibrator(r=Fixed(0.0, 0.0)))
    assert Form(result).ops() == ["MatMul", "Relu"]
    assert [(skip.node, skip.reason) for skip in report.skips] == [
        ("MatMul_1", "its input is zero on all calibration data")
    ]
    assert not report.edits


def test_a_call_that_reads_zeros_gets_the_range_of_the_other_calls_of_its_weight() -> None:
    """As the first step of an unrolled recurrent cell, whose state is zero; all its steps share a weight."""
    text = "(float[N, 4] x, float[N, 4] z) => (float[N, 4] y) { h = MatMul (z, w) s = Add (h, x) t = Tanh (s) y = MatMul (t, w) }"
    ranges = FixedCalibrator(z=Fixed(0.0, 0.0), t=Fixed(-0.75, 0.5))
    result, report = quantize(build(text, w=random(4, 4)), ranges)
    assert not report.skips
    assert Form(result).ops().count("QuantizeLinear") == 2
    scales = {edit.node: edit.what for edit in report.edits if "range" in edit.what}
    assert "z is INT8: range -0.75 to 0.5, scale 0.00591" in scales["MatMul_0"]
    assert "t is INT8: range -0.75 to 0.5, scale 0.00591" in scales["MatMul_3"]


def test_a_layer_that_reads_nothing_but_zeros_borrows_no_range() -> None:
    """Not even of another layer that reads the zeros, and something else in another call."""
    text = "(float[N, 4] x, float[N, 4] z) => (float[N, 4] y, float[N, 6] o) { h = MatMul (z, w) t = MatMul (x, w) y = Add (h, t) o = MatMul (z, u) }"
    ranges = FixedCalibrator(z=Fixed(0.0, 0.0), x=Fixed(-1.0, 1.0))
    _, report = quantize(build(text, w=random(4, 4), u=random(4, 6)), ranges)
    assert [(skip.node, skip.reason) for skip in report.skips] == [
        ("MatMul_3", "its input is zero on all calibration data")
    ]


def test_an_addition_behind_such_a_layer_stays_as_it_is() -> None:
    model = build(RESIDUAL.format(body="z = Tanh (i)  c = Conv (z, w)  s = Add (c, i)"), w=random(4, 4, 1, 1))
    result, report = quantize(model, FixedCalibrator(z=Fixed(0.0, 0.0)))
    assert "QuantizeLinear" not in Form(result).ops()
    assert not report.edits


def test_twice_changes_nothing_and_asks_for_nothing() -> None:
    text = RESIDUAL.format(body="c = Conv (i, w)  s = Add (c, i)")
    once, _ = quantize(build(text, w=random(4, 4, 1, 1)))
    calibrator = FixedCalibrator()
    twice, report = quantize(once, calibrator)
    assert twice == once
    assert not report.edits
    assert not calibrator.asked
    assert [skip.reason for skip in report.skips] == ["already quantized"]


def test_a_second_step_for_other_layers_uses_the_pair_that_is_there() -> None:
    text = "(float[N, 4] x) => (float[N, 6] y, float[N, 6] z) { y = MatMul (x, a)  z = MatMul (x, b) }"
    first, _ = quantize(build(text, a=random(4, 6), b=random(4, 6)), layers={"b": False})
    calibrator = FixedCalibrator()
    second, report = quantize(first, calibrator)
    assert not calibrator.asked
    assert Form(second).ops().count("QuantizeLinear") == 1
    assert [(skip.node, skip.reason) for skip in report.skips] == [("MatMul_0", "already quantized")]


def test_layers_are_chosen_by_pattern() -> None:
    text = "(float[N, 4] x) => (float[N, 4] y) { a = MatMul (x, first)  b = MatMul (a, second)  y = MatMul (b, third) }"
    model = build(text, first=random(4, 4), second=random(4, 4), third=random(4, 4))
    _, report = quantize(model, layers={"*": False, "second": True, "MatMul_2": True})
    assert [(skip.node, skip.reason) for skip in report.skips] == [
        ("MatMul_0", "the option layers leaves it in float")
    ]
    assert {edit.node for edit in report.edits} == {"MatMul_1", "MatMul_2"}
    with pytest.raises(
        UsageError, match=r"int8\(layers=...\): no weight or layer is named 'secnd'; did you mean 'second'"
    ):
        quantize(model, layers={"secnd": False})


def test_weights_alone_need_no_data() -> None:
    model = build(CONV.format(nodes="y = Conv (x, w)"), w=random(6, 4, 3, 3))
    graph = import_model(model)
    instance = configure(Int8, {"activations": False})
    assert instance.needs == ()
    assert Int8().needs == ("calibrator",)
    report = instance.apply(graph, Context())
    assert sorted(node.op for node in graph.nodes) == ["Conv", "DequantizeLinear"]
    assert report.metrics == {"layers": 1}


def test_without_data_the_pass_says_what_to_give() -> None:
    graph = import_model(build(CONV.format(nodes="y = Conv (x, w)"), w=random(6, 4, 3, 3)))
    with pytest.raises(PassError, match="needs calibration data; give --data"):
        Int8().apply(graph, Context())
    assert [node.op for node in graph.nodes] == ["Conv"]


def test_a_model_without_layers_asks_for_nothing() -> None:
    calibrator = FixedCalibrator()
    result, report = quantize(build("(float[N, 4] x) => (float[N, 4] y) { y = Relu (x) }"), calibrator)
    assert not calibrator.asked
    assert not report.edits
    assert Form(result).ops() == ["Relu"]


def test_ranges_by_percentile() -> None:
    model = build(CONV.format(nodes="y = Conv (x, w)"), w=random(6, 4, 3, 3))
    form = Form(quantize(model, method="percentile", percentile=90.0)[0])
    assert form.constants["x_scale"] == np.float32(0.9 * HIGH / 127)


def test_a_percentile_that_holds_one_value_only_falls_back_on_the_extremes() -> None:
    class Peaked(Fixed):
        def percentile(self, percent: float) -> tuple[float, float]:
            return 0.0, 0.0

    model = build(CONV.format(nodes="y = Conv (x, w)"), w=random(6, 4, 3, 3))
    form = Form(quantize(model, FixedCalibrator(x=Peaked()), method="percentile")[0])
    assert form.constants["x_scale"] == np.float32(HIGH / 127)


OLD = """(float[N, 4, 8, 8] x) => (float[N, 6] y) {
    c = Conv (x, w)  d = Dropout <ratio = 0.5> (c)  g = GlobalAveragePool (d)
    q = Squeeze <axes = [2, 3]> (g)  y = Softmax <axis = 1> (q) }"""


@pytest.mark.parametrize("opset", [11, 12])
def test_an_older_opset_is_raised(opset: int) -> None:
    text = OLD if opset == 11 else OLD.replace("Dropout <ratio = 0.5> (c)", "Dropout (c)")
    model = build(text, opset, w=random(6, 4, 3, 3))
    model.graph.node[0].metadata_props.add(key=metadata.CONV_ALGORITHM, value="direct")
    model.graph.node[0].name = "first"
    result, report = quantize(model)
    assert [entry.version for entry in result.opset_import] == [13]
    assert [edit.node for edit in report.edits] == ["first", "first"]
    conv = Form(result).layer("Conv")
    assert [(entry.key, entry.value) for entry in conv.metadata_props] == [
        (metadata.CONV_ALGORITHM, "direct")
    ]
    assert "Constant" not in Form(result).ops()
    weights_only, _ = quantize(model, activations=False)
    feeds = {"x": random(2, 4, 8, 8)}
    expected, found = run(model, feeds)["y"], run(weights_only, feeds)["y"]
    assert affine.signal_to_noise_db(expected, found) > 30


def test_an_opset_that_cannot_be_raised_is_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    text = """(float[N, 4] x, bool b) => (float[N, 6] y) {
        c = MatMul (x, w)
        y = If (b) <then_branch = t () => (float[N, 6] u) { u = Relu (c) }, else_branch = e () => (float[N, 6] v) { v = Neg (c) }> }"""
    model = build(text, 11, w=random(4, 6))
    assert "QuantizeLinear" in Form(quantize(model)[0]).ops()
    monkeypatch.setattr(
        "onnx_lathe.passes.int8.int8.raise_opset", lambda graph, wanted: "it has local functions"
    )
    result, report = quantize(model)
    reason = "opset 11 has no scale per channel and cannot be raised: it has local functions; export at 13 or later"
    assert [(skip.node, skip.reason) for skip in report.skips] == [("MatMul_0", reason)]
    assert not report.edits
    assert Form(result).ops() == ["If", "MatMul"]


def test_an_open_output_size_that_the_converter_infers_stays_open() -> None:
    model = build(
        "(float[N, 4, 8, 8] x) => (float[M, K, 6, 6] y) { y = Conv (x, w) }", 12, w=random(6, 4, 3, 3)
    )
    result, report = quantize(model)
    assert report.edits
    assert result.graph.output[0] == model.graph.output[0]
    assert result.graph.input[0] == model.graph.input[0]


def test_names_inside_a_branch_are_not_used_again() -> None:
    text = """(float[N, 4] x, bool b) => (float[N, 6] y) {
        c = MatMul (x, w)
        y = If (b) <
            then_branch = t () => (float[N, 6] u) { x_int8 = Relu (c) w_int8 = Neg (x_int8) u = Neg (w_int8) },
            else_branch = e () => (float[N, 6] v) { v = Neg (c) }
        > }"""
    result, _ = quantize(build(text, w=random(4, 6)))
    assert {"x_int8_1", "w_int8_1"} <= {
        name for node in result.graph.node for name in [*node.input, *node.output]
    }
    run(result, {"x": random(2, 4), "b": np.array(True)})


def test_a_depthwise_convolution_is_quantized_on_request() -> None:
    text = "(float[N, 4, 8, 8] x) => (float[N, 4, 6, 6] y, float[N, 6, 6, 6] z) { y = Conv <group = 4> (x, d)  z = ConvTranspose (y, t) }"
    model = build(text.replace("float[N, 6, 6, 6] z", "float[N, 6, 8, 8] z"), **ODD)
    _, report = quantize(model, layers={"*": True})
    assert [skip.reason for skip in report.skips] == ["a transposed convolution stays float"]
    assert {edit.node for edit in report.edits} == {"Conv_0"}


def test_activations_are_not_added_to_weights_that_are_int8() -> None:
    weights_only, _ = quantize(
        build(CONV.format(nodes="y = Conv (x, w)"), w=random(6, 4, 3, 3)), activations=False
    )
    _, report = quantize(weights_only)
    assert [skip.reason for skip in report.skips] == [
        "its weight is quantized already; existing=complete quantizes what it reads, too"
    ]


def test_a_small_network_keeps_30_db() -> None:
    """8 bits of a range of 4 standard deviations leave 20 log10(127 * sqrt(12) / 4) = 41 dB per operand;
    three layers of two operands each add up to six such errors, 8 dB, and the residual addition to one
    more.
    """
    text = """(float[N, 3, 12, 12] x) => (float[N, 10] y) {
        a = Conv <pads = [1, 1, 1, 1]> (x, w1, b1)  r = Relu (a)
        c = Conv <pads = [1, 1, 1, 1]> (r, w2)  s = Add (c, r)  t = Relu (s)  p = GlobalAveragePool (t)  f = Flatten (p)
        y = Gemm <transB = 1> (f, w3, b3) }"""
    shapes = {"w1": (16, 3, 3, 3), "w2": (16, 16, 3, 3), "w3": (10, 16)}
    weights = {
        name: random(*shape) / np.float32(np.sqrt(np.prod(shape[1:]))) for name, shape in shapes.items()
    }
    model = build(text, **weights, b1=random(16) * np.float32(0.1), b3=random(10) * np.float32(0.1))
    calibration, test = random(64, 3, 12, 12), random(64, 3, 12, 12)
    result, report = quantize(model, StreamingCalibrator(Rows(x=calibration)))
    assert report.metrics == {"layers": 3, "quantized_activations": 3}
    expected, found = run(model, {"x": test})["y"], run(result, {"x": test})["y"]
    assert affine.signal_to_noise_db(expected, found) > 30
    assert not np.array_equal(expected, found)
