"""tensor_train: which nodes a layer becomes, that they compute what its train says, and which ranks are
chosen.
"""

import math
from typing import Any

import numpy as np
import onnx
import pytest

from onnx_lathe.errors import UsageError
from onnx_lathe.optimizer.inspect import measure
from onnx_lathe.passes.core.options import configure
from onnx_lathe.passes.core.report import PassReport
from onnx_lathe.passes.core.services import Context
from onnx_lathe.passes.graph.layers import weights
from onnx_lathe.passes.graph.model import export_model, import_model
from onnx_lathe.passes.numerics.rank.tensor_train import Modes, full, tt_svd
from onnx_lathe.passes.tensor_train.tensor_train import TensorTrain
from onnx_lathe.passes.tensor_train.writer import TrainWriter
from tests.support.builders import build, random, run

MATMUL = "(float[N, 24] x) => (float[N, 30] y) { y = MatMul (x, w) }"


def split(model: onnx.ModelProto, **options: Any) -> tuple[onnx.ModelProto, PassReport]:
    graph = import_model(model)
    report = configure(TensorTrain, {"min_size": 1, "macs": 99.0} | options).apply(graph, Context())
    after = export_model(graph)
    onnx.checker.check_model(after, full_check=True)
    return after, report


def constants(model: onnx.ModelProto) -> dict[str, np.ndarray]:
    return {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model.graph.initializer}


def operators(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]


def trained(modes: Modes, rank: int = 2, seed: int = 0) -> np.ndarray:
    """A weight [I, O, kernel] that is a train of that rank."""
    generator, inner = np.random.default_rng(seed), (1, *[rank] * (len(modes.sizes) - 1), 1)
    cores = [generator.standard_normal((inner[k], size, inner[k + 1])) for k, size in enumerate(modes.sizes)]
    return modes.unfold(full(cores)).astype(np.float32)


def same(
    before: onnx.ModelProto, after: onnx.ModelProto, tolerance: float = 1e-5, **feeds: np.ndarray
) -> None:
    expected, found = run(before, feeds)["y"], run(after, feeds)["y"]
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance * np.abs(expected).max())


@pytest.mark.parametrize("opset", [11, 13, 17, 21, 24])
def test_a_matmul_becomes_a_train(opset: int) -> None:
    modes = Modes((4, 6), (6, 5))
    model = build(MATMUL, opset=opset, w=trained(modes)[..., 0])
    after, report = split(model, tolerance=0.0)
    assert operators(after) == ["Reshape", "MatMul", "Reshape", "Transpose", "Reshape", "MatMul", "Reshape"]
    stored = constants(after)
    assert "w" not in stored
    assert (stored["w_core_1"].shape, stored["w_core_2"].shape) == ((4 * 2, 6), (6, 2 * 5))
    assert all(stored[name].dtype == np.float32 for name in ("w_core_1", "w_core_2"))
    same(model, after, x=random(3, 24))
    assert [(edit.node, edit.what.split(", relative error")[0]) for edit in report.edits] == [
        ("MatMul_0", "4x6:6x5, ranks 2: 720 -> 108 parameters (6.7x fewer), 720 -> 480 MACs per sample")
    ]
    assert report.metrics.pop("weight_error") < 1e-6
    assert report.metrics == {
        "split_parameters_before": 720,
        "split_parameters": 108,
        "split_macs_before": 720,
        "split_macs": 480,
    }


