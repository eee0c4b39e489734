"""What Core ML's program computes of each operator, evaluated in NumPy, beside ONNX Runtime; what it refuses, and why."""

import numpy as np
import onnx
import pytest

from onnx_lathe.runtime.targets.coreml.form import Form
from tests.support.builders import build, random
from tests.support.coreml import (
    PLAIN,
    agree,
    branched,
    computed,
    converted,
    difference,
    kinds,
    refusals,
    sized,
)
from tests.support.operator_case import Case, expected
from tests.support.operator_case import build as built
from tests.support.operator_cases import CASES

pytest.importorskip("coremltools")

ABSENT = [
    "Acosh", "AffineGrid", "Asinh", "Attention", "BitwiseAnd", "BitwiseNot",
    "BitwiseOr", "BitwiseXor", "CenterCropPad", "Col2Im", "Compress", "ConstantOfShape",
    "CumProd", "DeformConv", "Det", "EyeLike", "GlobalLpPool",
    "Hardmax", "IsInf", "IsNaN", "LpPool", "MaxUnpool", "Mod",
    "NegativeLogLikelihoodLoss", "NonZero", "OneHot", "ReverseSequence", "RotaryEmbedding", "Scatter",
    "ScatterElements", "ScatterND", "SoftmaxCrossEntropyLoss", "SwiGLU", "Trilu",
]  # fmt: skip
"""Operators of the bridge that nothing is written for."""
ROUNDS = "Cast-21-3x4-to=10"
"""float32 stays float32."""
FED_INTEGERS = "DequantizeLinear"
"""Cases feed int8, which is int32 at a program's inputs; test_coreml_weights.py has the operator between layers."""
TAKEN = [
    item for item in CASES
    if item.op not in (*ABSENT, FED_INTEGERS) and str(item) != ROUNDS and all(x.ndim and x.size for x in item.inputs)
]  # fmt: skip


def shapes_of(item: Case) -> dict[str, str]:
    return {f"x{place}": "x".join(map(str, x.shape)) for place, x in enumerate(item.inputs)}


@pytest.mark.parametrize("op", sorted({item.op for item in TAKEN}))
def test_an_operator_computes_what_onnx_runtime_does(op: str) -> None:
    """All cases that are not refused, of which there is one at least."""
    tried = 0
    for item in (one for one in TAKEN if one.op == op):
        model = built(item)
        sizes = sized(model, shapes_of(item))
        written = converted(branched(model, sizes), sizes)
        if written.refused:
            continue
        tried += 1
        feeds = {f"x{place}": x for place, x in enumerate(item.inputs)}
        (got,) = computed(written, PLAIN, [feeds])
        for place, wanted in enumerate(expected(item, model)):
            assert got[f"y{place}"].shape == wanted.shape, item
            assert difference(got[f"y{place}"], wanted) <= 1e-4, item
    assert tried


@pytest.mark.parametrize("op", ABSENT)
def test_an_operator_without_a_counterpart_is_refused_by_name(op: str) -> None:
    item = next(one for one in CASES if one.op == op)
    if not all(x.ndim for x in item.inputs):
        pytest.skip("Core ML takes no input without dimensions")
    model = built(item)
    found = refusals(model, sized(model, shapes_of(item)))
    assert found
    assert all(node == "node" and named == op and f"has no {op}" in reason for node, named, reason in found)


def test_what_lies_behind_a_refused_node_is_looked_at_too() -> None:
    text = (
        "(float[2, 3] x) => (float[2, 3] y) { [one] a = Hardmax(x) [two] b = Exp(a) [three] y = Hardmax(b) }"
    )
    assert [node for node, *_ in refusals(build(text))] == ["one", "three"]


def test_an_attribute_that_nobody_reads_is_refused() -> None:
    model = build("(float[1, 2, 4, 4] x) => (float[1, 2, 4, 4] y) { [n] y = Relu(x) }")
    model.graph.node[0].attribute.append(onnx.helper.make_attribute("leak", 0.1))
    ((node, op, reason),) = refusals(model)
    assert (node, op) == ("n", "Relu")
    assert "'leak'" in reason


