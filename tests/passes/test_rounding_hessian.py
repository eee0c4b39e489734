"""int4(rounding=hessian) and int8(rounding=hessian): levels that make up for what others lose, layer by layer, and layers
that cannot be measured, which are rounded to nearest and say so.
"""

from pathlib import Path

import numpy as np
import onnx
import pytest

from onnx_lathe.errors import PassError, UsageError
from onnx_lathe.optimizer.cli import main
from onnx_lathe.passes.core import contract
from onnx_lathe.passes.core.options import configure
from onnx_lathe.passes.core.registry import find
from onnx_lathe.passes.core.services import Context
from onnx_lathe.passes.graph.model import import_model
from onnx_lathe.passes.graph.quantization.pair_order import as_added
from onnx_lathe.passes.numerics.quantization import pair_sums
from onnx_lathe.placement import Placement
from onnx_lathe.runtime.running import ort
from onnx_lathe.runtime.running.calibration import StreamingCalibrator
from tests.support.answers import applied, context, errors, network
from tests.support.builders import build, random
from tests.support.codebooks import constants, decoded, mixed
from tests.support.int8 import Rows

OPTIONS: dict[str, dict[str, object]] = {
    "int4": {"group": 8, "min_size": 16},
    "int8": {"activations": False, "layers": {"*": True}},
}
LAYERS = [
    ("(float[N, 24] x) => (float[N, 60] y) { y = Gemm <alpha = -0.5> (x, w, b) }", (24,), {"w": (24, 60), "b": (60,)}),
    ("(float[N, 24] x) => (float[N, 60] y) { y = Gemm <transB = 1> (x, w) }", (24,), {"w": (60, 24)}),
    ("(float[N, 5, 24] x) => (float[N, 5, 60] y) { h = MatMul (x, w) y = Add (h, b) }", (5, 24), {"w": (24, 60), "b": (60,)}),
    ("(float[N, 8, 6, 6] x) => (float[N, 12, 4, 4] y) { y = Conv (x, w, b) }", (8, 6, 6), {"w": (12, 8, 3, 3), "b": (12,)}),
    ("(float[N, 4, 6, 6] x) => (float[N, 48, 4, 4] y) { y = Conv <group = 2> (x, w) }", (4, 6, 6), {"w": (48, 2, 3, 3)}),
    ("(float[N, 16, 6, 6] x) => (float[N, 16, 4, 4] y) { y = Conv <group = 16> (x, w, b) }", (16, 6, 6), {"w": (16, 1, 3, 3), "b": (16,)}),
]  # fmt: skip


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("text, shape, weights", LAYERS)
def test_layers_answer_nearer_to_before_on_samples_that_were_not_seen(
    name: str, text: str, shape: tuple[int, ...], weights: dict[str, tuple[int, ...]]
) -> None:
    model = build(text, 21, **{weight: random(*size) for weight, size in weights.items()})
    where = context(model, x=mixed(200, *shape))
    plain, _ = applied(name, model, where, **OPTIONS[name])
    found, report = applied(name, model, where, **OPTIONS[name], rounding="hessian")
    before, after = errors(mixed(300, *shape), model, plain, found)
    assert after < (0.9 if name == "int4" else 0.95) * before
    assert [node.op_type for node in found.graph.node] == [node.op_type for node in plain.graph.node]
    levels = [
        {one: values for one, values in constants(model).items() if values.dtype.name == name}
        for model in (plain, found)
    ]
    assert {one: values.shape for one, values in levels[0].items()} == {
        one: values.shape for one, values in levels[1].items()
    }
    assert any((levels[0][one] != levels[1][one]).any() for one in levels[0])
    assert any("dB by nearest levels" in edit.what for edit in report.edits)
    contract.check_structure(model, found, name)


@pytest.mark.parametrize("name", OPTIONS)
def test_a_network_loses_less_and_refit_goes_on_from_there(name: str) -> None:
    model, x = network(), mixed(200, 3, 8, 8)
    where = context(model, x=mixed(160, 3, 8, 8))
    plain, _ = applied(name, model, where, **OPTIONS[name])
    found, _ = applied(name, model, where, **OPTIONS[name], rounding="hessian")
    fitted, _ = applied("refit", plain, where)
    behind, _ = applied("refit", found, where)
    nearest, only_fitted, compensated, both = errors(x, model, plain, fitted, found, behind)
    assert compensated < 0.85 * nearest
    assert both < min(0.85 * only_fitted, 1.05 * compensated)


