"""Trials of a search whose pass makes up in each layer, and its bias, for what it changes."""

import numpy as np
import pytest

from onnx_lathe.optimizer.recipe import parse_calls
from onnx_lathe.optimizer.search.layerwise import Composer
from onnx_lathe.optimizer.search.space import Space
from onnx_lathe.optimizer.search.strengths import COMPENSATED_TRADEOFFS, VALUES, default_space
from onnx_lathe.optimizer.step import apply_pass
from onnx_lathe.passes.core.options import configure
from onnx_lathe.passes.core.registry import find
from onnx_lathe.passes.core.services import Context
from onnx_lathe.passes.numerics.second_order.moments import response_energy
from onnx_lathe.runtime.running.calibration import StreamingCalibrator
from tests.support.builders import build, random, run
from tests.support.codebooks import constants
from tests.support.int8 import Rows


def test_candidates_of_layers_that_compensate_are_what_the_pass_makes() -> None:
    """Weights and biases; and harm is that of what the layer answers, which the bias has no part in."""
    network = (
        "(float[N, 12] x) => (float[N, 8] y) { h = Gemm (x, w1, b1)  r = Relu (h)  y = Gemm (r, w2, b2) }"
    )
    model = build(network, w1=random(12, 48), b1=random(48), w2=random(48, 8), b2=random(8))
    context = Context(calibrator=StreamingCalibrator(Rows(x=random(60, 12) + 1)))
    steps = parse_calls("codebook(rounding=hessian, min_size=16)", "passes")
    whole = Space(steps, default_space(steps, model, packed=True))
    assert {one.levels for one in whole.dimensions} == {VALUES, COMPENSATED_TRADEOFFS}
    composer = Composer.of(model, whole, context=lambda: context)
    assert composer is not None
    settings = {one.name: one.levels[6 + number % 2] for number, one in enumerate(whole.dimensions)}
    made = composer.candidate(settings)
    (step,) = whole.calls(settings)
    by_itself, _ = apply_pass(configure(find(step.name), step.options), model, context)
    x = random(50, 12) + 1
    np.testing.assert_allclose(run(made, {"x": x})["y"], run(by_itself, {"x": x})["y"], rtol=1e-5, atol=1e-5)
    single = composer.single()
    nothing = dict.fromkeys(settings, 0)
    untouched = single.candidate(nothing)
    np.testing.assert_array_equal(run(untouched, {"x": x})["y"], run(model, {"x": x})["y"])
    one = single.candidate({**nothing, **{name: value for name, value in settings.items() if "w2" in name}})
    values = constants(one)
    np.testing.assert_array_equal(values["b1"], constants(model)["b1"])
    assert (values["b2"] != constants(model)["b2"]).any()
    weaker = {name: 64 if "centroids" in name else 0.0 for name in settings}
    assert composer.harm("w1", composer.layer("w1", weaker)) < composer.harm(
        "w1", composer.layer("w1", settings)
    )
    rows, covariance = composer._moments["w1"]
    assert covariance.dtype == np.float32
    change = np.asarray(composer.layer("w1", settings).values, np.float64) - constants(model)["w1"]
    exactly = response_energy(rows.of(change), covariance.astype(np.float64))
    assert composer.harm("w1", composer.layer("w1", settings)) == pytest.approx(exactly, rel=1e-5)


def test_layers_without_a_bias_of_their_own_are_not_composed() -> None:
    model = build("(float[N, 12] x) => (float[N, 48] y) { y = Gemm (x, w1) }", w1=random(12, 48))
    for passes in ("codebook(rounding=hessian)", "prune, codebook(rounding=hessian)"):
        steps = parse_calls(passes, "passes")
        whole = Space(steps, default_space(steps, model, packed=True))
        assert Composer.of(model, whole) is None


def test_a_bias_of_another_size_is_not_composed() -> None:
    """It becomes another tensor, of a number for each channel."""
    text = "(float[N, 12] x) => (float[N, 48] y) { h = MatMul (x, w1)  y = Add (h, b1) }"
    steps = parse_calls("codebook(rounding=hessian)", "passes")
    for size, composed in ((48, True), (1, False)):
        model = build(text, w1=random(12, 48), b1=random(size))
        whole = Space(steps, default_space(steps, model, packed=True))
        assert (Composer.of(model, whole) is not None) is composed


def test_layers_that_make_up_for_those_before_them_are_not_composed() -> None:
    text = "(float[N, 12] x) => (float[N, 48] y) { y = Gemm (x, w1, b1) }"
    model = build(text, w1=random(12, 48), b1=random(48))
    for passes, composed in (
        ("codebook(rounding=hessian)", True),
        ("codebook(rounding=hessian, sequential=true)", False),
        ("prune", True),
        ("prune(score=obs)", False),
    ):
        steps = parse_calls(passes, "passes")
        whole = Space(steps, default_space(steps, model, packed=True))
        assert (Composer.of(model, whole) is not None) is composed
