"""codebook(rounding=hessian): layers answer as before as nearly as shared values let them, biases move, and what
cannot be measured has its nearest values.
"""

from pathlib import Path

import numpy as np
import onnx
import pytest

from onnx_lathe.errors import PassError, UsageError
from onnx_lathe.optimizer.step import apply_pass
from onnx_lathe.passes.codebook.codebook import Codebook
from onnx_lathe.passes.core import contract
from onnx_lathe.passes.core.options import configure
from onnx_lathe.passes.core.report import PassReport
from onnx_lathe.passes.core.services import Context
from onnx_lathe.passes.prune.prune import Prune
from onnx_lathe.runtime.running import ort
from onnx_lathe.runtime.running.calibration import StreamingCalibrator
from tests.support import answers
from tests.support.answers import applied, errors, network
from tests.support.builders import build, random, run
from tests.support.codebooks import HESSIAN, constants, context, decoded, mixed, share
from tests.support.int8 import Rows
from tests.support.models import load_foreign, shipped_with_onnx


def both(
    model: onnx.ModelProto, shape: tuple[int, ...], **options: object
) -> tuple[onnx.ModelProto, PassReport, float]:
    """The compensated model and its report; its error on other samples, of that by nearest values."""
    asked = {"centroids": 8, "min_size": 16, **options}
    plain, _ = share(model, **asked)
    found, report = share(model, context=context(x=mixed(200, *shape)), **{**asked, "rounding": "hessian"})
    x = mixed(300, *shape)
    wanted, one, other = (run(each, {"x": x})["y"] for each in (model, plain, found))
    return found, report, float(np.square(other - wanted).sum() / np.square(one - wanted).sum())


LAYERS = [
    ("(float[N, 24] x) => (float[N, 60] y) { y = Gemm (x, w, b) }", (24,), {"w": (24, 60), "b": (60,)}),
    ("(float[N, 24] x) => (float[N, 60] y) { y = Gemm <transB = 1> (x, w) }", (24,), {"w": (60, 24)}),
    ("(float[N, 5, 24] x) => (float[N, 5, 60] y) { h = MatMul (x, w) y = Add (h, b) }", (5, 24), {"w": (24, 60), "b": (60,)}),
    ("(float[N, 4, 6, 6] x) => (float[N, 12, 4, 4] y) { y = Conv (x, w, b) }", (4, 6, 6), {"w": (12, 4, 3, 3), "b": (12,)}),
    ("(float[N, 4, 6, 6] x) => (float[N, 48, 4, 4] y) { y = Conv <group = 2> (x, w) }", (4, 6, 6), {"w": (48, 2, 3, 3)}),
    ("(float[N, 4, 9] x) => (float[N, 80, 5] y) { y = Conv <pads = [1, 1], strides = [2]> (x, w) }", (4, 9), {"w": (80, 4, 3)}),
]  # fmt: skip


@pytest.mark.parametrize("text, shape, weights", LAYERS)
def test_layers_answer_nearer_to_before_on_samples_that_were_not_seen(
    text: str, shape: tuple[int, ...], weights: dict[str, tuple[int, ...]]
) -> None:
    model = build(text, **{name: random(*size) for name, size in weights.items()})
    found, report, error = both(model, shape)
    assert error < 0.75
    assert len(np.unique(decoded(found, "w"))) <= 8
    (edit,) = report.edits
    assert "shared values" in edit.what
    assert "dB by nearest values" in edit.what


def test_a_network_keeps_its_structure_and_its_outputs_come_nearer() -> None:
    text = """(float[N, 3, 8, 8] x) => (float[N, 10] y) {
        h = Conv <pads = [1, 1, 1, 1]> (x, a, ab)  r = Relu (h)  i = Conv <group = 64> (r, d, db)  s = Relu (i)
        f = Flatten (s)  y = Gemm <transB = 1> (f, c, cb) }"""
    weights = {"a": random(64, 3, 3, 3), "ab": random(64), "d": random(64, 1, 3, 3), "db": random(64)}
    model = build(text, 21, **weights, c=random(10, 2304), cb=random(10))
    found, report, error = both(model, (3, 8, 8))
    assert error < 0.5
    assert [node.op_type for node in found.graph.node if node.op_type not in ("Cast", "Gather")] == [
        node.op_type for node in model.graph.node
    ]
    moved = {name for name in ("ab", "db", "cb") if (constants(found)[name] != constants(model)[name]).any()}
    assert moved == {"ab", "db", "cb"}
    assert {edit.node for edit in report.edits} == {"Conv_0", "Conv_2", "Gemm_5"}
    again, second = share(found, context=context(x=mixed(20, 3, 8, 8)), **HESSIAN)
    assert not second.edits
    assert again.SerializeToString() == found.SerializeToString()


