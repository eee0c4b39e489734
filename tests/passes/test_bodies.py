"""Layers inside bodies of If, Loop and Scan: what they read is stored once, and compressed for all who read it."""

from collections.abc import Callable

import numpy as np
import onnx
import pytest

from onnx_lathe.optimizer.step import apply_pass
from onnx_lathe.passes.core import contract
from onnx_lathe.passes.core.options import configure
from onnx_lathe.passes.core.registry import find
from onnx_lathe.passes.core.report import PassReport
from onnx_lathe.passes.core.services import Context
from onnx_lathe.passes.graph.bodies import graph_protos
from onnx_lathe.passes.graph.model import export_model, import_model
from onnx_lathe.passes.numerics.quantization import affine
from tests.support.bodies import branches, feeds, loop, scan, stored
from tests.support.builders import build, random, run

MODELS = [branches, loop, scan]


def applied(model: onnx.ModelProto, name: str, **options: object) -> tuple[onnx.ModelProto, PassReport]:
    after, report = apply_pass(configure(find(name), options), model, Context())
    if report.edits:
        contract.check_structure(model, after, name)
    return after, report


def agreement_db(model: onnx.ModelProto, after: onnx.ModelProto) -> float:
    """The worst over both ways that an If can go."""
    return min(
        affine.signal_to_noise_db(run(model, given)["y"], run(after, given)["y"])
        for given in (feeds(model, True), feeds(model, False))
    )


def value(model: onnx.ModelProto, name: str) -> np.ndarray:
    return next(
        onnx.numpy_helper.to_array(tensor)
        for graph in graph_protos(model.graph)
        for tensor in graph.initializer
        if tensor.name == name
    )


@pytest.mark.parametrize("make", MODELS)
def test_every_initializer_stays_where_it_is(make: Callable[..., onnx.ModelProto]) -> None:
    model = make()
    after = export_model(import_model(model))
    assert stored(after) == stored(model)
    again = export_model(import_model(after))
    assert again.SerializeToString() == after.SerializeToString()
    given = feeds(model)
    assert np.array_equal(run(model, given)["y"], run(after, given)["y"])


def test_what_only_a_body_inside_a_body_reads_stays_in_the_main_graph() -> None:
    model = build(
        """(float[N, 4] x, bool c) => (float[N, 4] y) { y = If (c) <
            then_branch = outer () => (float[N, 4] a) { a = If (c) <
                then_branch = inner () => (float[N, 4] b) { b = MatMul (x, w) },
                else_branch = other () => (float[N, 4] b) { b = MatMul (x, w) }
            > },
            else_branch = none () => (float[N, 4] a) { a = Identity (x) }
        > }""",
        w=random(4, 4),
    )
    after = export_model(import_model(model))
    assert stored(after) == [["w"], [], [], [], []]
    names = [node.name for graph in graph_protos(after.graph) for node in graph.node]
    assert len(set(names)) == len(names) == 5
    outputs = [name for graph in graph_protos(after.graph) for node in graph.node for name in node.output]
    assert len(set(outputs)) == len(outputs)


def test_two_bodies_may_store_weights_of_one_name() -> None:
    model = branches()
    bodies = {graph.name: graph for graph in graph_protos(model.graph)}
    copy = bodies["yes"].initializer.add()
    copy.CopyFrom(onnx.numpy_helper.from_array(random(32, 32), "own"))
    bodies["yes"].node[0].input[1] = "own"
    before = model.SerializeToString()
    given = feeds(model), feeds(model, False)
    after, report = applied(model, "prune", sparsity=0.05)
    assert model.SerializeToString() == before
    assert [len(names) for names in stored(after)] == [2, 1, 1]
    assert len(report.edits) == 4
    for one in given:
        assert affine.signal_to_noise_db(run(model, one)["y"], run(after, one)["y"]) > 20


def test_metadata_of_nodes_in_bodies_stays() -> None:
    model = loop()
    node = graph_protos(model.graph)[1].node[0]
    node.metadata_props.add(key="from", value="an exporter")
    node.doc_string = "the only layer"
    kept = graph_protos(export_model(import_model(model)).graph)[1].node[0]
    assert (kept.metadata_props[0].value, kept.doc_string) == ("an exporter", "the only layer")


