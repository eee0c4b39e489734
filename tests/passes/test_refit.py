"""refit: what may still change of a compressed network comes nearer to the original's answers; what was decided stays."""

from pathlib import Path

import numpy as np
import onnx
import pytest

from onnx_lathe import rewrite
from onnx_lathe.errors import PassError, UsageError
from onnx_lathe.optimizer.cli import main
from onnx_lathe.passes.core import contract
from onnx_lathe.passes.core.registry import find
from onnx_lathe.passes.core.services import Context
from onnx_lathe.passes.numerics.clustering.mantissa import round_mantissa
from onnx_lathe.passes.refit import Refit
from onnx_lathe.runtime.running import ort
from tests.support.answers import applied, context, errors, network, saved
from tests.support.builders import build, random
from tests.support.codebooks import constants, decoded, mixed

COMPRESSED = {
    "prune": ({"sparsity": 0.6, "min_size": 16}, 0.7),
    "codebook": ({"bits": 2, "min_size": 16}, 0.9),
    "int4": ({"group": 0, "min_size": 16}, 0.95),
}


@pytest.mark.parametrize("name", COMPRESSED)
def test_samples_that_were_not_seen_are_answered_nearer_to_the_original(name: str) -> None:
    options, least = COMPRESSED[name]
    model = network()
    where = context(model, x=mixed(160, 3, 8, 8))
    compressed, _ = applied(name, model, where, **options)
    fitted, report = applied("refit", compressed, where)
    before, after = errors(mixed(200, 3, 8, 8), model, compressed, fitted)
    assert after < least * before
    assert [node.op_type for node in fitted.graph.node] == [node.op_type for node in compressed.graph.node]
    assert all("answers" in edit.what for edit in report.edits)
    for weight in ("a", "d", "e", "c"):
        old, new = decoded(compressed, weight), decoded(fitted, weight)
        if name == "prune":
            assert ((old == 0) == (new == 0)).all()
        if name == "codebook":
            _, places = np.unique(old, return_inverse=True)
            assert len(np.unique(new)) <= 4
            assert all(
                len(np.unique(new.ravel()[places.ravel() == value])) == 1 for value in range(places.max() + 1)
            )
    if name == "int4":
        stored = [one for one in constants(compressed) if constants(compressed)[one].dtype.name == "int4"]
        assert stored
        assert all((constants(fitted)[one] == constants(compressed)[one]).all() for one in stored)
    again, second = applied("refit", fitted, where)
    assert len(second.edits) < len(report.edits)
    assert errors(mixed(200, 3, 8, 8), model, again)[0] < 1.1 * after


@pytest.mark.parametrize("bits", [0, 7])
def test_shared_values_keep_their_short_mantissas(bits: int) -> None:
    model = network()
    where = context(model, x=mixed(160, 3, 8, 8))
    compressed, _ = applied("codebook", model, where, bits=2, min_size=16, mantissa=bits)
    fitted, report = applied("refit", compressed, where)
    before, after = errors(mixed(200, 3, 8, 8), model, compressed, fitted)
    assert report.edits
    assert after < (1 if bits == 0 else 0.9) * before
    moved = [weight for weight in "adec" if (decoded(fitted, weight) != decoded(compressed, weight)).any()]
    assert moved or bits == 0
    for weight in "adec":
        values = decoded(fitted, weight)
        assert (round_mantissa(values, bits) == values).all()


def test_what_answers_as_the_original_does_is_left_alone() -> None:
    model = network()
    found, report = applied("refit", model, context(model, x=mixed(64, 3, 8, 8)))
    assert not report.edits
    assert found.SerializeToString() == model.SerializeToString()
    assert all("it answers as the original does" in skip.reason for skip in report.skips)