def test_a_tradeoff_counts_error_of_responses_and_groups_have_values_of_their_own() -> None:
    model = build(
        LAYERS[3][0],
        w=random(12, 4, 3, 3) * np.float32(np.repeat([1, 20], 6))[:, None, None, None],
        b=random(12),
    )
    plain, _, _ = both(model, (4, 6, 6), centroids=16)
    priced, report, _ = both(model, (4, 6, 6), centroids=16, tradeoff=0.05)
    counts = [np.unique(decoded(one, "w"), return_counts=True)[1] / 432 for one in (plain, priced)]
    entropies = [-(share * np.log2(share)).sum() for share in counts]
    assert entropies[1] < entropies[0] - 0.3
    assert report.metrics["entropy_bits"] == pytest.approx(entropies[1], rel=1e-3)
    grouped, _, error = both(model, (4, 6, 6), centroids=8, share="channel_group", groups=2)
    assert error < 0.9
    assert all(len(np.unique(part)) <= 8 for part in np.split(decoded(grouped, "w"), 2))


def test_zeros_stay_and_mantissas_and_biases_are_rounded() -> None:
    model = build(LAYERS[3][0], w=random(12, 4, 3, 3), b=random(12))
    seen = context(x=mixed(100, 4, 6, 6))
    pruned = {"sparsity": 0.5, "min_size": 1}
    zero, _ = share(model, (Prune, pruned), centroids=256, layers={"*": 0})
    after, _ = share(model, (Prune, pruned), context=seen, centroids=8, mantissa=4, biases=2, **HESSIAN)
    np.testing.assert_array_equal(decoded(after, "w") == 0, constants(zero)["w"] == 0)
    found = constants(after)
    assert not (found["w_codebook"].view(np.uint32) & 0x7FFFF).any()
    assert len(np.unique(found["b"])) <= 4
    assert not (found["b"].view(np.uint32) & 0x7FFFF).any()


def test_a_bias_that_others_read_stays_and_the_layer_gets_its_own() -> None:
    text = "(float[N, 24] x) => (float[N, 60] y, float[N, 60] z) { y = Gemm (x, w, b)  z = Add (y, b) }"
    model = build(text, w=random(24, 60), b=random(60))
    after, _ = share(model, context=context(x=mixed(100, 24)), **HESSIAN)
    np.testing.assert_array_equal(constants(after)["b"], constants(model)["b"])
    layer = next(node for node in after.graph.node if node.op_type == "Gemm")
    assert layer.input[2] != "b"


@pytest.mark.parametrize(
    "text, weights, x, reason",
    [
        (
            "(float[N, 4, 6, 6] x) => (float[N, 6, 8, 8] y) { y = ConvTranspose (x, w) }",
            {"w": (4, 6, 3, 3)}, (4, 6, 6), "what ConvTranspose makes of its inputs is not measured",
        ),
        (
            "(float[N, 3, 8] x) => (float[N, 3, 9] y) { y = MatMul (x, w) }",
            {"w": (3, 8, 9)}, (3, 8), "it is a batch of matrices",
        ),
        (
            "(float[N, 8] x) => (float[N, 90] y) { z = Sub (x, x)  y = Gemm (z, w) }",
            {"w": (8, 90)}, (8,), "its inputs are 0 on calibration data",
        ),
        (
            "(float[N, 8] x) => (float[N, 90] y) { z = Sub (x, x)  i = Reciprocal (z)  y = Gemm (i, w) }",
            {"w": (8, 90)}, (8,), "its inputs are NaN or infinite on calibration data",
        ),
        (
            "(float[N, 28] x) => (float[N, 28] y) { h = Gemm (x, w)  y = MatMul (h, w) }",
            {"w": (28, 28)}, (28,), "its layers are of several kinds",
        ),
    ],
)  # fmt: skip
def test_what_cannot_be_measured_has_its_nearest_values_and_says_why(
    text: str, weights: dict[str, tuple[int, ...]], x: tuple[int, ...], reason: str
) -> None:
    model = build(text, **{name: random(*size) for name, size in weights.items()})
    plain, _ = share(model, centroids=8, min_size=16)
    found, report = share(model, context=context(x=mixed(40, *x)), centroids=8, **HESSIAN)
    np.testing.assert_array_equal(decoded(found, "w"), decoded(plain, "w"))
    assert f"nearest values: {reason}" in report.edits[0].what


def test_where_nearest_values_are_as_good_they_are_taken() -> None:
    values = np.float32([-2, -1, 1, 3])[np.random.default_rng(1).integers(0, 4, (24, 60))]
    found, report = share(
        build(LAYERS[0][0], w=values, b=random(60)), context=context(x=mixed(80, 24)), **HESSIAN
    )
    np.testing.assert_array_equal(decoded(found, "w"), values)
    assert "nearest values: compensation finds nothing better" in report.edits[0].what


@pytest.mark.parametrize(
    "options, other",
    [({"min_sqnr": 20.0}, "min_sqnr"), ({"training": {"epochs": 1}}, "training"), ({"share": "network"}, "share=network")],
)  # fmt: skip
def test_options_that_do_not_go_together_are_refused(options: dict[str, object], other: str) -> None:
    with pytest.raises(UsageError, match=f"rounding=hessian does not go with {other}; leave one of them out"):
        configure(Codebook, {"rounding": "hessian", **options})