@pytest.mark.parametrize("make", MODELS)
@pytest.mark.parametrize("name", ["prune", "prune_nm"])
def test_zeros_reach_every_reader(make: Callable[..., onnx.ModelProto], name: str) -> None:
    model = make()
    after, report = applied(model, name)
    assert stored(after) == stored(model)
    names = {tensor for part in stored(model) for tensor in part} & {"w0", "w", "shared", "own"}
    for tensor in names:
        now = value(after, tensor)
        assert np.count_nonzero(now == 0) == 512
        assert np.array_equal(now[now != 0], value(model, tensor)[now != 0])
    assert len(report.edits) == len(names)
    assert agreement_db(model, after) < 30


@pytest.mark.parametrize("make", MODELS)
@pytest.mark.parametrize(
    ("name", "options", "floor"),
    [
        ("codebook", {"bits": 4}, 10.0),
        ("codebook", {"bits": 6, "share": "channel_group", "groups": 2}, 20.0),
        ("int8", {"activations": False}, 35.0),
    ],
)
def test_weights_of_bodies_are_stored_small_once(
    make: Callable[..., onnx.ModelProto], name: str, options: dict[str, object], floor: float
) -> None:
    model = make()
    after, report = applied(model, name, **options)
    assert not {"w0", "w", "shared", "own"} & {tensor for part in stored(after) for tensor in part}
    assert len(after.SerializeToString()) < 0.75 * len(model.SerializeToString())
    assert not [skip for skip in report.skips if "MatMul" in skip.node]
    assert agreement_db(model, after) > floor


@pytest.mark.parametrize("make", MODELS)
def test_indices_of_bodies_take_four_bits(make: Callable[..., onnx.ModelProto]) -> None:
    after, report = applied(make(13), "codebook", bits=4)
    kinds = {tensor.data_type for part in graph_protos(after.graph) for tensor in part.initializer}
    assert onnx.TensorProto.UINT4 in kinds
    assert onnx.TensorProto.UINT8 not in kinds
    assert not report.warnings


INSIDE = """(float[2, 8, 8, 8] x, bool c) => (float[2, 8, 8, 8] y) {
    m = Conv <pads = [1, 1, 1, 1]> (x, w0)
    y = If (c) <
        then_branch = yes () => (float[2, 8, 8, 8] a) {
            p = Conv <pads = [1, 1, 1, 1]> (m, w1) r = Relu (p) a = ConvTranspose <pads = [1, 1, 1, 1]> (r, w2)
        },
        else_branch = no () => (float[2, 8, 8, 8] b) { b = If (c) <
            then_branch = once () => (float[2, 8, 8, 8] d) {
                e = Reshape (m, rows) f = Gemm (e, g0) d = Reshape (f, whole)
            },
            else_branch = more () => (float[2, 8, 8, 8] g) {
                h = Reshape (m, steps) k = MatMul (h, g0) o = Unsqueeze (single, first) w = Squeeze (o, first)
                q, l = GRU <hidden_size = 64> (k, w, recurrent) u = Squeeze (q, second) g = Reshape (u, whole)
            }
        > }
    >
}"""


@pytest.mark.parametrize("name", ["svd", "tensor_train", "tucker", "equalize", "prune_channels"])
def test_layers_inside_bodies_are_skipped_by_name(name: str) -> None:
    model = build(
        INSIDE,
        **{f"w{index}": random(8, 8, 3, 3) for index in range(3)},
        g0=random(64, 64),
        single=random(1, 192, 64),
        recurrent=random(1, 192, 64),
        first=np.array([0]),
        second=np.array([1]),
        rows=np.array([16, 64]),
        steps=np.array([16, 1, 64]),
        whole=np.array([2, 8, 8, 8]),
    )
    _, report = applied(model, name, **({"method": "weight"} if name == "svd" else {}))
    reasons = {skip.node: skip.reason for skip in report.skips}
    for place, layers in {
        "then_branch of If_1": ["If_1/then_branch/Conv_0", "If_1/then_branch/ConvTranspose_2"],
        "then_branch of If_1/else_branch/If_0": ["If_1/else_branch/If_0/then_branch/Gemm_1"],
        "else_branch of If_1/else_branch/If_0": ["If_1/else_branch/If_0/else_branch/MatMul_1"],
    }.items():
        for layer in layers:
            assert reasons[layer] == f"it is in the {place}, and this pass changes no layer inside a body"
    # its weight is constant, computed by nodes
    recurrent = reasons["If_1/else_branch/If_0/else_branch/GRU_4"]
    assert recurrent == "its weights are those of a recurrent layer, which this pass does not change"


