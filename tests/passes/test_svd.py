"""svd: what stands in place of a layer, that it computes nearly the same, and what is refused."""

from collections.abc import Iterator

import numpy as np
import onnx
import pytest

from onnx_lathe import metadata
from onnx_lathe.errors import UsageError
from onnx_lathe.optimizer.inspect import measure
from onnx_lathe.optimizer.pipeline import apply_pass
from onnx_lathe.passes.core.options import configure
from onnx_lathe.passes.core.report import PassReport
from onnx_lathe.passes.core.services import Context
from onnx_lathe.passes.graph.ancestors import model_up_to
from onnx_lathe.passes.graph.macs import network_macs, sized_shapes
from onnx_lathe.passes.graph.model import export_model, import_model, set_sparse_tensors
from onnx_lathe.passes.int8.int8 import Int8
from onnx_lathe.passes.svd.svd import Svd
from onnx_lathe.passes.tensor_train.tensor_train import TensorTrain
from onnx_lathe.runtime.data import Batch, DataSource
from onnx_lathe.runtime.running.calibration import StreamingCalibrator
from onnx_lathe.runtime.torch_bridge.parameters import trainable
from tests.support.builders import build, random, run


class Arrays(DataSource):
    labelled, fingerprint, description = False, "", ""

    def __init__(self, **arrays: np.ndarray) -> None:
        self.arrays = arrays
        self.count = len(next(iter(arrays.values())))

    def batches(self, size: int, shuffle_seed: int | None = None) -> Iterator[Batch]:
        for start in range(0, self.count, size):
            yield Batch({name: array[start : start + size] for name, array in self.arrays.items()})


def svd(
    model: onnx.ModelProto, data: dict[str, np.ndarray] | None = None, **options: object
) -> tuple[onnx.ModelProto, PassReport]:
    before = model.SerializeToString()
    context = Context(calibrator=None if data is None else StreamingCalibrator(Arrays(**data)))
    after, report = apply_pass(configure(Svd, options), model, context)
    onnx.checker.check_model(after, full_check=True)
    assert model.SerializeToString() == before
    return after, report


def deviation(model: onnx.ModelProto, after: onnx.ModelProto, data: dict[str, np.ndarray]) -> float:
    """Largest root mean square error of an output, relative to the output's deviation from its mean."""
    one, other = run(model, data), run(after, data)
    return max(float(np.sqrt(np.square(one[name] - other[name]).mean()) / one[name].std()) for name in one)


def ops(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]


def shapes(model: onnx.ModelProto) -> dict[str, list[int]]:
    return {tensor.name: list(tensor.dims) for tensor in model.graph.initializer}


def low(outputs: int, *rest: int, rank: int) -> np.ndarray:
    """A weight [outputs, *rest] of low rank."""
    return (random(outputs, rank) @ random(rank, int(np.prod(rest)))).reshape(outputs, *rest) / np.float32(
        np.sqrt(rank * np.prod(rest))
    )


CONV = "(float[N, 6, 9, 11] x) => (float[N, 16, h, w] y) {{ y = Conv <{attributes}> (x, w, b) }}"
KINDS = {
    "Conv": (
        CONV.format(attributes="strides = [2, 1], pads = [1, 0, 2, 1], dilations = [1, 2]"),
        (16, 6, 3, 3),
        0,
    ),
    "Conv, auto_pad": (CONV.format(attributes='auto_pad = "SAME_UPPER", strides = [2, 2]'), (16, 6, 3, 5), 0),
    "ConvTranspose": (
        "(float[N, 6, 9, 11] x) => (float[N, 16, h, w] y) "
        "{ y = ConvTranspose <strides = [2, 1], pads = [1, 0, 0, 1], output_padding = [1, 0]> (x, w, b) }",
        (16, 6, 3, 4),
        1,
    ),
    "Gemm": (
        "(float[N, 20] x) => (float[N, 16] y) { y = Gemm <alpha = 0.5, beta = 2.0> (x, w, b) }",
        (16, 20),
        1,
    ),
    "Gemm, transB": ("(float[N, 20] x) => (float[N, 16] y) { y = Gemm <transB = 1> (x, w, b) }", (16, 20), 0),
    "MatMul, Add": (
        "(float[N, 5, 20] x) => (float[N, 5, 16] y) { m = MatMul (x, w)  y = Add (b, m) }",
        (16, 20),
        1,
    ),
}


