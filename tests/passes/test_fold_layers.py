"""fold: batch normalization, scale and shift go into the layer in front of them, or stay with a reason."""

import numpy as np
import pytest

from onnx_lathe import metadata
from tests.support.builders import build, random
from tests.support.folding import BN, CONV, FILLED, ONE, constants, difference, fold, normalization, ops


@pytest.mark.parametrize("bias", [False, True], ids=["no bias", "bias"])
@pytest.mark.parametrize(
    "layer, shape",
    [
        ("Conv (x, w{b})", (6, 4, 3, 3)),
        ("Conv <group = 2> (x, w{b})", (6, 2, 3, 3)),
        ("ConvTranspose (x, w{b})", (4, 6, 3, 3)),
        ("ConvTranspose <group = 2> (x, w{b})", (4, 3, 2, 2)),
    ],
    ids=["conv", "grouped conv", "transposed", "grouped transposed"],
)
def test_batch_normalization_goes_into_a_convolution(layer: str, shape: tuple[int, ...], bias: bool) -> None:
    parameters = normalization(6) | ({"b": random(6)} if bias else {})
    text = CONV.format(layer=layer.format(b=", b" if bias else ""), bn=BN)
    model = build(text, w=random(*shape), **parameters)
    folded, report = fold(model)
    assert len(ops(folded)) == 1
    assert folded.graph.node[0].output == ["y"]
    assert set(constants(folded)) == {"w", "b" if bias else "w_bias"}
    assert [edit.node for edit in report.edits] == [folded.graph.node[0].name]
    assert difference(model, folded) < 5e-6


@pytest.mark.parametrize("transposed", [0, 1])
@pytest.mark.parametrize("bias", [None, (5,), (1, 5), (1,)], ids=str)
def test_batch_normalization_goes_into_gemm(transposed: int, bias: tuple[int, ...] | None) -> None:
    attributes = f"alpha = 0.5, beta = 2.0, transB = {transposed}"
    gemm = f"c = Gemm <{attributes}> (x, w{'' if bias is None else ', b'})"
    parameters = normalization(5) | ({} if bias is None else {"b": random(*bias)})
    model = build(
        f"(float[N, 3] x) => (float[N, 5] y) {{ {gemm} {BN} }}",
        w=random(*((5, 3) if transposed else (3, 5))),
        **parameters,
    )
    folded, _ = fold(model)
    assert ops(folded) == ["Gemm"]
    assert difference(model, folded) < 5e-6


def test_weights_are_scaled_in_float64_and_rounded_once() -> None:
    model = build(
        CONV.format(layer="Conv (x, w, b)", bn=BN), w=random(6, 4, 3, 3), b=random(6), **normalization(6)
    )
    old = {name: value.astype(np.float64) for name, value in constants(model).items()}
    new = constants(fold(model)[0])
    factor = old["scale"] / np.sqrt(old["variance"] + np.float32(0.01))
    np.testing.assert_array_equal(new["w"], (old["w"] * factor[:, None, None, None]).astype(np.float32))
    np.testing.assert_array_equal(
        new["b"], (old["b"] * factor + (old["shift"] - old["mean"] * factor)).astype(np.float32)
    )


def test_zeros_stay_and_so_does_their_name() -> None:
    weight = random(6, 4, 3, 3)
    weight[weight < 0.5] = 0
    model = build(CONV.format(layer="Conv (x, w)", bn=BN), w=weight, **normalization(6))
    model.metadata_props.add(key=metadata.SPARSE, value=metadata.format_sparse({"w": "unstructured"}))
    folded, _ = fold(model)
    np.testing.assert_array_equal(constants(folded)["w"] == 0, weight == 0)
    assert metadata.read_sparse(folded.metadata_props) == {"w": "unstructured"}


def test_a_channel_scaled_by_zero_is_folded() -> None:
    parameters = normalization(6)
    parameters["scale"][2] = 0
    model = build(CONV.format(layer="Conv (x, w)", bn=BN), w=random(6, 4, 3, 3), **parameters)
    folded, _ = fold(model)
    assert not constants(folded)["w"][2].any()
    assert difference(model, folded) < 5e-6


def test_scale_and_shift_behind_a_convolution_fold_in_turn() -> None:
    text = "(float[N, 4, 8, 8] x) => (float[N, 6, 6, 6] y) { c = Conv (x, w)  m = Mul (k, c)  n = Add (m, a)  y = Mul (n, two) }"
    model = build(text, w=random(6, 4, 3, 3), k=random(6, 1, 1), a=random(1, 6, 1, 1), two=np.float32(2))
    folded, _ = fold(model)
    assert ops(folded) == ["Conv"]
    assert difference(model, folded) < 5e-6