@pytest.mark.parametrize("make", MODELS)
@pytest.mark.parametrize("opset", [17, 21])
def test_four_bits(make: Callable[..., onnx.ModelProto], opset: int) -> None:
    model = make(opset)
    after, _ = applied(model, "int4")
    assert after.opset_import[0].version == 21
    assert len(after.SerializeToString()) < 0.75 * len(model.SerializeToString())
    assert agreement_db(model, after) > 12


@pytest.mark.parametrize("make", MODELS)
def test_weights_of_bodies_are_stored_in_float16(make: Callable[..., onnx.ModelProto]) -> None:
    model = make()
    after, report = applied(model, "float16")
    assert {"w", "shared", "own"}.isdisjoint(tensor for part in stored(after) for tensor in part)
    assert value(after, "shared_float16" if make is branches else "w_float16").dtype == np.float16
    assert sum("is stored as float16" in edit.what for edit in report.edits) == (2 if make is branches else 1)
    assert agreement_db(model, after) > 50


def test_a_weight_beyond_float16_stays() -> None:
    model = loop()
    body = graph_protos(model.graph)[1]
    large = value(model, "w").copy()
    large[0, 0] = 1e6
    body.initializer[0].CopyFrom(onnx.numpy_helper.from_array(large, "w"))
    _, report = applied(model, "float16")
    assert [skip.reason for skip in report.skips if skip.node == "Loop_0/body/MatMul_0"] == [
        "it is in the body of Loop_0, which stays in float32, and its weight reaches 1e+06, and float16 ends at 65504"
    ]


NORMALIZED = """(float[N, 2, 6, 6] x, bool c) => (float[N, 3, 6, 6] y) { y = If (c) <
    then_branch = yes () => (float[N, 3, 6, 6] a) {
        w = Constant <value = float[3, 2, 1, 1] {1.0, 2.0, 3.0, 4.0, 5.0, 6.0}> ()
        s = Conv (x, w) a = BatchNormalization (s, scale, shift, mean, variance)
    },
    else_branch = no () => (float[N, 3, 6, 6] b) { t = Conv (x, v) b = Mul (t, factor) }
> }"""


def test_constants_and_normalizations_inside_bodies_are_folded() -> None:
    model = build(
        NORMALIZED,
        v=random(3, 2, 1, 1),
        factor=random(3, 1, 1),
        scale=random(3),
        shift=random(3),
        mean=random(3),
        variance=np.abs(random(3)) + np.float32(0.5),
    )
    after, report = applied(model, "fold")
    assert [[node.op_type for node in graph.node] for graph in graph_protos(after.graph)] == [
        ["If"],
        ["Conv"],
        ["Conv"],
    ]
    assert stored(after) == [["v"], ["w", "w_bias"], ["v_bias"]]
    assert len(report.edits) == 3
    x = random(4, 2, 6, 6)
    for way in (True, False):
        given = {"x": x, "c": np.array(way)}
        assert affine.signal_to_noise_db(run(model, given)["y"], run(after, given)["y"]) > 100


def test_what_both_branches_read_is_not_folded_into() -> None:
    text = NORMALIZED.replace(
        "w = Constant <value = float[3, 2, 1, 1] {1.0, 2.0, 3.0, 4.0, 5.0, 6.0}> ()", ""
    )
    ones = np.ones(3, np.float32)
    model = build(
        text.replace("Conv (x, w)", "Conv (x, v)"),
        v=random(3, 2, 1, 1),
        factor=random(3, 1, 1),
        scale=ones,
        shift=ones,
        mean=ones,
        variance=ones,
    )
    after, report = applied(model, "fold")
    assert after is model
    assert (
        "If_0/then_branch/BatchNormalization_1",
        "the weight of If_0/then_branch/Conv_0 has another reader",
    ) in [(skip.node, skip.reason) for skip in report.skips]


def test_weights_of_other_operators_are_skipped_by_name() -> None:
    model = build(
        """(int64[N, 3] i, float[5, N, 4] x) => (float[N, 3, 2] y, float[5, 1, N, 8] z) {
            e = Gather (table, i) y = Einsum <equation = "bti,io->bto"> (e, v) z = GRU <hidden_size = 8> (x, w, r)
        }""",
        table=random(10, 4),
        v=random(4, 2),
        w=random(1, 24, 4),
        r=random(1, 24, 8),
    )
    _, report = applied(model, "svd")
    assert [(skip.node, skip.reason.split(",")[0]) for skip in report.skips] == [
        ("Gather_0", "its table is an embedding"),
        ("Einsum_1", "its constant is an operand of an Einsum"),
        ("GRU_2", "its weights are those of a recurrent layer"),
    ]