def test_a_layer_is_told_what_those_before_it_lost() -> None:
    # the second layer is whole, but its input is half of what it was: it makes up for that
    model = build(
        "(float[N, 8] x) => (float[N, 4] y) { h = Gemm (x, a)  y = Gemm (h, b) }",
        a=random(8, 6),
        b=random(6, 4),
    )
    halved = onnx.ModelProto()
    halved.CopyFrom(model)
    halved.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(constants(model)["a"] / 2, "a"))
    where = context(model, x=mixed(80, 8))
    found, report = applied("refit", halved, where, layers={"a": False})
    assert [edit.node for edit in report.edits] == ["Gemm_1"]
    assert errors(mixed(50, 8), model, found)[0] < 1e-3
    np.testing.assert_array_equal(constants(found)["a"], constants(halved)["a"])


def test_what_is_added_behind_a_product_stays_but_for_what_the_product_lost() -> None:
    model = build(
        "(float[N, 5, 24] x) => (float[N, 5, 60] y) { h = MatMul (x, w)  y = Add (h, b) }",
        w=random(24, 60),
        b=random(60) * 20,
    )
    where = context(model, x=mixed(200, 5, 24))
    compressed, _ = applied("prune", model, where, sparsity=0.5, min_size=16)
    fitted, _ = applied("refit", compressed, where)
    pruned, _ = applied("prune", model, where, sparsity=0.5, min_size=16, score="obs")
    before, after, other = errors(mixed(300, 5, 24), model, compressed, fitted, pruned)
    assert max(after, other) < before
    again, _ = applied("refit", fitted, where)
    assert errors(mixed(300, 5, 24), model, again)[0] < 1.02 * after
    for found in (fitted, pruned):
        np.testing.assert_allclose(constants(found)["b"], constants(model)["b"], atol=4)


def test_a_network_that_is_run_from_further_back_gives_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    model = network()
    where = context(model, x=mixed(64, 3, 8, 8))
    compressed, _ = applied("prune", model, where, sparsity=0.6, min_size=16)
    near, _ = applied("refit", compressed, where)
    monkeypatch.setattr("onnx_lathe.passes.graph.answers.walk.HELD_BYTES", 1)
    far, _ = applied("refit", compressed, where)
    for name, values in constants(near).items():
        np.testing.assert_allclose(constants(far)[name], values, rtol=1e-3, atol=1e-4, err_msg=name)


REFUSALS = [
    ("(float[N, 6] x) => (float[N, 6] y) { h = MatMul (x, w)  y = MatMul (h, w) }", {"w": (6, 6)}, "shared by several layers"),
    ("(float[N, 2, 5, 5] x) => (float[N, 3, 7, 7] y) { y = ConvTranspose (x, w) }", {"w": (2, 3, 3, 3)}, "ConvTranspose"),
    ("(float[N, 3, 4] x) => (float[N, 3, 5] y) { y = MatMul (x, w) }", {"w": (3, 4, 5)}, "batch of matrices"),
]  # fmt: skip


@pytest.mark.parametrize("text, weights, reason", REFUSALS)
def test_what_cannot_be_fitted_says_why(text: str, weights: dict[str, tuple[int, ...]], reason: str) -> None:
    model = build(text, **{name: random(*size) for name, size in weights.items()})
    shape = [int(one.dim_value) for one in model.graph.input[0].type.tensor_type.shape.dim[1:]]
    found, report = applied("refit", model, context(model, x=mixed(16, *shape)))
    assert found.SerializeToString() == model.SerializeToString()
    assert any(reason in skip.reason for skip in report.skips)


@pytest.mark.parametrize("name, options", [("refit", {}), ("prune", {"score": "obs", "min_size": 1})])
def test_a_bias_that_is_not_one_number_for_each_output_is_told_apart(
    name: str, options: dict[str, object]
) -> None:
    column = build(
        "(float[8, 6] x) => (float[8, 4] y) { y = Gemm (x, w, b) }", w=random(6, 4), b=random(8, 1)
    )
    decoded_bias = build(
        """(float[N, 2, 5, 5] x) => (float[N, 3, 3, 3] y) {
            b = DequantizeLinear (q, s)  y = Conv (x, w, b) }""",
        w=random(3, 2, 3, 3),
        q=np.array([90, -40, 70], np.int32),
        s=np.array(0.1, np.float32),
    )
    for model, shape, reason in (
        (column, (6,), "its bias is no number for each output channel"),
        (decoded_bias, (2, 5, 5), "its bias cannot be changed"),
    ):
        where = context(model, x=mixed(40, *shape))
        worse, _ = applied("prune", model, where, sparsity=0.5, min_size=1)
        _, report = applied(name, worse if name == "refit" else model, where, **options)
        assert any(
            reason in text
            for text in [*(one.what for one in report.edits), *(one.reason for one in report.skips)]
        )