def layer(kind: str, rank: int | None = None) -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    """One layer, with a weight of low rank if asked for, and 40 samples for it."""
    text, shape, axis = KINDS[kind]
    weight = random(*shape) if rank is None else low(*shape, rank=rank)
    model = build(text, w=np.ascontiguousarray(np.moveaxis(weight, 0, axis)), b=random(16))
    return model, {
        "x": random(40, *(dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim[1:]))
    }


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", ["response", "weight"])
def test_a_layer_of_low_rank_is_found_to_be_one(kind: str, method: str) -> None:
    model, data = layer(kind, rank=3)
    after, report = svd(model, data, method=method, energy=0.9999, multiple=1)
    assert [edit.what.split(",")[0] for edit in report.edits] == ["rank 3 of 16"]
    operators = {"ConvTranspose": ["ConvTranspose", "Conv"], "MatMul, Add": ["MatMul", "MatMul", "Add"]}
    assert ops(after) == operators.get(kind, [kind.split(",")[0]] * 2)
    assert deviation(model, after, data) < 1e-5
    made = {
        node.name: {entry.key: entry.value for entry in node.metadata_props}
        for node in after.graph.node
        if node.op_type != "Add"
    }
    assert all(found == {metadata.PASS: "svd"} for found in made.values())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("method", ["response", "weight", "spatial"])
def test_full_rank_changes_nothing(kind: str, method: str) -> None:
    model, data = layer(kind)
    after, report = svd(model, data, method=method, rank=10_000, always=True)
    if method == "spatial" and "Conv" not in kind:
        assert [skip.reason for skip in report.skips] == [
            "its kernel is 1; method=spatial splits kernels of two sides longer than 1"
        ]
        return
    assert len(after.graph.node) == len(model.graph.node) + 1
    one, other = run(model, data)["y"], run(after, data)["y"]
    assert np.abs(one - other).max() < 1e-4 * np.abs(one).max()


def test_a_spatial_split_is_a_column_and_a_row() -> None:
    model, _ = layer("Conv")
    after, report = svd(model, method="spatial", rank=4)
    assert shapes(after) == {"w_first": [4, 6, 3, 1], "w_second": [16, 4, 1, 3], "w_bias": [16]}
    first, second = (
        {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute} for node in after.graph.node
    )
    assert (first["strides"], first["pads"], first["dilations"]) == ([2, 1], [1, 0, 2, 0], [1, 1])
    assert (second["strides"], second["pads"], second["dilations"]) == ([1, 1], [0, 0, 0, 1], [1, 2])
    weight = onnx.numpy_helper.to_array(model.graph.initializer[0])
    factors = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in after.graph.initializer}
    product = np.einsum("rcy,drx->dcyx", factors["w_first"][..., 0], factors["w_second"][:, :, 0])
    energies = np.linalg.svd(weight.transpose(0, 3, 1, 2).reshape(48, 18), compute_uv=False) ** 2
    assert np.square(weight - product).sum() == pytest.approx(energies[4:].sum(), rel=1e-4)
    assert report.edits[0].what.endswith(f"{100 * energies[:4].sum() / energies.sum():.4g} % of energy kept")


def test_macs_are_counted_as_inspect_does() -> None:
    for kind in KINDS:
        for method in ("weight", "spatial") if "Conv" in kind else ("weight",):
            model, _ = layer(kind)
            after, report = svd(model, method=method, rank=4)
            if report.edits:
                assert report.metrics["macs_kept"] == pytest.approx(
                    measure(after).macs / measure(model).macs
                ), (kind, method)
            else:
                assert "saves no MACs" in report.skips[0].reason


NETWORK = """(float[N, 8, 12, 12] x) => (float[N, 10] y) {
    c1 = Conv <pads = [1, 1, 1, 1]> (x, w1, b1)  r1 = Relu (c1)
    c2 = Conv <pads = [1, 1, 1, 1]> (r1, w2, b2)  r2 = Relu (c2)
    c3 = Conv <pads = [1, 1, 1, 1], strides = [2, 2]> (r2, w3, b3)  r3 = Relu (c3)
    p = GlobalAveragePool (r3)  f = Flatten (p)  y = Gemm <transB = 1> (f, w4, b4)
}"""


