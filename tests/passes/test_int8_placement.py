"""What int8 quantizes for which target, and how a lowering takes back what only another target wanted."""

import numpy as np
import onnx
import pytest

from onnx_lathe.placement import CANONICAL, Placement
from onnx_lathe.runtime.running import ort
from onnx_lathe.runtime.targets.ort.ort import PLACEMENT
from tests.support.builders import build, random
from tests.support.int8 import Form
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


def sources(model: onnx.ModelProto) -> set[str]:
    """Tensors with a Q/DQ pair."""
    return {node.input[0] for node in model.graph.node if node.op_type == "QuantizeLinear"}


def test_the_canonical_placement_is_one_pair_per_layer_and_join() -> None:
    assert sources(quantized(network(RESIDUAL), CANONICAL)[0]) == {"x", "p", "cr", "f"}


def test_a_target_that_writes_integers_gets_every_tensor_between_kernels() -> None:
    model, _ = quantized(network(RESIDUAL))
    assert sources(model) == {"x", "r", "p", "cr", "d", "e", "g", "f"}
    form = Form(model)
    assert all(form.producers[name].op_type == "DequantizeLinear" for name in form.layer("Add").input)
    # canonical all the same
    assert all(form.constants[node.input[2]] == 0 for node in form.nodes if node.op_type == "QuantizeLinear")


@pytest.mark.parametrize(
    "placement, reasons", [(PLACEMENT, {}), (CANONICAL, {"Conv_2": "a depthwise convolution stays float"})]
)
def test_depthwise_convolutions_are_quantized_where_a_target_runs_them(
    placement: Placement, reasons: dict[str, str]
) -> None:
    _, report = quantized(network(MOBILE), placement)
    assert {skip.node: skip.reason for skip in report.skips} == reasons


@pytest.mark.parametrize(
    "body, wanted",
    [
        ("c = Conv (x, w)  s = Sigmoid (c)  y = Neg (s)", {"x", "c"}),
        ("c = Conv (x, w)  s = Mul (c, h)  y = Conv (s, v)", {"x", "c", "s"}),
        ("c = Conv (x, w)  e = Exp (c)  s = Mul (c, e)  y = Conv (s, v)", {"x", "c", "s"}),
        ("c = Conv (x, w)  s = Sigmoid (c)  y = Conv (s, v)", {"x", "c", "s"}),
        ("y = Conv (x, w)", {"x"}),
    ],
    ids=[
        "nothing behind reads integers",
        "a constant operand",
        "a float operand",
        "between two convolutions",
        "an output",
    ],
)
def test_operators_are_quantized_only_between_kernels(body: str, wanted: set[str]) -> None:
    constants = {"w": random(5, 3, 1, 1), "v": random(5, 5, 1, 1), "h": np.float32(2)}
    used = {name: value for name, value in constants.items() if f", {name})" in body}
    model, _ = quantized(build(f"(float[N, 3, 12, 12] x) => (float[N, 5, 12, 12] y) {{ {body} }}", **used))
    assert sources(model) == wanted
    float_inputs = [
        name for node in model.graph.node if node.op_type in ("Mul", "Exp") for name in node.input
    ]
    # all readers of a result read its pair, so that the convolution writes integers
    assert "c" not in float_inputs


def test_two_targets_get_what_either_wants() -> None:
    both = PLACEMENT | CANONICAL
    assert (both.depthwise, both.joins, both.results) == (True, True, PLACEMENT.results)
    assert both == CANONICAL | PLACEMENT
    assert sources(quantized(network(MOBILE), both)[0]) == sources(quantized(network(MOBILE))[0])


@pytest.mark.parametrize("text", [RESIDUAL, MOBILE], ids=["residual", "mobile"])
def test_tensorrt_gets_its_own_form_from_a_model_for_both(text: str) -> None:
    model = network(text)
    alone, _ = lowered(quantized(model, CANONICAL, bias_correction=False)[0], "tensorrt", CANONICAL)
    shared, report = lowered(
        quantized(model, PLACEMENT | CANONICAL, bias_correction=False)[0], "tensorrt", CANONICAL
    )
    assert sources(shared) == sources(alone)
    assert sorted(Form(shared).ops()) == sorted(Form(alone).ops())
    assert {skip.node for skip in report.skips} == ({"Conv_2"} if text == MOBILE else set())
    # the depthwise weight was rounded once, and those for both targets keep their sums within 16 bits
    assert relative(output(alone), output(shared)) < 0.02


def test_onnxruntime_gets_all_from_a_model_for_both() -> None:
    result, report = lowered(quantized(network(MOBILE), PLACEMENT | CANONICAL)[0])
    assert not report.skips
    assert kernels(result)["QLinearConv"] == 7


def test_a_depthwise_layer_that_was_asked_for_survives_the_lowering() -> None:
    model, _ = quantized(network(MOBILE), CANONICAL, layers={"depthwise": True})
    result, report = lowered(model, "tensorrt", CANONICAL)
    assert not report.skips
    form = Form(result)
    assert form.producers[form.layer("Conv", 1).input[1]].op_type == "DequantizeLinear"