def test_int8_rounds_for_the_float_network_and_biases_that_stay_are_made_up_for() -> None:
    model, x = network(), mixed(200, 3, 8, 8)
    where = context(model, x=mixed(160, 3, 8, 8))
    options = {"activations": False, "layers": {"*": True}, "bias_correction": False}
    plain, _ = applied("int8", model, where, **options)
    found, report = applied("int8", model, where, **options, rounding="hessian")
    nearest, compensated = errors(x, model, plain, found)
    assert compensated < 0.7 * nearest
    for bias in ("ab", "db", "cb"):
        np.testing.assert_array_equal(constants(found)[bias], constants(model)[bias])
    with_pairs, _ = applied("int8", model, where, **options | {"activations": True}, rounding="hessian")
    for weight in ("a", "d", "e", "c"):
        np.testing.assert_array_equal(
            constants(with_pairs)[f"{weight}_int8"], constants(found)[f"{weight}_int8"]
        )
    assert sum("levels are not the nearest" in edit.what for edit in report.edits) == 4


def test_products_that_are_added_in_pairs_do_not_saturate() -> None:
    # heavy tails: many levels near 127 of one sign would follow each other
    model = build(LAYERS[1][0], 21, w=np.sign(random(60, 24)) * np.float32(0.9) + 0.1 * random(60, 24))
    data = StreamingCalibrator(Rows(x=mixed(200, 24)))
    where = Context(calibrator=data, placement=Placement(pairs=True))
    found, report = applied("int8", model, where, rounding="hessian", activations=False)
    (levels,) = [
        values for values in constants(found).values() if values.dtype == np.int8 and values.ndim == 2
    ]
    layer = next(node for node in import_model(found).nodes if node.op == "Gemm")
    assert not pair_sums.saturates(as_added(layer, levels)).any()
    assert any("not the nearest" in edit.what for edit in report.edits)


@pytest.mark.parametrize("name", OPTIONS)
def test_zeros_that_must_stay_do(name: str) -> None:
    model = network()
    where = context(model, x=mixed(160, 3, 8, 8))
    pruned, _ = applied("prune", model, where, sparsity=0.5, min_size=16)
    found, _ = applied(name, pruned, where, **OPTIONS[name], rounding="hessian")
    fitted, _ = applied("refit", found, where)
    for weight in ("a", "d", "e", "c"):
        for after in (found, fitted):
            assert not decoded(after, weight)[constants(pruned)[weight] == 0].any()
    nearest, _ = applied(name, pruned, where, **OPTIONS[name])
    plain, compensated = errors(mixed(200, 3, 8, 8), pruned, nearest, found)
    assert compensated < plain


REFUSALS = [
    ("(float[N, 8, 6, 6] x) => (float[N, 6, 8, 8] y) { y = ConvTranspose (x, w) }", {"w": (8, 6, 3, 3)}, (8, 6, 6), "what ConvTranspose makes of its inputs is not measured"),
    ("(float[N, 32] x) => (float[N, 32] y) { h = MatMul (x, w)  y = MatMul (h, w) }", {"w": (32, 32)}, (32,), "its weight is shared by several layers"),
    ("(float[N, 8] x) => (float[N, 90] y) { z = Sub (x, x)  y = Gemm (z, w) }", {"w": (8, 90)}, (8,), "its answers do not vary on calibration data"),
    ("(float[N, 8] x) => (float[N, 90] y) { z = Sub (x, x)  i = Reciprocal (z)  y = Gemm (i, w) }", {"w": (8, 90)}, (8,), "the layer computes NaN or infinity on calibration data"),
    ("(float[N, 8] x) => (float[N, 90] y) { z = Sub (x, x)  i = Div (z, z)  y = Gemm (i, w) }", {"w": (8, 90)}, (8,), "the layer computes NaN or infinity on calibration data"),
]  # fmt: skip


@pytest.mark.parametrize("name, given", [("int4", {}), ("int8", {}), ("int8", {"bias_correction": False})])
@pytest.mark.parametrize("text, weights, shape, reason", REFUSALS)
def test_what_cannot_be_measured_is_rounded_to_nearest_and_says_why(
    name: str,
    given: dict[str, object],
    text: str,
    weights: dict[str, tuple[int, ...]],
    shape: tuple[int, ...],
    reason: str,
) -> None:
    model = build(text, 21, **{weight: random(*size) for weight, size in weights.items()})
    where = context(model, x=mixed(60, *shape))
    options = OPTIONS[name] | given
    plain, _ = applied(name, model, where, **options)
    found, report = applied(name, model, where, **options, rounding="hessian")
    onnx.checker.check_model(found, full_check=True)
    assert found.SerializeToString(deterministic=True) == plain.SerializeToString(deterministic=True)
    said = [edit.what for edit in report.edits] + [skip.reason for skip in report.skips]
    assert any(f"rounded to nearest: {reason}" in one for one in said)


