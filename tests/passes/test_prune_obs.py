"""prune(score=obs) and prune_nm(score=obs): zeros chosen by what layers answer, and weights that make up for them."""

import numpy as np
import onnx
import pytest

from onnx_lathe.errors import PassError, UsageError
from onnx_lathe.passes.core.options import configure
from onnx_lathe.passes.core.registry import find
from onnx_lathe.passes.core.services import Context
from onnx_lathe.passes.graph.model import import_model, sparse_tensors
from tests.support.answers import applied, context, errors, network
from tests.support.builders import build, random
from tests.support.codebooks import constants, mixed

WEIGHTS = ("a", "d", "e", "c")


def zeros(model: onnx.ModelProto) -> dict[str, float]:
    values = constants(model)
    return {name: float((values[name] == 0).mean()) for name in WEIGHTS}


@pytest.mark.parametrize("scope", ["layer", "global"])
def test_as_many_zeros_cost_the_outputs_less_than_by_magnitude(scope: str) -> None:
    model = network()
    where = context(model, x=mixed(160, 3, 8, 8))
    options = {"sparsity": 0.6, "min_size": 16, "scope": scope, "clean": False}
    plain, _ = applied("prune", model, where, **options)
    found, report = applied("prune", model, where, **options, score="obs")
    before, after = errors(mixed(200, 3, 8, 8), model, plain, found)
    assert after < 0.5 * before
    share = sum(zeros(found)[name] * constants(model)[name].size for name in WEIGHTS) / sum(
        constants(model)[name].size for name in WEIGHTS
    )
    assert 0.6 - 1e-3 <= share < 0.62
    if scope == "layer":
        np.testing.assert_allclose(list(zeros(found).values()), 0.6, atol=0.01)
    else:
        assert max(zeros(found).values()) - min(zeros(found).values()) > 0.05
    assert set(sparse_tensors(import_model(found))) == {name for name in WEIGHTS if zeros(found)[name]}
    assert any("answers" in edit.what for edit in report.edits)
    # of a depthwise convolution no channel is emptied
    assert (constants(found)["d"] != 0).any(axis=(1, 2, 3)).all()


def test_an_output_that_never_varies_is_left_out_and_hides_no_other() -> None:
    model = network()
    where = context(model, x=mixed(80, 3, 8, 8))
    options = {"sparsity": 0.6, "min_size": 16, "scope": "global", "score": "obs", "clean": False}
    alone, quiet = applied("prune", model, where, **options)
    model.graph.node.append(onnx.helper.make_node("Sub", ["x", "x"], ["z"]))
    model.graph.output.append(onnx.helper.make_tensor_value_info("z", onnx.TensorProto.FLOAT, ["N", 3, 8, 8]))
    found, report = applied("prune", model, context(model, x=mixed(80, 3, 8, 8)), **options)
    assert zeros(found) == pytest.approx(zeros(alone), abs=0.02)
    assert report.warnings == [
        *quiet.warnings,
        "prune does not see what the output z loses: it never varies on calibration data",
    ]


def test_zeros_that_are_there_stay_and_layers_with_fractions_of_their_own_have_them() -> None:
    model = network()
    where = context(model, x=mixed(80, 3, 8, 8))
    once, _ = applied("prune", model, where, sparsity=0.3, min_size=16)
    found, _ = applied(
        "prune", once, where, sparsity=0.6, min_size=16, score="obs", layers={"a": 0.0, "e": 0.8}
    )
    assert zeros(found)["a"] == pytest.approx(zeros(once)["a"])
    assert zeros(found)["e"] == pytest.approx(0.8, abs=0.01)
    for name in WEIGHTS:
        assert not constants(found)[name][constants(once)[name] == 0].any()


def test_two_of_four_by_answers() -> None:
    model = network()
    where = context(model, x=mixed(160, 3, 8, 8))
    options = {"n": 2, "m": 4, "min_size": 16}
    plain, _ = applied("prune_nm", model, where, **options)
    found, report = applied("prune_nm", model, where, **options, score="obs")
    before, after = errors(mixed(200, 3, 8, 8), model, plain, found)
    assert after < 0.6 * before
    for name in ("e", "c"):
        values = constants(found)[name]
        groups = np.moveaxis(values, 1 if name == "e" else 0, -1).reshape(-1, 4)
        assert ((groups != 0).sum(axis=1) <= 2).all()
        assert sparse_tensors(import_model(found))[name] == "2:4"
    assert [skip.node for skip in report.skips] == [
        skip.node for skip in applied("prune_nm", model, where, **options)[1].skips
    ]


def test_what_cannot_be_measured_is_pruned_by_magnitude_and_says_so() -> None:
    model = build(
        "(float[N, 8, 5, 5] x) => (float[N, 6, 7, 7] y) { y = ConvTranspose (x, w) }", w=random(8, 6, 3, 3)
    )
    where = context(model, x=mixed(40, 8, 5, 5))
    found, report = applied("prune", model, where, score="obs", sparsity=0.5)
    plain, _ = applied("prune", model, where, sparsity=0.5)
    np.testing.assert_array_equal(constants(found)["w"], constants(plain)["w"])
    assert "by magnitude: what ConvTranspose makes of its inputs is not measured" in report.edits[0].what


def test_more_zeros_than_can_be_shared_out_and_few_samples_are_warned_of() -> None:
    model = network()
    _, report = applied(
        "prune",
        model,
        context(model, x=mixed(8, 3, 8, 8)),
        sparsity=0.97,
        scope="global",
        score="obs",
        min_size=16,
    )
    assert any("every layer loses the same share" in warning for warning in report.warnings)
    assert any("8 calibration samples" in warning for warning in report.warnings)


@pytest.mark.parametrize(
    "options, words",
    [({"training": {"epochs": 1}}, "retrain step behind it"), ({"sensitivity": True}, "sensitivity")],
)
def test_options_that_do_not_go_together(options: dict[str, object], words: str) -> None:
    with pytest.raises(UsageError, match=words):
        configure(find("prune"), {"score": "obs", **options})


def test_it_needs_calibration_data() -> None:
    for name in ("prune", "prune_nm"):
        assert "calibrator" in configure(find(name), {"score": "obs"}).needs
        assert not configure(find(name), {}).needs
        with pytest.raises(PassError, match="calibration"):
            applied(name, network(), Context(), score="obs")