@pytest.mark.parametrize("opset", [17, 21, 24])
@pytest.mark.parametrize("tail", ["y = Softmax (e)", "y = Identity (e)", "t = Transpose (e)  y = Relu (t)"])
def test_a_head_that_reshapes_at_the_end_loads(opset: int, tail: str) -> None:
    """ONNX Runtime would quantize behind the Reshape, and fails at INT8 from opset 21 on."""
    text = f"""(float[N, 3, 12, 12] x) => (float[A, B, C] y) {{ c = Conv <pads = [1, 1, 1, 1]> (x, stem)  r = Relu (c)
        q = Conv (r, point, b8)  e = Reshape (q, shape)  {tail} }}"""
    constants = {name: CONSTANTS[name] for name in ("stem", "point", "b8")}
    model = build(text, opset, **constants, shape=np.array([0, 8, 144]))
    canonical, _ = quantized(model)
    assert relative(output(model), output(canonical)) < 0.1
    assert kernels(lowered(canonical)[0])["QLinearConv"] == 2


def test_no_number_changes_but_by_rounding() -> None:
    model = network(MOBILE)
    assert relative(output(model), output(quantized(model)[0], IMAGES)) < 0.1


@pytest.mark.parametrize("opset", [17, 21, 24])
def test_values_handed_on_twice_have_one_scale_and_load(opset: int) -> None:
    """ONNX Runtime would quantize between the two, and fails at it from opset 21 on."""
    text = """(float[N, 3, 12, 12] x) => (float[N, 5] y) { c = Conv (x, stem)  r = Relu (c)
        p = MaxPool <kernel_shape = [10, 10]> (r)  f = Flatten (p)  y = Gemm <transB = 1> (f, head, b5) }"""
    model = network(text, opset)
    canonical, _ = quantized(model, method="percentile", percentile=95.0)
    ort.session(canonical)
    form = Form(canonical)
    scales = {
        float(form.constants[node.input[1]])
        for node in form.nodes
        if node.op_type == "QuantizeLinear" and node.input[0] in "rpf"
    }
    assert len(scales) == 1
    assert kernels(lowered(canonical)[0])["QLinearConv"] == 1


@pytest.mark.parametrize("value", [0.0, 3.0, -1.0])
def test_what_a_pad_adds_is_in_the_range(value: float) -> None:
    """A Pad with another value than 0 hands on more than the values that it reads."""
    text = """(float[N, 3, 12, 12] x) => (float[N, 5] y) {
        a = Conv (x, stem, b8)  s = Sigmoid (a)  p = Pad (s, pads, v)  c = Conv (p, first, b8)  r = Relu (c)
        g = GlobalAveragePool (r)  f = Flatten (g)  y = Gemm <transB = 1> (f, head, b5) }"""
    names = ("stem", "first", "head", "b8", "b5")
    constants = {name: CONSTANTS[name] for name in names}
    pads = np.array([0, 0, 2, 2, 0, 0, 2, 2], np.int64)
    model = build(text, pads=pads, v=np.float32(value), **constants)
    result, _ = lowered(quantized(model)[0])
    assert relative(output(model), output(result)) < 0.06


ROWS = Placement(layers=frozenset({"Conv"}), single_rows=frozenset({"MatMul"}))
ON_ROWS = ["MatMul on several rows stays float"]


@pytest.mark.parametrize(
    "shape, body, reasons",
    [
        ("N, 24", "y = MatMul (x, w)", []),
        ("N, 1, 24", "y = MatMul (x, w)", []),
        ("N, 2, 12", "f = Flatten (x) y = MatMul (f, w)", []),
        ("N, 2, 12", "f = Reshape (x, rows) y = MatMul (f, w)", []),
        ("N, 7, 24", "y = MatMul (x, w)", ON_ROWS),
        ("N, T, 24", "y = MatMul (x, w)", ON_ROWS),
        ("N, 7, 24", "f = Reshape (x, rows) y = MatMul (f, w)", ON_ROWS),
    ],
)
def test_a_target_may_run_an_operator_on_one_row_alone(shape: str, body: str, reasons: list[str]) -> None:
    rows = {"rows": np.array([-1, 24], np.int64)} if "rows" in body else {}
    rank = shape.count(",") + 1 if body.startswith("y") else 2
    result = ", ".join("PQRS"[:rank])
    model = build(f"(float[{shape}] x) => (float[{result}] y) {{ {body} }}", w=random(24, 5), **rows)
    sizes = [int(size) if size.isdigit() else 3 for size in shape.split(", ")[1:]]
    data = np.random.default_rng(0).standard_normal((4, *sizes)).astype(np.float32)
    _, report = quantized(model, ROWS, data)
    assert [skip.reason for skip in report.skips] == reasons
    whole, report = quantized(model, CANONICAL, data)
    assert not report.skips
    back, report = lowered(whole, "ncnn", ROWS)
    assert [skip.reason for skip in report.skips] == reasons
    assert ("QuantizeLinear" in {node.op_type for node in back.graph.node}) == (not reasons)