def network(opset: int = 17) -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    """Three convolutions whose responses are of low rank but for some noise, and smooth data."""
    weights = {
        name: low(24, inputs, 3, 3, rank=8) + np.float32(0.02) * random(24, inputs, 3, 3)
        for name, inputs in (("w1", 8), ("w2", 24), ("w3", 24))
    }
    biases = {f"b{number}": np.float32(0.3) * random(24) for number in (1, 2, 3)}
    model = build(NETWORK, opset, **weights, **biases, w4=random(10, 24), b4=random(10))
    return model, {"x": np.cumsum(random(48, 8, 12, 12), axis=2) / 2}


@pytest.mark.parametrize("opset", [11, 13, 21, 24])
def test_a_budget_of_macs_is_met_and_a_second_run_has_nothing_to_do(opset: int) -> None:
    model, data = network(opset)
    after, report = svd(model, data)
    assert measure(after).macs <= 0.5 * measure(model).macs
    assert report.metrics["macs_kept"] == pytest.approx(measure(after).macs / measure(model).macs)
    assert 0.5 < report.metrics["energy_kept"] < 1
    assert deviation(model, after, data) < 0.3
    again, second = svd(after, data)
    assert again is after
    halves = [
        skip.node for skip in second.skips if skip.reason == "it is half of a layer that is split already"
    ]
    assert sorted(halves) == sorted(
        f"{edit.node}_{half}" for edit in report.edits for half in ("first", "second")
    )


def test_each_refinement_comes_nearer_to_the_original() -> None:
    """On data that were not calibrated on: responses beat weights; asymmetric, and minding the ReLU, beat
    not doing so.
    """
    model, data = network()
    fresh = {"x": np.cumsum(random(64, 8, 12, 12), axis=2) / 2}
    errors = []
    for options in (
        {"method": "weight"},
        {"asymmetric": False, "nonlinear": False},
        {"nonlinear": False},
        {},
    ):
        after, _ = svd(model, data, rank=6, layers={"w4": 0}, **options)
        errors.append(deviation(model, after, fresh))
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.8 * errors[0]


def test_the_report_gives_rank_macs_and_energy() -> None:
    model, data = network()
    _, report = svd(model, data, layers={"w2": 5, "Conv_0": 0, "w4": 0}, energy=0.999)
    assert {skip.node: skip.reason for skip in report.skips if skip.node != "Conv_4"} == {
        "Conv_0": "its rank is set to 0",
        "Gemm_8": "its rank is set to 0",
    }
    assert report.edits[0].node == "Conv_2"
    assert report.edits[0].what.startswith("rank 5 of 24, 573,696 of 746,496 MACs saved (76.9 %), ")
    assert "% of energy kept, " in report.edits[0].what
    assert report.edits[0].what.endswith("% of the linear fit's error")


def test_shared_weights_and_several_readers() -> None:
    text = """(float[N, 16] x) => (float[N, 16] y, float[N, 16] z) {
        a = MatMul (x, w)  b = Relu (a)  c = MatMul (b, w)  y = Add (a, c)  z = Neg (a) }"""
    model, data = build(text, w=low(16, 16, rank=3)), {"x": random(200, 16)}
    after, report = svd(model, data, rank=3)
    assert [edit.node for edit in report.edits] == ["MatMul_0"]
    assert sorted(shapes(after)) == ["w_bias", "w_first", "w_second"]
    assert ops(after).count("MatMul") == 4
    assert deviation(model, after, data) < 1e-4


def test_shared_weights_with_different_biases_are_refused() -> None:
    text = "(float[N, 16] x) => (float[N, 16] y) { a = Gemm (x, w, b)  y = Gemm (a, w, c) }"
    _, report = svd(build(text, w=random(16, 16), b=random(16), c=random(16)), {"x": random(20, 16)}, rank=3)
    assert [(skip.node, skip.reason) for skip in report.skips] == [
        ("Gemm_0", "its weight is shared by layers with different biases")
    ]