@pytest.mark.parametrize(
    "equation, first, second",
    [
        ("bhqd,bhkd->bhqk", (2, 3, 4, 5), (2, 3, 6, 5)),
        ("bhqk,bhkd->bqhd", (2, 3, 4, 5), (2, 3, 5, 6)),
        ("ij,jk", (3, 4), (4, 5)),
        ("nchw,oc->nohw", (2, 3, 4, 5), (6, 3)),
        ("bi,bj->bij", (2, 3), (2, 4)),
        ("bix,bjy->b", (2, 3, 4), (2, 5, 6)),
        ("ij,ij->", (3, 4), (3, 4)),
    ],
)
def test_einsum_of_two_operands(equation: str, first: tuple[int, ...], second: tuple[int, ...]) -> None:
    shapes = [", ".join(map(str, shape)) for shape in (first, second)]
    model = build(
        f'(float[{shapes[0]}] x, float[{shapes[1]}] w) => (float y) {{ y = Einsum <equation = "{equation}"> (x, w) }}'
    )
    model.graph.output[0].type.tensor_type.ClearField("shape")
    agree(model)


def test_einsum_with_a_batch_that_stays_open() -> None:
    text = (
        '(float[N, 3, 4, 5] x) => (float[N, 3, 4, 4] y) { y = Einsum <equation = "bhqd,bhkd->bhqk"> (x, x) }'
    )
    agree(build(text))


@pytest.mark.parametrize("deployment", ["iOS16", "iOS17"])
@pytest.mark.parametrize("size", ["4", "N"])
@pytest.mark.parametrize(
    "node, shape, places",
    [
        ("Gather <axis = 0> (x, i)", "2, 2", [[0, -1], [-2, 1]]),
        ("GatherElements <axis = 0> (x, i)", "2, 3", [[0, -1, 1], [-2, 3, -4]]),
        ("GatherND (x, i)", "3, 2", [[0, -1], [-1, 2], [-4, -3]]),
        ("GatherND (x, i)", "3, 1", [[0], [-1], [-4]]),
    ],
)
def test_places_from_the_end_that_are_computed_at_run_time(
    node: str, shape: str, places: list, size: str, deployment: str
) -> None:
    """From iOS 17 on Core ML computes anything of negative ones, and the evaluator refuses them."""
    model = build(f"(float[{size}, 3] x, int64[{shape}] i) => (float y) {{ y = {node} }}")
    model.graph.output[0].type.tensor_type.ClearField("shape")
    feeds = {"x": random(4, 3), "i": np.array(places)}
    agree(model, sized(model, {"x": "4x3:8x3"} if size == "N" else None), Form(deployment), feeds=feeds)


def test_constant_places_from_the_end() -> None:
    model = build(
        "(float[4, 3] x) => (float[2, 3] y) { y = GatherElements <axis = 0> (x, i) }",
        i=np.array([[0, -1, 1], [-2, 3, -4]]),
    )
    agree(model)


OPEN = {
    "residual": "c = Conv <pads = [1, 1, 1, 1], strides = [2, 2]> (x, w) s = Sigmoid(c) y = Mul(c, s)",
    "flat": "c = Conv(x, w) g = GlobalAveragePool(c) y = Flatten(g)",
    "sequence": """s = Shape(x) n = Gather(s, zero) one = Unsqueeze(n, first) shape = Concat <axis = 0> (one, four, rest)
        y = Reshape(x, shape)""",
    "transposed": "t = Transpose <perm = [0, 2, 3, 1]> (x) y = Reshape(t, table)",
    "sliced": "y = Slice(x, start, end, axes)",
    "softmax": "y = Softmax <axis = 1> (x)",
    "upsampled": 'y = Resize <mode = "nearest", nearest_mode = "floor", coordinate_transformation_mode = "asymmetric"> (x, , doubled)',
    "smooth": 'y = Resize <mode = "linear", coordinate_transformation_mode = "half_pixel"> (x, , doubled)',
    "expanded": "g = GlobalAveragePool(x) s = Shape(x) y = Expand(g, s)",
    "free": "s = Shape(x) y = Expand(column, s)",
}