def test_it_needs_calibration_data() -> None:
    instance = configure(Codebook, HESSIAN)
    assert instance.needs == ("calibrator",)
    with pytest.raises(PassError, match="needs calibration data; give --data or --calibration"):
        apply_pass(instance, build(LAYERS[0][0], w=random(24, 60), b=random(60)), Context())


def test_what_was_measured_of_a_network_is_not_measured_again() -> None:
    model = build(LAYERS[3][0], 21, w=random(12, 4, 3, 3), b=random(12))
    calibrator = StreamingCalibrator(Rows(x=mixed(50, 4, 6, 6)))
    runs: list[str] = []
    calibrator.progress = runs.append
    for tradeoff in (0.0, 0.1):
        share(model, context=Context(calibrator=calibrator), tradeoff=tradeoff, **HESSIAN)
        first, runs[:] = list(runs), []
    assert first == []


MODELS = [
    *shipped_with_onnx("light/light_squeezenet.onnx"),
    *shipped_with_onnx("light/light_shufflenet.onnx"),
    *shipped_with_onnx("pytorch-converted/test_Conv*/model.onnx")[::5],
    *shipped_with_onnx("pytorch-converted/test_Linear*/model.onnx"),
]


@pytest.mark.parametrize(
    "path", MODELS, ids=lambda path: path.stem if path.stem != "model" else path.parent.name
)
def test_contract_on_models_of_others(path: Path) -> None:
    model = load_foreign(path, thinner=8 if path.parent.name == "light" else 1)
    feeds = ort.random_feeds(ort.session(model), batch=2)
    instance = configure(Codebook, {**HESSIAN, "centroids": 8, "min_size": 4})
    after, report = apply_pass(instance, model, context(**feeds))
    if not report.edits:
        assert after is model
        return
    contract.check_structure(model, after, "codebook")
    before, now = (ort.run(ort.session(one), feeds) for one in (model, after))
    assert {key: value.shape for key, value in before.items()} == {
        key: value.shape for key, value in now.items()
    }


def test_in_sequence_a_layer_makes_up_for_those_before_it() -> None:
    model, x = network(), mixed(200, 3, 8, 8)
    where = answers.context(model, x=mixed(160, 3, 8, 8))
    options = {"bits": 3, "min_size": 16}
    plain, _ = applied("codebook", model, where, **options)
    alone, _ = applied("codebook", model, where, **options, rounding="hessian")
    found, report = applied("codebook", model, where, **options, rounding="hessian", sequential=True)
    fitted, _ = applied("refit", found, where)
    nearest, apart, together, behind = errors(x, model, plain, alone, found, fitted)
    assert together < 0.95 * apart < 0.5 * nearest
    assert behind < 1.02 * together
    assert all(len(np.unique(decoded(found, weight))) <= 8 for weight in ("a", "d", "e", "c"))
    assert all(
        "dB by nearest values" in edit.what and "signal to noise" in edit.what for edit in report.edits
    )
    contract.check_structure(model, found, "codebook")
    ort.session(found)


def test_in_sequence_zeros_stay_groups_have_their_own_values_and_a_tradeoff_counts() -> None:
    model = network()
    where = answers.context(model, x=mixed(160, 3, 8, 8))
    pruned, _ = applied("prune", model, where, sparsity=0.5, min_size=16)
    options = {"bits": 4, "min_size": 16, "rounding": "hessian", "sequential": True, "mantissa": 7}
    found, _ = applied("codebook", pruned, where, **options, share="channel_group", groups=2)
    for weight in ("a", "d", "e", "c"):
        np.testing.assert_array_equal(decoded(found, weight) == 0, constants(pruned)[weight] == 0)
    halves = np.split(decoded(found, "c"), 2, axis=1)
    assert all(len(np.unique(half)) <= 16 for half in halves)
    assert not (decoded(found, "c").view(np.uint32) & 0xFFFF).any()
    priced, report = applied("codebook", pruned, where, **options, tradeoff=0.05)
    assert report.metrics["entropy_bits"] < report.metrics["nearest_entropy_bits"]
    assert errors(mixed(100, 3, 8, 8), pruned, found, priced)[0] < 0.1


def test_in_sequence_what_cannot_be_measured_or_takes_no_less_space_says_so() -> None:
    model = build(
        "(float[N, 4, 6, 6] x) => (float[N, 6, 8, 8] y) { y = ConvTranspose (x, w) }", w=random(4, 6, 3, 3)
    )
    options = {"centroids": 8, "min_size": 16, "rounding": "hessian", "sequential": True}
    _, report = applied("codebook", model, answers.context(model, x=mixed(40, 4, 6, 6)), **options)
    assert "nearest values: what ConvTranspose makes of its inputs is not measured" in report.edits[0].what
    small = build("(float[N, 6] x) => (float[N, 4] y) { y = Gemm (x, w, b) }", w=random(6, 4), b=random(4))
    found, report = applied("codebook", small, answers.context(small, x=mixed(40, 6)), **options)
    assert found is small
    assert "its 96 bytes would become" in report.skips[0].reason
    with pytest.raises(UsageError, match="sequential is about rounding=hessian"):
        configure(Codebook, {"sequential": True})