def test_without_a_bias_weights_add_none_and_responses_one() -> None:
    model = build("(float[N, 5, 20] x) => (float[N, 5, 16] y) { y = MatMul (x, w) }", w=low(20, 16, rank=3))
    data = {"x": random(30, 5, 20) + 1}
    by_weight, _ = svd(model, method="weight", rank=3)
    by_response, _ = svd(model, data, rank=2)
    assert ops(by_weight) == ["MatMul", "MatMul"]
    assert ops(by_response) == ["MatMul", "MatMul", "Add"]
    mean = run(model, data)["y"].mean(axis=(0, 1))
    np.testing.assert_allclose(run(by_response, data)["y"].mean(axis=(0, 1)), mean, rtol=1e-4, atol=1e-5)


REFUSED = {
    "its convolution is grouped: each group is a small layer already": (
        "(float[N, 8, 6, 6] x) => (float[N, 16, h, w] y) { y = Conv <group = 2> (x, w) }",
        {"w": (16, 4, 3, 3)},
    ),
    "its weight is a batch of matrices": (
        "(float[N, 2, 5, 8] x) => (float[N, 2, 5, 16] y) { y = MatMul (x, w) }",
        {"w": (2, 8, 16)},
    ),
    "its bias is computed at run time": (
        "(float[N, 8] x, float[16] u) => (float[N, 16] y) { b = Neg (u)  y = Gemm (x, w, b) }",
        {"w": (8, 16)},
    ),
    "its bias is not one value per channel": (
        "(float[3, 8] x) => (float[3, 16] y) { y = Gemm (x, w, b) }",
        {"w": (8, 16), "b": (3, 1)},
    ),
    "its weight is computed at run time": (
        "(float[N, 8] x, float[8, 16] u) => (float[N, 16] y) { v = Neg (u)  y = Gemm (x, v) }",
        {},
    ),
}


@pytest.mark.parametrize("reason", REFUSED)
def test_what_cannot_be_split_is_skipped_with_its_reason(reason: str) -> None:
    text, initializers = REFUSED[reason]
    model = build(text, **{name: random(*shape) for name, shape in initializers.items()})
    after, report = svd(model, method="weight", rank=1)
    assert after is model
    assert [skip.reason for skip in report.skips] == [reason]
    assert report.skips[0].node.split("_")[0] in ("Conv", "Gemm", "MatMul")


def test_zeros_that_must_stay_and_values_that_are_none() -> None:
    model, _ = layer("Gemm")
    graph = import_model(model)
    set_sparse_tensors(graph, {"w": "unstructured"})
    _, report = svd(export_model(graph), method="weight", rank=2)
    assert [skip.reason for skip in report.skips] == [
        "its zeros must stay (lathe.sparse), and factors would have none; svd before prune"
    ]
    broken = build(KINDS["Gemm"][0], w=np.full((20, 16), np.nan, np.float32), b=random(16))
    _, report = svd(broken, method="weight", rank=2)
    assert [skip.reason for skip in report.skips] == ["its weight has NaN or infinite elements"]


def test_responses_that_are_not_finite_are_refused() -> None:
    model, data = layer("Gemm, transB")
    data["x"][3, 0] = np.inf
    after, report = svd(model, data, rank=2)
    assert after is model
    assert [skip.reason for skip in report.skips] == [
        "its responses to the calibration data hold NaN or infinity"
    ]


def test_a_split_that_saves_nothing_is_refused() -> None:
    model, data = layer("Gemm")
    _, report = svd(model, data, rank=15)
    assert report.skips[0].reason.startswith("rank 15 of 16 (")
    assert report.skips[0].reason.endswith(" % of energy) saves no MACs")
    _, report = svd(model, data, macs=0.01, least=0.9)
    assert [skip.reason for skip in report.skips] == ["no rank that is allowed saves MACs"]


