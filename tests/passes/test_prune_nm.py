"""prune_nm: the largest of every group stay, along the inputs, and the pattern is recorded."""

import numpy as np
import onnx
import pytest

from onnx_lathe import metadata
from onnx_lathe.passes.core.options import configure
from onnx_lathe.passes.core.report import PassReport
from onnx_lathe.passes.core.services import Context
from onnx_lathe.passes.graph.model import export_model, import_model, set_sparse_tensors
from onnx_lathe.passes.numerics.sparsity.n_of_m import holds, nm_kept
from onnx_lathe.passes.prune_nm import PruneNM
from tests.support.builders import build, random, run


def prune(model: onnx.ModelProto, **options: object) -> tuple[onnx.ModelProto, PassReport]:
    graph = import_model(model)
    report = configure(PruneNM, {"min_size": 1} | options).apply(graph, Context())
    pruned = export_model(graph)
    onnx.checker.check_model(pruned, full_check=True)
    return pruned, report


def constants(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def by_hand(rows: np.ndarray, n: int, m: int) -> np.ndarray:
    """[rows, inputs]: in each group, all but the n largest magnitudes are zero."""
    pruned = rows.copy()
    for row in pruned:
        for start in range(0, row.size, m):
            group = row[start : start + m]
            group[np.argsort(np.abs(group))[: m - n]] = 0
    return pruned


LAYERS = {
    "Conv": (
        "(float[N, 8, 5, 5] x) => (float[N, 6, H, W] y) { y = Conv (x, w) }",
        (6, 8, 3, 3),
        1,
        (2, 8, 5, 5),
    ),
    "grouped Conv": (
        "(float[N, 16, 5, 5] x) => (float[N, 6, H, W] y) { y = Conv <group = 2> (x, w) }",
        (6, 8, 1, 1),
        1,
        (2, 16, 5, 5),
    ),
    "ConvTranspose": (
        "(float[N, 8, 5, 5] x) => (float[N, 6, H, W] y) { y = ConvTranspose (x, w) }",
        (8, 6, 3, 3),
        0,
        (2, 8, 5, 5),
    ),
    "Gemm": ("(float[N, 16] x) => (float[N, 6] y) { y = Gemm (x, w) }", (16, 6), 0, (2, 16)),
    "Gemm with transB": (
        "(float[N, 16] x) => (float[N, 6] y) { y = Gemm <transB = 1> (x, w) }",
        (6, 16),
        1,
        (2, 16),
    ),
    "MatMul": ("(float[N, 16] x) => (float[N, 6] y) { y = MatMul (x, w) }", (16, 6), 0, (2, 16)),
    "batched MatMul": (
        "(float[N, 3, 2, 16] x) => (float[N, 3, 2, 6] y) { y = MatMul (x, w) }",
        (3, 16, 6),
        1,
        (2, 3, 2, 16),
    ),
}


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize(("n", "m"), [(2, 4), (1, 4), (4, 8)])
def test_the_largest_of_every_group_stay(name: str, n: int, m: int) -> None:
    text, shape, axis, feed = LAYERS[name]
    weight = random(*shape)
    after, report = prune(build(text, w=weight), n=n, m=m)
    pruned, moved = constants(after)["w"], np.moveaxis(weight, axis, -1)
    expected = np.moveaxis(by_hand(moved.reshape(-1, shape[axis]), n, m).reshape(moved.shape), -1, axis)
    np.testing.assert_array_equal(pruned, expected)
    assert metadata.read_sparse(after.metadata_props) == {"w": f"{n}:{m}"}
    assert report.metrics == {"sparsity": 1 - n / m}
    x = random(*feed)
    np.testing.assert_allclose(
        run(after, {"x": x})["y"], run(build(text, w=expected), {"x": x})["y"], rtol=1e-5, atol=1e-5
    )


def test_zeros_that_are_there_are_counted_first_and_ties_go_by_position() -> None:
    weight = np.array([[0, 3, -2, 1], [1, 1, -1, 1], [5, 0, 0, 0]], np.float32)
    after, report = prune(
        build("(float[N, 4] x) => (float[N, 3] y) { y = Gemm <transB = 1> (x, w) }", w=weight)
    )
    np.testing.assert_array_equal(constants(after)["w"], [[0, 3, -2, 0], [0, 0, -1, 1], [5, 0, 0, 0]])
    assert [edit.what for edit in report.edits] == [
        "7 of 12 weights are zero, 2:4 along its inputs, 4 before"
    ]


def test_a_second_run_has_nothing_to_do() -> None:
    once, _ = prune(build(LAYERS["Gemm"][0], w=random(16, 6)))
    twice, report = prune(once)
    assert not report.edits
    assert [(skip.node, skip.reason) for skip in report.skips] == [("Gemm_0", "its weight is 2:4 already")]
    assert twice.SerializeToString() == once.SerializeToString()


def test_a_weight_with_scattered_zeros_gets_the_pattern() -> None:
    weight = random(16, 6)
    weight[np.abs(weight) < 0.5] = 0
    graph = import_model(build(LAYERS["Gemm"][0], w=weight))
    set_sparse_tensors(graph, {"w": "unstructured"})
    after, _ = prune(export_model(graph))
    assert holds(constants(after)["w"], 0, 2, 4)
    assert not constants(after)["w"][weight == 0].any()
    assert metadata.read_sparse(after.metadata_props) == {"w": "2:4"}


def test_what_does_not_fit_is_left_with_the_reason() -> None:
    model = build(
        "(float[N, 3, 8, 8] x) => (float[N, 16, H, W] y, float[16, 4] o) { a = Conv (x, u) b = Conv <group = 16> (a, v) "
        "d = Conv (b, w) e = Conv (d, q) f = Conv (e, t) o = Reshape (p, s) g = Relu (p) y = Conv (f, r) }",
        u=random(16, 3, 1, 1),
        v=random(16, 1, 3, 3),
        w=random(16, 16, 1, 1),
        q=np.full((16, 16, 1, 1), np.nan, np.float32),
        t=random(16, 16, 1, 1),
        r=random(16, 16, 1, 1),
        p=random(16, 4),
        s=np.array([16, 4]),
    )
    after, report = prune(model, layers={"t": 0.0})
    assert [(skip.node, skip.reason) for skip in report.skips] == [
        ("Conv_0", "its 3 inputs do not make groups of 4"),
        ("Conv_1", "its 1 inputs per group do not make groups of 4"),
        ("Conv_3", "its weight has NaN or infinite elements"),
        ("Conv_4", "its sparsity is set to 0"),
    ]
    assert metadata.read_sparse(after.metadata_props) == {"w": "2:4", "r": "2:4"}


@pytest.mark.parametrize(("groups", "shape", "inputs"), [(16, (16, 1, 2, 2), 1), (2, (12, 3, 2, 2), 6)])
def test_inputs_of_a_grouped_transposed_convolution_are_counted_in_each_group(
    groups: int, shape: tuple[int, ...], inputs: int
) -> None:
    model = build(
        f"(float[N, {shape[0]}, 4, 4] x) => (float[N, C, H, W] y) {{ y = ConvTranspose <group = {groups}> (x, w) }}",
        w=random(*shape),
    )
    _, report = prune(model)
    assert [skip.reason for skip in report.skips] == [
        f"its {inputs} inputs per group do not make groups of 4"
    ]


def test_small_and_shared_weights() -> None:
    model = build(
        "(float[N, 4] x) => (float[N, 4] y) { a = Gemm (x, w) b = Gemm <transB = 1> (a, w) d = Gemm (b, v) y = Gemm (d, v) }",
        w=random(4, 4),
        v=random(4, 4),
    )
    after, report = prune(model)
    assert [(skip.node, skip.reason) for skip in report.skips] == [
        ("Gemm_0", "layers that share its weight read it along different axes")
    ]
    assert holds(constants(after)["v"], 0, 2, 4)
    _, report = prune(model, min_size=17)
    assert [skip.reason for skip in report.skips] == [
        "its weight has 16 elements, fewer than min_size=17"
    ] * 2


def test_a_weight_with_another_reader_is_left() -> None:
    model = build(
        "(float[N, 4] x) => (float[N, 4] y, float[4, 4] z) { y = MatMul (x, w) z = Neg (w) }", w=random(4, 4)
    )
    _, report = prune(model)
    assert [skip.reason for skip in report.skips] == ["its weight is also read by Neg_1"]


def test_kept_counts_are_exact_for_any_axis() -> None:
    for axis in range(3):
        values = random(8, 8, 8)
        kept = nm_kept(values, axis, 3, 8)
        assert (kept.sum(axis) == 3).all()
        assert holds(np.where(kept, values, 0), axis, 3, 8)
        assert not holds(values, axis, 3, 8)
