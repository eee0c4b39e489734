"""svd: what it refuses, and the reason that it gives."""

import numpy as np
import pytest

from onnx_lathe.errors import UsageError
from onnx_lathe.passes.core.options import configure
from onnx_lathe.passes.graph.model import export_model, import_model, set_sparse_tensors
from onnx_lathe.passes.svd.svd import Svd
from tests.support.builders import build, random
from tests.support.splitting import KINDS, layer, svd


def test_shared_weights_with_different_biases_are_refused() -> None:
    text = "(float[N, 16] x) => (float[N, 16] y) { a = Gemm (x, w, b)  y = Gemm (a, w, c) }"
    _, report = svd(build(text, w=random(16, 16), b=random(16), c=random(16)), {"x": random(20, 16)}, rank=3)
    assert [(skip.node, skip.reason) for skip in report.skips] == [
        ("Gemm_0", "its weight is shared by layers with different biases")
    ]


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


def test_a_pattern_that_names_nothing_is_refused() -> None:
    model, data = layer("Gemm")
    with pytest.raises(UsageError, match=r"svd\(layers=\.\.\.\): no weight or layer is named 'v'"):
        svd(model, data, layers={"v": 3})
