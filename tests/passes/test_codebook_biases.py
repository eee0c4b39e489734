"""codebook: biases with few distinct values, and codebooks of earlier steps rounded; both stay where they
are.
"""

import numpy as np
import onnx
import pytest

from onnx_lathe.passes.numerics.clustering.mantissa import round_mantissa
from tests.support.builders import build, random, run
from tests.support.codebooks import constants, decoded, share, two_layers

THREE_KINDS = """(float[N, 4, 6, 6] x) => (float[N, 6, 4, 4] y, float[N, 30] z) {
    y = Conv (x, w, conv_bias)
    f = Flatten (x)
    h = MatMul (f, v)
    i = Add (add_bias, h)
    z = Gemm (i, u, gemm_bias)
}"""


def three_kinds() -> onnx.ModelProto:
    weights = {"w": random(6, 4, 3, 3), "v": random(144, 40), "u": random(40, 30)}
    return build(
        THREE_KINDS, 21, **weights, conv_bias=random(6), add_bias=random(1, 40), gemm_bias=random(30)
    )


def test_biases_are_left_alone_by_default() -> None:
    model = three_kinds()
    after, _ = share(model)
    for name in ("conv_bias", "add_bias", "gemm_bias"):
        np.testing.assert_array_equal(constants(after)[name], constants(model)[name])


def test_each_bias_has_few_distinct_values_in_place() -> None:
    model = three_kinds()
    after, report = share(model, biases=2, layers={"*": 4})
    before, now = constants(model), constants(after)
    plain, _ = share(model, layers={"*": 4})
    assert [node.op_type for node in after.graph.node] == [node.op_type for node in plain.graph.node]
    for name in ("conv_bias", "add_bias", "gemm_bias"):
        assert now[name].dtype == np.float32
        assert now[name].shape == before[name].shape
        values = np.unique(now[name])
        assert values.size == 4
        nearest = np.abs(before[name][..., None].astype(np.float64) - values).min(axis=-1)
        np.testing.assert_allclose(np.abs(now[name].astype(np.float64) - before[name]), nearest, atol=1e-12)
        assert any(edit.what.startswith(f"bias {name}: 4 distinct values, ") for edit in report.edits)
    x = random(2, 4, 6, 6)
    z = (x.reshape(2, -1) @ decoded(after, "v") + now["add_bias"]) @ decoded(after, "u") + now["gemm_bias"]
    np.testing.assert_allclose(run(after, {"x": x})["z"], z, rtol=1e-4, atol=1e-3)


def test_biases_belong_last_and_can_be_a_step_of_their_own() -> None:
    once, _ = share(two_layers(), bits=3)
    after, report = share(once, biases=3)
    assert [(edit.node, edit.what.split(",")[0]) for edit in report.edits] == [
        ("Gemm_2", "bias bias: 8 distinct values")
    ]
    assert [skip.reason for skip in report.skips] == ["its weight is a codebook already"] * 2
    for name in ("a_codebook", "b_codebook", "a_indices", "b_indices"):
        np.testing.assert_array_equal(constants(after)[name], constants(once)[name])
    again, report = share(after, biases=3)
    assert report.edits == []
    assert report.skips[-1].reason == "its bias has 8 distinct values already"
    assert again.SerializeToString() == after.SerializeToString()


def test_a_mantissa_rounds_codebooks_and_biases_in_place() -> None:
    once, _ = share(two_layers(), bits=3, tradeoff=0.01)
    after, report = share(once, biases=3, mantissa=4)
    for name in ("a_codebook", "b_codebook"):
        np.testing.assert_array_equal(constants(after)[name], round_mantissa(constants(once)[name], 4))
        assert (constants(after)[name] != constants(once)[name]).any()
    np.testing.assert_array_equal(constants(after)["bias"], round_mantissa(constants(after)["bias"], 4))
    assert [edit.what.split(":")[0] for edit in report.edits] == [
        "codebook a_codebook",
        "codebook b_codebook",
        "bias bias",
    ]
    again, report = share(after, biases=3, mantissa=4)
    assert report.edits == []
    assert again.SerializeToString() == after.SerializeToString()