def test_sizes_that_the_model_leaves_open_are_those_of_the_data() -> None:
    text = "(float[N, 3, H, W] x) => (float[N, 16, h, w] y) { a = Conv <strides = [2, 2]> (x, v)  r = Relu (a)  y = Conv (r, w) }"
    model, data = build(text, v=random(16, 3, 3, 3), w=random(16, 16, 3, 3)), {"x": random(8, 3, 21, 21)}
    first, second = 16 * 27 * 100, 16 * 144 * 64
    _, report = svd(model, data, layers={"w": 4, "v": 0}, rank=1)
    assert report.metrics["macs_kept"] == pytest.approx(
        (first + second * (4 * 144 + 4 * 16) / (16 * 144)) / (first + second)
    )
    assert f" of {second:,} MACs saved" in report.edits[0].what  # per sample, as everywhere


@pytest.mark.parametrize(
    "options, message",
    [
        ({"rank": 3, "macs": 0.5}, "svd: rank and macs both choose ranks; give one of them"),
        ({"energy": 0.0}, "svd: energy must be above 0"),
        (
            {"method": "weight", "nonlinear": False},
            "svd: nonlinear is about method=response, and the method is weight; leave one of them out",
        ),
        (
            {"always": True},
            "svd: always splits what rank=, energy= or layers= choose, and macs= chooses only what saves MACs",
        ),
        ({"rank": 0}, "svd(rank=...) must be at least 1, not 0"),
    ],
)
def test_options_that_contradict_each_other_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError) as error:
        configure(Svd, options)
    assert str(error.value) == message


def test_only_responses_need_data() -> None:
    assert configure(Svd, {}).needs == ("calibrator",)
    assert configure(Svd, {"method": "weight"}).needs == configure(Svd, {"method": "spatial"}).needs == ()


def test_a_pattern_that_names_nothing_is_refused() -> None:
    model, data = layer("Gemm")
    with pytest.raises(UsageError, match=r"svd\(layers=\.\.\.\): no weight or layer is named 'v'"):
        svd(model, data, layers={"v": 3})


def test_responses_behind_a_branch_are_seen_without_what_comes_later() -> None:
    """The bodies of If read tensors of the graph around them; an input that only later nodes read is not
    asked for.
    """
    text = """(float[N, 12] x, float[N, 12] later) => (float[N, 12] y) {
        a = MatMul (x, v)  s = ReduceSum <keepdims = 0> (a)  c = Greater (s, zero)
        i = If (c) <then_branch = t () => (float[N, 12] p) { p = Neg (a) }, else_branch = e () => (float[N, 12] q) { q = Relu (a) }>
        m = MatMul (i, w)  y = Add (m, later) }"""
    model = build(text, v=low(12, 12, rank=2), w=low(12, 12, rank=2), zero=np.float32(0))
    data = {"x": random(60, 12), "later": random(60, 12)}
    part = model_up_to(export_model(import_model(model)), ["m"])
    assert [value.name for value in part.graph.input] == ["x"]
    assert [node.op_type for node in part.graph.node] == ["MatMul", "ReduceSum", "Greater", "If", "MatMul"]
    after, report = svd(model, data, rank=2)
    assert [edit.node for edit in report.edits] == ["MatMul_0", "MatMul_4"]
    assert deviation(model, after, data) < 1e-4


def test_half_of_a_split_layer_whose_other_half_is_gone_counts_for_itself() -> None:
    """tensor_train takes the first half; what is left of the layer is followed by another one, with no
    activation in between.
    """
    model = build(
        "(float[N, 64] x) => (float[N, 16] y) { a = MatMul (x, v)  y = MatMul (a, w) }",
        v=random(64, 64),
        w=random(64, 16),
    )
    halves, _ = svd(model, method="weight", layers={"v": 16, "w": 0})
    train, report = apply_pass(
        configure(TensorTrain, {"min_size": 1, "rank": 2, "layers": {"*second": 0, "w": 0}}),
        halves,
        Context(),
    )
    assert [edit.node for edit in report.edits] == ["MatMul_0_first"]
    graph = import_model(train)
    assert network_macs(graph, sized_shapes(train, {}), "svd") == (measure(train).macs,) * 2


def test_a_model_that_was_split_is_trained_and_quantized_like_any_other() -> None:
    model, data = network()
    split, _ = svd(model, data)
    context = Context(calibrator=StreamingCalibrator(Arrays(**data)))
    quantized, report = apply_pass(configure(Int8, {}), split, context)
    assert len(report.edits) > 3
    assert deviation(split, quantized, data) < 0.3
    assert trainable(split.graph)