def test_a_layer_that_the_original_does_not_have_or_has_in_another_form_is_named() -> None:
    text = "(float[N, 8] x) => (float[N, 4] y) { h = Gemm (x, a)  r = Relu (h)  y = Gemm (r, b) }"
    model = build(text, a=random(8, 6), b=random(6, 4))
    other = build(text.replace("h", "k"), a=random(8, 6), b=random(6, 4))
    narrow = build(text, a=random(8, 5), b=random(5, 4))
    for original, reason in ((other, "no tensor of this name"), (narrow, "which is another form")):
        _, report = applied("refit", model, context(original, x=mixed(40, 8)))
        assert [skip.node for skip in report.skips if reason in skip.reason] == ["Gemm_0"]


def test_values_that_are_not_finite_or_never_vary_leave_a_layer_as_it_is() -> None:
    model = build("(float[N, 4] x) => (float[N, 3] y) { y = Gemm (x, w) }", w=random(4, 3))
    worse = build("(float[N, 4] x) => (float[N, 3] y) { y = Gemm (x, w) }", w=random(4, 3))
    for fed, reason in ((np.zeros, "do not vary"), (lambda shape, kind: np.full(shape, np.nan, kind), "NaN")):
        found, report = applied("refit", worse, context(model, x=fed((40, 4), np.float32)))
        assert reason in report.skips[0].reason
        assert found.SerializeToString() == worse.SerializeToString()


def test_few_samples_are_warned_of_and_none_are_refused() -> None:
    model = network()
    where = context(model, x=mixed(6, 3, 8, 8))
    compressed, _ = applied("prune", model, where, sparsity=0.6, min_size=16)
    _, report = applied("refit", compressed, where)
    assert "6 calibration samples" in report.warnings[0]
    with pytest.raises(PassError, match="calibration"):
        applied("refit", compressed, Context(original=model))
    with pytest.raises(PassError, match="before the first step"):
        applied("refit", compressed, Context(calibrator=where.calibrator))
    with pytest.raises(UsageError, match="nothing_like_it"):
        applied("refit", compressed, where, layers={"nothing_like_it": False})


def test_from_the_command_line_without_labels(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = network()
    data = saved(model, tmp_path)
    passes = "prune(sparsity=0.6), refit"
    assert main([str(tmp_path / "m.onnx"), "--passes", passes, *data, "--out", str(tmp_path / "out")]) == 0
    said = capsys.readouterr().out
    assert "answers" in said
    final = onnx.load(tmp_path / "out" / "model.onnx")
    contract.check_structure(model, final, "refit")
    ort.session(final)
    after, before = errors(
        mixed(60, 3, 8, 8), model, final, onnx.load(tmp_path / "out" / "steps" / "01-prune.onnx")
    )
    assert after < before
    assert main([str(tmp_path / "m.onnx"), "--passes", "refit", "--out", str(tmp_path / "none")]) == 2
    assert "needs calibration data" in capsys.readouterr().err


def test_its_name_and_needs() -> None:
    assert Refit.needs == ("calibrator", "original")
    assert find("refit") is Refit


def test_in_memory_it_fits_to_the_model_that_was_given() -> None:
    """Behind another pass, without a run's folder: `rewrite` has the original at hand."""
    model, x = network(), mixed(160, 3, 8, 8)
    fitted = rewrite(model, "prune(sparsity=0.6, min_size=16), refit", data={"x": x})
    pruned = rewrite(model, "prune(sparsity=0.6, min_size=16)", data={"x": x})
    before, after = errors(mixed(200, 3, 8, 8), model, pruned, fitted)
    assert after < 0.7 * before