LAYERS = {
    "matmul": (MATMUL, (24, 30), (5, 24)),
    "matmul of many": (
        "(float[A, B, C, 24] x) => (float[A, B, C, 30] y) { y = MatMul (x, w) }",
        (24, 30),
        (2, 1, 3, 24),
    ),
    "matmul of a vector": ("(float[24] x) => (float[30] y) { y = MatMul (x, w) }", (24, 30), (24,)),
    "gemm": ("(float[N, 24] x) => (float[N, 30] y) { y = Gemm (x, w, b) }", (24, 30), (4, 24)),
    "gemm without bias": (
        "(float[N, 24] x) => (float[N, 30] y) { y = Gemm <transB = 1> (x, w) }",
        (30, 24),
        (4, 24),
    ),
    "gemm with everything": (
        "(float[24, N] x) => (float[N, 30] y) { y = Gemm <transA = 1, transB = 1, alpha = 0.5, beta = 3.0> (x, w, b) }",
        (30, 24),
        (24, 4),
    ),
    "conv": (
        "(float[N, 24, 9, 8] x) => (float[N, 30, 9, 8] y) { y = Conv <pads = [1, 1, 1, 1]> (x, w, b) }",
        (30, 24, 3, 3),
        (2, 24, 9, 8),
    ),
    "conv of any size": (
        "(float[N, 24, H, W] x) => (float[N, 30, P, Q] y) { y = Conv <pads = [0,1,2,3], strides = [2,1], dilations = [1,2]> (x, w, b) }",
        (30, 24, 2, 3),
        (2, 24, 9, 8),
    ),
    "conv same": (
        '(float[N, 24, 9, 8] x) => (float[N, 30, P, Q] y) { y = Conv <auto_pad = "SAME_UPPER"> (x, w) }',
        (30, 24, 4, 2),
        (1, 24, 9, 8),
    ),
    "conv in 1-D": (
        "(float[N, 24, L] x) => (float[N, 30, M] y) { y = Conv (x, w, b) }",
        (30, 24, 5),
        (2, 24, 9),
    ),
    "conv in 3-D": (
        "(float[N, 24, D, H, W] x) => (float[N, 30, P, Q, R] y) { y = Conv (x, w, b) }",
        (30, 24, 2, 1, 2),
        (2, 24, 3, 4, 5),
    ),
    "pointwise": (
        "(float[N, 24, H, W] x) => (float[N, 30, H, W] y) { y = Conv (x, w, b) }",
        (30, 24, 1, 1),
        (2, 24, 3, 4),
    ),
    "pointwise with strides": (
        "(float[N, 24, H, W] x) => (float[N, 30, P, Q] y) { y = Conv <strides = [2, 2]> (x, w, b) }",
        (30, 24, 1, 1),
        (2, 24, 5, 4),
    ),
    "pointwise with pads": (
        "(float[N, 24, H, W] x) => (float[N, 30, P, Q] y) { y = Conv <pads = [1, 0, 0, 0]> (x, w, b) }",
        (30, 24, 1, 1),
        (2, 24, 5, 4),
    ),
}


def layer(kind: str) -> tuple[onnx.ModelProto, tuple[int, ...]]:
    """A model whose weight is a train of rank 2, and the shape of its input."""
    text, shape, source = LAYERS[kind]
    kernel = math.prod(shape[2:]) if len(shape) > 2 else None
    weight = trained(Modes((4, 6), (6, 5), kernel))
    weight = weight.reshape(24, 30, *shape[2:])
    stored = {"w": np.ascontiguousarray(weight.swapaxes(0, 1)) if shape[0] == 30 else weight}
    return build(text, **stored, **({"b": random(30)} if ", b)" in text else {})), source


@pytest.mark.parametrize("kind", LAYERS)
def test_a_weight_that_is_a_train_stays_what_it_is(kind: str) -> None:
    model, source = layer(kind)
    after, report = split(model, tolerance=0.0)
    assert len(report.edits) == 1
    assert report.metrics["split_parameters"] < report.metrics["split_parameters_before"] / 5
    convolutions = [node for node in after.graph.node if node.op_type == "Conv"]
    assert len(convolutions) == ("conv" in kind or "pointwise with" in kind)
    assert "Gemm" not in operators(after)
    assert sum(
        tensor.name.endswith(("core_1", "core_2", "core_kernel")) for tensor in after.graph.initializer
    ) == 2 + len(convolutions)
    same(model, after, x=random(*source))
    assert [tuple(value.type.tensor_type.shape.dim) for value in after.graph.output] == [
        tuple(value.type.tensor_type.shape.dim) for value in model.graph.output
    ]


@pytest.mark.parametrize("cores", [2, 3, 4])
@pytest.mark.parametrize("kind", LAYERS)
def test_full_rank_reproduces_the_layer(kind: str, cores: int) -> None:
    """Written as the pass writes it, though it would not: there are more parameters than before."""
    _, shape, source = LAYERS[kind]
    model, _ = layer(kind)
    weight = random(*shape)
    model.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(weight, "w"))
    matrix = (weight.swapaxes(0, 1) if shape[0] == 30 else weight).reshape(24, 30, -1)
    factors = {2: ((4, 6), (3, 10)), 3: ((2, 3, 4), (5, 2, 3)), 4: ((2, 3, 1, 4), (1, 3, 2, 5))}[cores]
    modes = Modes(*factors, matrix.shape[2] if len(shape) > 2 else None)
    graph = import_model(model)
    (found,) = weights(graph, lambda node, reason: None)
    factor = found.nodes[0].attrs.get("alpha", 1.0)
    writer = TrainWriter(graph)
    writer.replace(
        found.nodes[0],
        writer.train(found.tensor, modes, tt_svd(modes.fold(factor * matrix))),
        len(source) - 1,
    )
    same(model, export_model(graph), x=random(*source))


