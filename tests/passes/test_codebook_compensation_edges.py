"""codebook(rounding=hessian) where layers, biases and calibration data are not the usual ones."""

import numpy as np
import onnx
import pytest

from onnx_lathe.passes.core.services import Context
from onnx_lathe.passes.graph import input_moments
from onnx_lathe.passes.graph.input_moments import rows_of
from onnx_lathe.passes.graph.layers import weights
from onnx_lathe.passes.graph.model import import_model
from onnx_lathe.runtime.running import calibration
from onnx_lathe.runtime.running.calibration import StreamingCalibrator
from tests.support.builders import build, random, run
from tests.support.codebooks import HESSIAN, constants, context, decoded, mixed, share
from tests.support.int8 import Rows

GEMM = "(float[N, 24] x) => (float[N, 60] y) { y = Gemm (x, w, b) }"
OPTIONS = {"centroids": 8, "min_size": 16}


def means(model: onnx.ModelProto, x: np.ndarray) -> np.ndarray:
    """Of the layer's results, for each output channel."""
    found: np.ndarray = run(model, {"x": x})["y"].astype(np.float64).mean(axis=0)
    return found


@pytest.mark.parametrize("attributes", ["alpha = 0.25", "alpha = 3.0", "alpha = 0.5, beta = 2.0"])
def test_a_bias_makes_up_for_the_mean_of_a_gemm_whatever_its_factors(attributes: str) -> None:
    text = f"(float[N, 24] x) => (float[N, 60] y) {{ y = Gemm <{attributes}> (x, w, b) }}"
    model, x = build(text, w=random(24, 60), b=random(60)), mixed(200, 24)
    found, _ = share(model, context=context(x=x), **OPTIONS, rounding="hessian")
    np.testing.assert_allclose(means(found, x), means(model, x), atol=1e-4)


def test_a_column_that_gemm_adds_is_no_bias_of_the_channels() -> None:
    text = "(float[60, 24] x) => (float[60, 60] y) { y = Gemm (x, w, b) }"
    model, x = build(text, w=random(24, 60), b=random(60, 1)), mixed(120, 24)
    found, _ = share(model, context=context(x=x), **OPTIONS, rounding="hessian")
    assert np.abs(means(found, x[:60]) - means(model, x[:60])).max() < 0.5
    assert constants(found)["b_corrected"].shape == (60, 60)


def test_an_input_that_is_stored_in_the_model_is_not_measured() -> None:
    text = "(float[N, 60] x) => (float[N, 60] y) { h = Gemm (c, w)  y = Add (x, h) }"
    model = build(text, w=random(24, 60), c=random(1, 24))
    _, report = share(model, context=context(x=mixed(20, 60)), **OPTIONS, rounding="hessian")
    assert "nearest values: its input is stored in the model" in report.edits[0].what


def test_of_one_sample_nothing_is_fitted_and_of_few_a_price_is_not_all_that_counts() -> None:
    model, others = build(GEMM, w=random(24, 60), b=random(60)), mixed(300, 24)
    wanted = run(model, {"x": others})["y"]
    priced = {**OPTIONS, "tradeoff": 0.05}
    nearest = np.square(run(share(model, **priced)[0], {"x": others})["y"] - wanted).sum()
    for samples in (1, 2, 4, 5):
        found, report = share(model, context=context(x=mixed(samples, 24)), **priced, rounding="hessian")
        error = np.square(run(found, {"x": others})["y"] - wanted).sum()
        assert error < 1.1 * nearest
        if samples == 1:
            assert "nearest values: its inputs do not vary" in report.edits[0].what


def test_scale_of_inputs_changes_nothing() -> None:
    model, x = build(GEMM, w=random(24, 60), b=random(60)), mixed(200, 24)
    one, other = (
        share(model, context=context(x=x * np.float32(2.0**power)), **OPTIONS, rounding="hessian")[0]
        for power in (0, 66)
    )
    np.testing.assert_array_equal(decoded(one, "w"), decoded(other, "w"))


def test_repeats_that_fill_a_fixed_batch_count_once() -> None:
    free = build("(float[N, 24] x) => (float[N, 60] y) { y = Gemm (x, w) }", w=random(24, 60))
    fixed = onnx.ModelProto()
    fixed.CopyFrom(free)
    fixed.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 16
    fixed.graph.output[0].type.tensor_type.shape.dim[0].dim_value = 16
    x = mixed(18, 24)
    found = [decoded(share(one, context=context(x=x), **HESSIAN)[0], "w") for one in (free, fixed)]
    np.testing.assert_array_equal(*found)


def test_a_sample_is_kept_apart_for_all_layers_that_share_a_weight() -> None:
    text = """(float[N, 28] x) => (float[N, 28] y) {
        a = Gemm (x, w)  b = Gemm (a, w)  c = Gemm (b, w)  y = Gemm (c, w) }"""
    model = build(text, w=random(28, 28) / 5)
    graph = import_model(model)
    (weight,) = weights(graph, lambda node, reason: None)
    rows = rows_of(weight, graph.opset)
    assert isinstance(rows, input_moments.Rows)
    samples = mixed(8, 28)
    calibrator = StreamingCalibrator(Rows(x=samples), batch=1)
    ((_, moments),) = input_moments.input_moments(model, [rows], calibrator)
    assert (moments.fitted.count, moments.held.count) == (24, 8)
    x = samples[[3, 7]].astype(np.float64)
    values = constants(model)["w"].astype(np.float64)
    read = [x, *(x := x @ values for _ in range(3))]
    np.testing.assert_allclose(moments.held.mean[0], np.concatenate(read).mean(axis=0), rtol=1e-4, atol=1e-5)


def test_what_a_layer_becomes_does_not_depend_on_which_others_are_shared() -> None:
    text = """(float[N, 4, 16, 16] x) => (float[N, 12, 12, 12] y) {
        h = Conv (x, w1)  r = Relu (h)  y = Conv (r, w2) }"""
    model = build(text, 21, w1=random(12, 4, 3, 3), w2=random(12, 12, 3, 3))
    seen = mixed(20, 4, 16, 16)
    whole, alone = (
        share(model, context=context(x=seen), **HESSIAN, **only)[0] for only in ({}, {"layers": {"w1": 0}})
    )
    np.testing.assert_array_equal(decoded(whole, "w2"), decoded(alone, "w2"))


def test_what_is_remembered_is_bounded_in_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    model, made = build(GEMM, w=random(24, 60), b=random(60)), list[str]()
    calibrator = StreamingCalibrator(Rows(x=mixed(4, 24)))
    monkeypatch.setattr(calibration, "REMEMBERED_BYTES", 100)

    def ask(what: str, size_bytes: int) -> None:
        calibrator.remembered(model, what, lambda: made.append(what), size_bytes)

    for what, size_bytes in [("a", 60), ("a", 60), ("b", 30), ("a", 60), ("c", 200), ("c", 200), ("a", 60)]:
        ask(what, size_bytes)
    assert made == ["a", "b", "c", "c", "a"]


def test_a_few_samples_are_warned_of() -> None:
    model = build(GEMM, w=random(24, 60), b=random(60))
    _, few = share(model, context=context(x=mixed(9, 24)), **OPTIONS, rounding="hessian")
    assert few.warnings == [
        "rounding=hessian had 9 calibration samples, which tell little of what layers read; give 32 or more"
    ]
    _, many = share(model, context=context(x=mixed(40, 24)), **OPTIONS, rounding="hessian")
    assert many.warnings == []
    _, none = share(model, context=Context(), **OPTIONS)
    assert none.warnings == []