def test_a_codebook_and_a_weight_that_was_quantized_before_are_rounded_to_nearest_by_int8() -> None:
    model = network()
    where = context(model, x=mixed(60, 3, 8, 8))
    shared, _ = applied("codebook", model, where, bits=4, layers={"a": 0, "d": 0, "c": 0})
    found, report = applied("int8", shared, where, rounding="hessian")
    assert any("rounded to nearest: it is stored as a codebook" in skip.reason for skip in report.skips)
    ort.session(found)
    stored, _ = applied("int8", model, where, activations=False)
    complete, report = applied("int8", stored, where, existing="complete", rounding="hessian")
    assert any("rounded to nearest: it was quantized before" in skip.reason for skip in report.skips)
    np.testing.assert_array_equal(constants(complete)["e_int8"], constants(stored)["e_int8"])


@pytest.mark.parametrize("name", OPTIONS)
def test_few_samples_of_a_layer_with_many_inputs_make_nothing_worse_than_nearest(name: str) -> None:
    model = build(
        "(float[N, 256] x) => (float[N, 32] y) { y = Gemm (x, w, b) }", 21, w=random(256, 32), b=random(32)
    )
    x = random(400, 256)  # inputs that tell nothing of each other, and fewer samples than inputs
    where = context(model, x=x[:60])
    plain, _ = applied(name, model, where, **OPTIONS[name])
    found, _ = applied(name, model, where, **OPTIONS[name], rounding="hessian")
    before, after = errors(x[60:], model, plain, found)
    assert after < 1.1 * before


@pytest.mark.parametrize("name", OPTIONS)
def test_channels_and_inputs_that_are_always_zero_do_not_hinder_the_others(name: str) -> None:
    # the first channel of the convolution answers 0 throughout, and the next layer reads it: 0 / 0
    text = """(float[N, 4, 6, 6] x) => (float[N, 20] y) {
        h = Conv (x, a, ab)  r = Relu (h)  f = Flatten (r)  y = Gemm (f, c) }"""
    weights = {"a": random(8, 4, 3, 3), "ab": random(8), "c": random(128, 20)}
    weights["ab"][0] = -1000
    model = build(text, 21, **weights)
    where = context(model, x=mixed(100, 4, 6, 6))
    plain, _ = applied(name, model, where, **OPTIONS[name])
    found, _ = applied(name, model, where, **OPTIONS[name], rounding="hessian")
    assert np.isfinite(decoded(found, "a")).all()
    before, after = errors(mixed(200, 4, 6, 6), model, plain, found)
    assert after < before


def test_it_needs_calibration_data_and_ranges_of_a_cache_are_none(tmp_path: Path) -> None:
    for name in OPTIONS:
        assert "calibrator" in configure(find(name), {**OPTIONS[name], "rounding": "hessian"}).needs
        with pytest.raises(PassError, match="calibration"):
            applied(name, network(), Context(), **OPTIONS[name], rounding="hessian")
        with pytest.raises(UsageError, match="rounding"):
            configure(find(name), {"rounding": "up"})
    assert not configure(find("int4"), {}).needs
    _, report = applied(
        "int4", network(), context(network(), x=mixed(6, 3, 8, 8)), **OPTIONS["int4"], rounding="hessian"
    )
    assert any("rounding=hessian had 6 calibration samples" in warning for warning in report.warnings)


@pytest.mark.parametrize(
    "passes",
    [
        "int4(group=32, rounding=hessian), refit",
        "codebook(bits=4, rounding=hessian), refit",
        "int8(rounding=hessian)",
        "prune(sparsity=0.5, score=obs), int4(group=32, rounding=hessian, zero_points=true), refit",
    ],
)
def test_from_the_command_line_without_labels(passes: str, tmp_path: Path) -> None:
    model = network()
    onnx.save(model, tmp_path / "m.onnx")
    np.savez(tmp_path / "calibration.npz", x=mixed(100, 3, 8, 8))
    np.savez(tmp_path / "eval.npz", x=mixed(60, 3, 8, 8))
    data = ["--calibration", str(tmp_path / "calibration.npz"), "--eval", str(tmp_path / "eval.npz")]
    asked = [str(tmp_path / "m.onnx"), "--passes", passes, "--out", str(tmp_path / "out"), "--no-latency"]
    assert main([*asked, *data]) == 0
    final = onnx.load(tmp_path / "out" / "model.onnx")
    contract.check_structure(model, final, passes)
    ort.session(final)
    assert errors(mixed(60, 3, 8, 8), model, final)[0] < (0.4 if "prune" in passes else 0.05)
    assert main(asked) == 2