def test_macs_and_parameters_are_those_of_the_nodes() -> None:
    text = """(float[N, 3, 32, 32] x) => (float[N, 50, 100] y) {
        a = Conv <pads = [1, 1, 1, 1], strides = [2, 2]> (x, w, b) r = Reshape (a, s) y = MatMul (r, v) }"""
    model = build(text, w=random(60, 3, 3, 3), b=random(60), v=random(64, 100), s=np.array([0, 240, 64]))
    model.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 240
    after, report = split(model, rank=3, cores=3)
    before, now = measure(model), measure(after)
    assert len(report.edits) == 2
    assert report.metrics["split_parameters_before"] + 60 == before.parameters  # the bias
    assert report.metrics["split_parameters"] + 60 == now.parameters
    assert report.metrics["split_macs_before"] == before.macs
    assert report.metrics["split_macs"] == now.macs


def test_macs_are_per_position_where_sizes_are_open() -> None:
    model, _ = layer("conv of any size")
    _, report = split(model, tolerance=0.0)
    assert "4,320 -> 1,008 MACs per position" in report.edits[0].what
    assert "split_macs" not in report.metrics


def test_an_error_is_reported_as_it_is() -> None:
    weight = random(24, 30)
    model = build(MATMUL, w=weight)
    after, report = split(model, rank=3)
    stand_in = run(after, {"x": np.eye(24, dtype=np.float32)})["y"]
    error = np.linalg.norm(stand_in - weight) / np.linalg.norm(weight)
    np.testing.assert_allclose(report.metrics["weight_error"], error, rtol=1e-5)
    assert report.edits[0].what.endswith(f"relative error {error:.3g}")