def test_a_shift_alone_leaves_the_weight_as_it_is() -> None:
    text = "(float[N, 4, 8, 8] x) => (float[N, 6, 6, 6] y) { c = Conv (x, w)  y = Add (c, a) }"
    model = build(text, w=random(6, 4, 3, 3), a=random(6, 1, 1))
    folded, _ = fold(model)
    assert ops(folded) == ["Conv"]
    assert constants(folded)["w"].tobytes() == constants(model)["w"].tobytes()
    np.testing.assert_array_equal(constants(folded)["w_bias"], constants(model)["a"].reshape(-1))


@pytest.mark.parametrize("constant", [(1, 1, 6), (6, 6), (2, 1, 1, 1, 1), (1, 6, 6, 6)], ids=str)
def test_what_is_not_one_value_per_channel_stays(constant: tuple[int, ...]) -> None:
    rank = max(4, len(constant))
    text = f"(float[N, 4, 8, 8] x) => (float[{', '.join('ABCDE'[:rank])}] y) {{ c = Conv (x, w)  y = Mul (c, k) }}"
    model = build(text, w=random(6, 4, 3, 3), k=random(*constant))
    folded, report = fold(model)
    assert ops(folded) == ["Conv", "Mul"]
    assert not report.edits


def test_a_shared_bias_is_not_changed_under_the_other_layer() -> None:
    text = f"(float[N, 4, 8, 8] x) => (float[N, 6, 6, 6] y, float[N, 6, 6, 6] z) {{ c = Conv (x, w, b) {BN} z = Conv (x, v, b) }}"
    model = build(text, w=random(6, 4, 3, 3), v=random(6, 4, 3, 3), b=random(6), **normalization(6))
    folded, _ = fold(model)
    assert ops(folded) == ["Conv", "Conv"]
    assert difference(model, folded) < 5e-6


TWO = "(float[N, 4, 8, 8] x) => (float[N, 6, 6, 6] y, float[N, 6, 6, 6] z)"


@pytest.mark.parametrize(
    "text, reason",
    [
        (f"{TWO} {{ c = Conv (x, w) {BN} z = Conv (x, w) }}", "the weight of Conv_0 has another reader"),
        (f"{TWO} {{ c = Conv (x, w) {BN} z = Relu (c) }}", "the output of Conv_0 has another reader"),
        (
            f"{TWO} {{ z = Conv (x, w) {BN.replace('(c,', '(z,')} }}",
            "the output of Conv_0 has another reader",
        ),
        (
            f"{ONE} {{ d = Conv (x, w) c = Relu (d) {BN} }}",
            "its input is not the output of a Conv, ConvTranspose or Gemm",
        ),
        (
            f"{ONE} {{ k = {FILLED} (dims) c = Conv (x, k) {BN} }}",
            "the weight of Conv_1 is not a plain initializer",
        ),
        (
            f"{ONE} {{ b = {FILLED} (six) c = Conv (x, w, b) {BN} }}",
            "the bias of Conv_1 is not a plain initializer",
        ),
        (
            f"{ONE} {{ c = Conv (x, w) {BN.replace('variance)', 'negative)')} }}",
            "folded into Conv_0, it would hold infinity or NaN",
        ),
        (
            f"{ONE} {{ v = {FILLED} (six) c = Conv (x, w) {BN.replace('variance)', 'v)')} }}",
            "its parameters are not plain initializers",
        ),
        (
            f"{ONE} {{ c = Conv (x, w) {BN.replace('0.01', '0.01, training_mode = 1').replace('y =', 'y, m, n =')} }}",
            "it is in training form",
        ),
    ],
)
def test_batch_normalization_stays_with_a_reason(text: str, reason: str) -> None:
    more = {"negative": np.full(6, -1, np.float32), "dims": np.array([6, 4, 3, 3]), "six": np.array([6])}
    model = build(text, w=random(6, 4, 3, 3), **normalization(6), **more)
    folded, report = fold(model)
    assert "BatchNormalization" in ops(folded)
    assert [(skip.node.split("_")[0], skip.reason) for skip in report.skips] == [
        ("BatchNormalization", reason)
    ]
    assert not report.edits


def test_a_half_precision_weight_is_not_rounded_again() -> None:
    text = f"(float16[N, 4, 8, 8] x) => (float16[N, 6, 6, 6] y) {{ c = Conv (x, w) {BN} }}"
    model = build(text, w=random(6, 4, 3, 3).astype(np.float16), **normalization(6, np.float16))
    folded, report = fold(model)
    assert ops(folded) == ["Conv", "BatchNormalization"]
    assert report.skips[0].reason == "the weight of Conv_0 is float16: rounding again would cost accuracy"