@pytest.mark.parametrize("options", [{"share": "network"}, {"share": "channel_group"}])
def test_shared_codebooks_are_rounded_too(options: dict[str, object]) -> None:
    once, _ = share(two_layers(), **options)
    after, report = share(once, mantissa=3)
    books = {name: value for name, value in constants(after).items() if "codebook" in name}
    assert len(books) == (1 if options["share"] == "network" else 8)
    for value in books.values():
        np.testing.assert_array_equal(value, round_mantissa(value, 3))
    wanted = ["codebook codebook: 16 distinct"] if len(books) == 1 else ["4 codebooks: up to"] * 2
    assert [edit.what.startswith(what) for edit, what in zip(report.edits, wanted, strict=True)] == [
        True
    ] * len(wanted)


def test_the_zero_of_a_rounded_codebook_stays_zero() -> None:
    weight = np.where(random(40, 50) > 1, random(40, 50), np.float32(0))
    once, _ = share(
        build("(float[N, 40] x) => (float[N, 50] y) { y = MatMul (x, w) }", 21, w=weight),
        centroids=9,
        method="exact",
    )
    zeros = decoded(once, "w") == 0
    after, _ = share(once, mantissa=0)
    np.testing.assert_array_equal(decoded(after, "w") == 0, zeros)


def test_a_layer_that_stays_as_it_is_keeps_its_bias() -> None:
    model = two_layers()
    after, report = share(model, biases=2, layers={"b": 0})
    np.testing.assert_array_equal(constants(after)["bias"], constants(model)["bias"])
    assert [skip.reason for skip in report.skips] == ["its bits are set to 0"]


def test_a_codebook_that_stays_as_it_is_is_not_rounded() -> None:
    once, _ = share(two_layers(), bits=3)
    after, report = share(once, mantissa=2, layers={"a": 0})
    np.testing.assert_array_equal(constants(after)["a_codebook"], constants(once)["a_codebook"])
    assert [edit.node for edit in report.edits] == ["Gemm_2"]


def test_an_empty_bias_is_refused() -> None:
    text = "(float[N, 40] x) => (float[N, 50] y, float[N, 0] z) { y = MatMul (x, w) z = Gemm (x, e, none) }"
    _, report = share(build(text, 21, w=random(40, 50), e=random(40, 0), none=random(0)), biases=2)
    assert [skip.reason for skip in report.skips] == ["its weight is empty", "its bias is empty"]


@pytest.mark.parametrize(
    "outputs, node, reason",
    [
        (", float[50] bias", "", "its bias is an output of the model"),
        (", float[50] other", "other = Mul (bias, bias)", "its bias is also read by Mul_1"),
    ],
)
def test_a_bias_with_another_use_is_refused(outputs: str, node: str, reason: str) -> None:
    text = f"(float[N, 40] x) => (float[N, 50] y{outputs}) {{ y = Gemm (x, w, bias) {node} }}"
    model = build(text, 21, w=random(40, 50), bias=random(50))
    after, report = share(model, biases=2)
    np.testing.assert_array_equal(constants(after)["bias"], constants(model)["bias"])
    assert [(skip.node, skip.reason) for skip in report.skips] == [("Gemm_0", reason)]


def test_a_bias_that_is_not_finite_is_refused() -> None:
    bias = random(50)
    bias[3] = np.nan
    model = build(
        "(float[N, 40] x) => (float[N, 50] y) { y = Gemm (x, w, bias) }", 21, w=random(40, 50), bias=bias
    )
    _, report = share(model, biases=2)
    assert [skip.reason for skip in report.skips] == ["its bias has NaN or infinite elements"]


def test_a_residual_addition_is_no_bias() -> None:
    model = build(
        "(float[N, 40] x) => (float[N, 40] y) { h = MatMul (x, w) y = Add (h, x) }", 21, w=random(40, 40)
    )
    _, report = share(model, biases=2)
    assert len(report.edits) == 1
    assert report.skips == []