@pytest.mark.parametrize("name", OPEN)
def test_sizes_stay_open(name: str) -> None:
    """At two sizes of batch, height and width."""
    ints = {
        "zero": 0,
        "first": [0],
        "four": [4],
        "rest": [-1],
        "table": [0, -1, 4],
        "start": [1, -2],
        "end": [2**31, 2**31],
        "axes": [2, 3],
    }
    stored = {key: np.array(value, np.int64) for key, value in ints.items() if key in OPEN[name]}
    if "(x, w)" in OPEN[name]:
        stored["w"] = random(4, 4, 3, 3)
    if "doubled" in OPEN[name]:
        stored["doubled"] = np.array([1, 1, 2, 2], np.float32)
    if "column" in OPEN[name]:
        stored["column"] = random(4, 1, 1)
    opset = 12 if name == "softmax" else 17
    model = build(f"(float[N, 4, H, W] x) => (float y) {{ {OPEN[name]} }}", opset, **stored)
    model.graph.output[0].type.tensor_type.ClearField("shape")
    written = agree(model, sized(model, {"x": "1x4x32x64:4x4x96x128"}), package=True)
    assert written.inputs[0].shape == [None, 4, None, None]
    assert (written.inputs[0].least, written.inputs[0].greatest) == ((1, 4, 32, 64), (4, 4, 96, 128))


def test_a_size_that_is_not_certain_is_refused_by_name() -> None:
    text = """(float[N, 4, H, W] x) => (float y) {
        s = Shape(x) h = Gather(s, two) half = Div(h, three) one = Unsqueeze(half, zero) [cut] y = Slice(x, zero, one, axis)
    }"""
    ints = {"two": np.int64(2), "three": np.int64(3), "zero": np.array([0]), "axis": np.array([2])}
    model = build(text, **ints)
    model.graph.output[0].type.tensor_type.ClearField("shape")
    ((node, op, reason),) = refusals(model, sized(model, {"x": "1x4x32x32:1x4x96x96"}))
    assert (node, op) == ("cut", "Slice")
    assert "depends on the size of the input" in reason


def test_activations_become_the_operations_that_devices_know() -> None:
    text = """(float[1, 2, 4, 4] x) => (float[1, 2, 4, 4] y) {
        a = Clip(x, zero, six) b = Gelu(a) c = HardSwish(b) y = Clip(c, zero)
    }"""
    written = agree(build(text, 20, zero=np.float32(0), six=np.float32(6)))
    assert kinds(written) == ["relu6", "gelu", "sigmoid_hard", "mul", "relu", "identity"]


def test_names_are_such_that_core_ml_keeps_them() -> None:
    """`state` is a word of MIL's; coremltools would give the input another name."""
    text = '(float[2, 3] "state") => (float[2, 3] "1.out/y") { "state_y_0" = Relu("state") "1.out/y" = Add("state_y_0", "state") }'
    model = build(text.replace('"', "").replace("1.out/y", "out"))
    model.graph.output[0].name = model.graph.node[-1].output[0] = "1.out/y"
    written = agree(model, package=True)
    assert [port.name for port in (*written.inputs, *written.outputs)] == ["state_", "t1_out_y"]


def test_a_small_epsilon_is_not_0_in_float16() -> None:
    """Of zeros the result would be no number."""
    text = "(float[2, 8] x) => (float[2, 8] y) { y = LayerNormalization <epsilon = 1e-12> (x, w) }"
    feeds = {"x": np.zeros((2, 8), np.float32)}
    agree(build(text, w=random(8)), form=Form("iOS17", "float16"), feeds=feeds)


def test_bounds_of_integers_are_not_those_of_float16() -> None:
    text = "(int32[3] x) => (int32[3] y) { y = Clip(x, low, high) }"
    model = build(text, low=np.int32(-80000), high=np.int32(100000))
    feeds = {"x": np.array([-90000, 7, 200000], np.int32)}
    agree(model, form=Form("iOS17", "float16"), feeds=feeds)


def test_a_scale_that_float16_does_not_hold_is_refused() -> None:
    text = "(float[3] x) => (float[3] y) { q = QuantizeLinear(x, s, z) y = DequantizeLinear(q, s, z) }"
    model = build(text, s=np.float32(1e-8), z=np.int8(0))
    assert refusals(model) == []
    assert all("0 in float16" in reason for *_, reason in refusals(model, form=Form("iOS17", "float16")))
    assert len(refusals(model, form=Form("iOS17", "float16"))) == 2


def test_integers_beyond_32_bits_are_refused() -> None:
    model = build("(int64[2] x) => (int64[2] y) { [n] y = Add(x, c) }", c=np.array([1, 2**40]))
    ((_, _, reason),) = refusals(model)
    assert "beyond 32 bits" in reason