def test_a_tolerance_bounds_the_error_and_a_rank_the_ranks() -> None:
    weight = (
        trained(Modes((4, 6), (6, 5)))[..., 0]
        + np.float32(0.01) * trained(Modes((4, 6), (6, 5)), 5, seed=1)[..., 0]
    )
    model = build(MATMUL, w=weight)
    errors = {}
    for options in (
        {"tolerance": 0.1},
        {"tolerance": 0.001},
        {"tolerance": 0.001, "rank": 3},
        {"rank": 3},
        {"layers": {"w": 3}},
    ):
        after, report = split(model, **options)
        errors[str(options)] = (constants(after)["w_core_1"].shape[0] // 4, report.metrics["weight_error"])
    (loose, loose_error), (tight, tight_error), *bounded = errors.values()
    assert (loose, tight) == (2, 7)
    assert 0.001 < loose_error <= 0.1
    assert tight_error <= 0.001
    assert {rank for rank, _ in bounded} == {3}
    assert tight_error < bounded[0][1] < loose_error


@pytest.mark.parametrize("shrink", [2.0, 4.0, 8.0])
def test_shrink_takes_the_largest_rank_that_is_small_enough(shrink: float) -> None:
    model = build("(float[N, 64] x) => (float[N, 64] y) { y = MatMul (x, w) }", w=random(64, 64))
    after, _ = split(model, shrink=shrink)
    rank = constants(after)["w_core_2"].shape[1] // 8
    assert 2 * 64 * rank <= 64 * 64 / shrink < 2 * 64 * (rank + 1)


def test_macs_bound_the_rank_too() -> None:
    model = build("(float[N, 64] x) => (float[N, 64] y) { y = MatMul (x, w) }", w=random(64, 64))
    _, free = split(model, shrink=2.0)
    _, bounded = split(model, shrink=2.0, macs=1.0)
    assert free.metrics["split_macs"] > 64 * 64
    assert 0.7 * 64 * 64 < bounded.metrics["split_macs"] <= 64 * 64
    _, explicit = split(model, rank=10, macs=1.0)
    assert [skip.reason for skip in explicit.skips] == [
        "ranks 10 give 1,280 parameters and 10,240 MACs per position, and it has 4,096 of both; macs=3 allows that"
    ]


def test_factors_can_be_given() -> None:
    model = build(MATMUL, w=random(24, 30))
    after, report = split(model, rank=2, factors={"MatMul_*": "2x3x4:5x1x6"})
    assert report.edits[0].what.startswith("2x3x4:5x1x6, ranks 2, 2: ")
    assert [constants(after)[f"w_core_{number}"].shape for number in (1, 2, 3)] == [
        (2 * 2, 5),
        (3 * 2, 2),
        (4, 2 * 6),
    ]


def test_a_rank_of_zero_leaves_a_layer_as_it_is() -> None:
    text = "(float[N, 24] x) => (float[N, 24] y) { h = MatMul (x, w) y = MatMul (h, v) }"
    after, report = split(build(text, w=random(24, 24), v=random(24, 24)), rank=2, layers={"v": 0})
    assert [(skip.node, skip.reason) for skip in report.skips] == [("MatMul_1", "its rank is set to 0")]
    assert {"v", "w_core_1", "w_core_2"} <= constants(after).keys()


def test_layers_that_share_a_weight_share_its_cores() -> None:
    text = "(float[N, 24] x) => (float[N, 24] y) { h = MatMul (x, w) r = Relu (h) y = Gemm <beta = 2.0> (r, w, b) }"
    model = build(text, w=trained(Modes((4, 6), (6, 4)))[..., 0], b=random(24))
    after, report = split(model, tolerance=0.0)
    assert len(report.edits) == 1
    assert report.metrics["split_macs_before"] == 2 * 24 * 24
    assert sum("core" in name for name in constants(after)) == 2
    assert operators(after).count("MatMul") == 4
    same(model, after, x=random(3, 24))


def test_a_layer_keeps_the_name_of_its_output_for_all_who_read_it() -> None:
    text = """(float[N, 24] x, bool c) => (float[N, 24] h, float[N, 24] y) {
        h = MatMul (x, w) r = Relu (h)
        t = If (c) <then_branch = g1 () => (float[N, 24] a) { a = Neg (h) }, else_branch = g2 () => (float[N, 24] e) { e = Abs (h) }>
        y = Add (t, r) }"""
    model = build(text, w=trained(Modes((4, 6), (6, 4)))[..., 0])
    after, report = split(model, tolerance=0.0)
    assert len(report.edits) == 1
    for choice in (True, False):
        same(model, after, x=random(3, 24), c=np.array(choice))


@pytest.mark.parametrize("shape", ["[N, 30]", "[N, 1]", "[1]"])
def test_a_bias_that_is_computed_is_added_behind(shape: str) -> None:
    text = f"(float[N, 24] x, float{shape} b) => (float[N, 30] y) {{ y = Gemm (x, w, b) }}"
    model = build(text, w=trained(Modes((4, 6), (6, 5)))[..., 0])
    after, report = split(model, tolerance=0.0)
    assert len(report.edits) == 1
    same(model, after, x=random(3, 24), b=random(*{"[N, 30]": (3, 30), "[N, 1]": (3, 1), "[1]": (1,)}[shape]))


def test_an_empty_batch_stays_empty() -> None:
    model = build(MATMUL, w=trained(Modes((4, 6), (6, 5)))[..., 0])
    after, _ = split(model, tolerance=0.0)
    assert run(after, {"x": np.zeros((0, 24), np.float32)})["y"].shape == (0, 30)


@pytest.mark.parametrize(
    "factors, message",
    [
        (
            "4x6:30",
            "'4x6:30' does not say two or more factors of the inputs and as many of the outputs; write for example 28x28:20x15",
        ),
        ("24:30", "'24:30' does not say two or more factors"),
        ("4x0:6x5", "'4x0:6x5' does not say"),
        ("4x6", "'4x6' does not say"),
        ("4x5:6x5", "w has 24 inputs, and 4x5 is 20; 4x6 would do"),
        ("4x6:5x5", "w has 30 outputs, and 5x5 is 25; 5x6 would do"),
    ],
)
def test_factors_that_do_not_fit_are_refused(factors: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        split(build(MATMUL, w=random(24, 30)), factors={"w": factors})
    assert message in str(caught.value)
    assert str(caught.value).startswith("tensor_train(factors=...)")


@pytest.mark.parametrize("option", ["layers", "factors"])
def test_a_name_that_matches_nothing_is_refused(option: str) -> None:
    with pytest.raises(UsageError, match=rf"tensor_train\({option}=...\): no weight or layer is named 'v'"):
        split(build(MATMUL, w=random(24, 30)), **{option: {"v": 2 if option == "layers" else "4x6:6x5"}})
