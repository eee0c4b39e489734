"""prune_channels on small graphs: what is coupled, that the smaller network computes what it
should, and what stays.
"""

import numpy as np
import onnx
import pytest

from onnx_lathe.passes.core import contract
from onnx_lathe.passes.core.options import configure
from onnx_lathe.passes.core.report import Skip
from onnx_lathe.passes.core.services import Context
from onnx_lathe.passes.graph.model import export_model, import_model
from onnx_lathe.passes.int8.int8 import Int8
from tests.support.builders import build, random
from tests.support.channel_cases import CASES, CHAIN, IMAGE
from tests.support.channels import assert_same_outputs, prune_channels, shapes, zeroed


@pytest.mark.parametrize("name", CASES)
def test_what_is_coupled_goes_together_and_the_rest_computes_the_same(name: str) -> None:
    text, initializers, wanted = CASES[name]
    model = build(text, opset=18 if name in ("resized", "split") else 17, **initializers)
    after, report = prune_channels(model, sparsity=0.3)
    found = shapes(after)
    assert {key: found[key] for key in wanted} == wanted
    assert report.edits
    batch = 1 if name == "resized" else 2
    assert_same_outputs(zeroed(model), after, 1e-5, batch)


@pytest.mark.parametrize("opset", [11, 13, 18, 21])
def test_sizes_are_where_the_opset_wants_them(opset: int) -> None:
    sizes = {} if opset < 13 else {"z": np.array([12, 8])}
    split = "Split <axis = 1, split = [12, 8]> (a)" if opset < 13 else "Split <axis = 1> (a, z)"
    model = build(
        f"{IMAGE} {{ a = Conv (x, u) b, d = {split} y1 = Conv (b, v) y2 = Conv (d, w) y = Add (y1, y2) }}",
        opset=opset,
        **sizes,
        u=random(20, 3, 1, 1),
        v=random(5, 12, 1, 1),
        w=random(5, 8, 1, 1),
    )
    after, _ = prune_channels(model, sparsity=0.3)
    assert shapes(after)["u"] == [14, 3, 1, 1]
    assert shapes(after)["v"][1] + shapes(after)["w"][1] == 14
    assert_same_outputs(zeroed(model), after, 1e-5)


def test_the_smallest_filters_go() -> None:
    u = random(10, 3, 3, 3)
    model = build(CHAIN, u=u, c=random(10), v=random(5, 10, 1, 1))
    after, report = prune_channels(model, sparsity=0.3)
    kept = np.sort(np.argsort(np.square(u).sum((1, 2, 3)))[3:])
    found = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in after.graph.initializer}
    np.testing.assert_array_equal(found["u"], u[kept])
    assert [(edit.node, edit.what) for edit in report.edits] == [("Conv_0", "3 of 10 channels are removed")]
    assert [(skip.node, skip.reason) for skip in report.skips] == [
        ("Conv_2", "its channels stay: it writes the model's output 'y'")
    ]
    assert report.metrics == {"channels_removed": 0.3}


def test_declared_shapes_follow() -> None:
    model = onnx.shape_inference.infer_shapes(
        build(CHAIN, u=random(10, 3, 3, 3), c=random(10), v=random(5, 10, 1, 1))
    )
    after, _ = prune_channels(model, sparsity=0.3)
    declared = {
        value.name: [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in after.graph.value_info
    }
    assert declared["a"][1] == declared["b"][1] == 7


LOCKED = {
    "an operator without a rule": (
        "b = Exp (a) d = DepthToSpace <blocksize = 1> (b) y = Conv (d, v)",
        "DepthToSpace has no rule for channels",
    ),
    "an output of the model": ("b = Relu (a) y = Relu (b)", "it writes the model's output 'y'"),
    "a softmax over channels": (
        "b = Softmax <axis = 1> (a) y = Conv (b, v)",
        "Softmax compares its channels",
    ),
    "a sum with the input": (
        "b = Add (a, x) y = Conv (b, v)",
        "Add_1 joins it with x, whose channels cannot go",
    ),
    "a mean over channels": (
        "b = ReduceMean <axes = [1]> (a) y = Mul (b, a)",
        "ReduceMean_1 adds up its channels",
    ),
}


@pytest.mark.parametrize("name", LOCKED)
def test_what_needs_every_channel_keeps_them(name: str) -> None:
    body, reason = LOCKED[name]
    model = build(
        f"(float[N, 10, 4, 4] x) => (float[N, C, H, W] y) {{ a = Conv (x, u) {body} }}",
        u=random(10, 10, 1, 1),
        v=random(5, 10, 1, 1),
    )
    after, report = prune_channels(model, sparsity=0.5)
    assert not report.edits
    assert after.SerializeToString() == export_model(import_model(model)).SerializeToString()
    assert (report.skips[0].node, report.skips[0].reason) == ("Conv_0", f"its channels stay: {reason}")


def test_a_parameter_with_another_reader_keeps_its_size() -> None:
    model = build(
        "(float[N, 3, 4, 4] x) => (float[N, 5, 4, 4] y, float[10] z) { a = Conv (x, u, c) y = Conv (a, v) z = Neg (c) }",
        u=random(10, 3, 1, 1),
        c=random(10),
        v=random(5, 10, 1, 1),
    )
    _, report = prune_channels(model)
    assert report.skips[0].reason == "its channels stay: its parameter c is also read by Neg_2"


@pytest.mark.parametrize("layer", ["Conv", "MatMul"])
def test_a_weight_that_also_reads_the_input_keeps_its_inputs(layer: str) -> None:
    more = (1, 1) if layer == "Conv" else ()
    x, y = ("float[N, 10, 4, 4]", "float[N, C, H, W]") if layer == "Conv" else ("float[N, 10]", "float[N, C]")
    model = build(
        f"({x} x) => ({y} y) {{ a = {layer} (x, w) b = Relu (a) d = {layer} (b, w) y = {layer} (d, v) }}",
        w=random(10, 10, *more),
        v=random(10, 10, *more),
    )
    _, report = prune_channels(model)
    assert not report.edits
    assert report.skips[0].reason == f"its channels stay: {layer}_0 applies w to channels that cannot go"


def test_a_bias_that_a_layer_writes_keeps_its_channels() -> None:
    model = build(
        "(float[N, 8] x) => (float[N, 4] y) { a = Gemm (x, u) b = Gemm (x, w, a) y = Gemm (b, v) }",
        u=random(8, 10),
        w=random(8, 10),
        v=random(10, 4),
    )
    _, report = prune_channels(model)
    assert [(skip.node, skip.reason) for skip in report.skips[:2]] == [
        ("Gemm_0", "its channels stay: Gemm_1 adds it as its bias"),
        ("Gemm_1", "its channels stay: its bias is computed at run time"),
    ]


def test_a_reshape_that_copies_the_number_of_channels_to_another_axis() -> None:
    model = build(
        "(float[1, 3, 2, 2] x) => (float[1, 5] y) { a = Conv (x, u) b = Reshape (a, q) d = Reshape (b, p) e = Relu (d) "
        "f = Reshape (e, z) y = MatMul (f, v) }",
        u=random(4, 3, 1, 1),
        v=random(16, 5),
        q=np.array([1, 4, 4]),
        p=np.array([4, 0, -1]),
        z=np.array([1, 16]),
    )
    after, _ = prune_channels(model, sparsity=0.25)
    assert shapes(after)["v"] == [12, 5]
    assert_same_outputs(zeroed(model, 0.25), after, 1e-5, batch=1)


def test_a_resize_that_keeps_the_aspect_ratio_keeps_its_channels() -> None:
    model = build(
        "(float[1, 3, 8, 8] x) => (float[1, 5, H, W] y) { a = Conv (x, u) "
        'b = Resize <keep_aspect_ratio_policy = "not_larger"> (a, , , z) y = Conv (b, v) }',
        opset=18,
        u=random(10, 3, 1, 1),
        v=random(5, 10, 1, 1),
        z=np.array([1, 10, 16, 16]),
    )
    _, report = prune_channels(model)
    assert report.skips[0].reason == "its channels stay: Resize_1 resizes axes that are not known"


def test_an_output_whose_channels_have_a_name_keeps_it() -> None:
    model = build(
        "(float[N, 3, 4, 4] x) => (float[N, C, H, W] z, float[N, 5, H, W] y) { z = Conv (x, u) a = Conv (x, w) y = Conv (a, v) }",
        u=random(10, 3, 1, 1),
        w=random(10, 3, 1, 1),
        v=random(5, 10, 1, 1),
    )
    after, report = prune_channels(model)
    assert report.edits
    contract.check_structure(model, after, "prune_channels")


def test_one_class_is_an_output_all_the_same() -> None:
    _, report = prune_channels(
        build(
            "(float[N, 8] x) => (float[N, 1] y) { a = MatMul (x, u) y = MatMul (a, v) }",
            u=random(8, 10),
            v=random(10, 1),
        )
    )
    assert [skip.reason for skip in report.skips] == ["its channels stay: it writes the model's output 'y'"]


def test_constants_that_are_nodes_are_to_be_folded() -> None:
    ones = ", ".join(["1"] * 10)
    model = build(
        f"{IMAGE} {{ a = Conv (x, u) k = Constant <value = float[10, 1, 1] {{{ones}}}> () b = Mul (a, k) y = Conv (b, v) }}",
        u=random(10, 3, 1, 1),
        v=random(5, 10, 1, 1),
    )
    _, report = prune_channels(model)
    assert (
        report.skips[0].reason
        == "its channels stay: Mul_2 joins it with k, which is a Constant node; fold first"
    )


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_channels_that_cannot_be_compared_stay(wrong: float) -> None:
    u = random(10, 3, 3, 3)
    u[2, 1] = wrong
    _, report = prune_channels(build(CHAIN, u=u, c=random(10), v=random(5, 10, 1, 1)))
    assert not report.edits
    assert report.skips[-1] == Skip(
        "Conv_0", "its channels cannot be compared: weights or activations have NaN or infinite elements"
    )


def test_what_a_body_reads_keeps_its_channels() -> None:
    body = "{ t = Identity (a) }, else_branch = other () => (float[N, 10, 4, 4] f) { f = Neg (a) }"
    model = build(
        f"(float[N, 3, 4, 4] x, bool q) => (float[N, 5, 4, 4] y, float[N, 10, 4, 4] z) {{ a = Conv (x, u) y = Conv (a, v) "
        f"z = If (q) <then_branch = this () => (float[N, 10, 4, 4] t) {body}> }}",
        u=random(10, 3, 1, 1),
        v=random(5, 10, 1, 1),
    )
    _, report = prune_channels(model)
    assert report.skips[0].reason == "its channels stay: a body of If, Loop or Scan reads a"


def test_quantized_weights_stay_and_what_they_read_too(lenet5_int8: onnx.ModelProto) -> None:
    _, report = prune_channels(lenet5_int8)
    assert not report.edits
    assert all("int8" in skip.reason for skip in report.skips)


@pytest.fixture
def lenet5_int8() -> onnx.ModelProto:
    graph = import_model(build(CHAIN, u=random(10, 3, 3, 3), c=random(10), v=random(5, 10, 1, 1)))
    configure(Int8, {"activations": False}).apply(graph, Context())
    return export_model(graph)
