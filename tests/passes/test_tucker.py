"""tucker: what a convolution becomes, how near its answers stay, and which ranks it gets."""

import numpy as np
import onnx
import pytest

from onnx_lathe.optimizer.inspect import measure
from onnx_lathe.optimizer.step import apply_pass
from onnx_lathe.passes.core.options import configure
from onnx_lathe.passes.core.rank_options import MET
from onnx_lathe.passes.core.report import PassReport
from onnx_lathe.passes.core.services import Context
from onnx_lathe.passes.numerics.second_order.paired import SplitJointMoments
from onnx_lathe.passes.retrain import Retrain
from onnx_lathe.passes.tucker.tucker import TuckerPass
from onnx_lathe.runtime.running.ort import PairTimer
from onnx_lathe.runtime.training import TorchTrainer, TrainingSetup
from tests.support.answers import applied, context, errors
from tests.support.builders import build, random
from tests.support.codebooks import constants, mixed
from tests.support.int8 import Rows
from tests.support.splitting import deviation, ops, shapes

KINDS = {
    "strides, pads, dilations": (
        "(float[N, 6, 9, 11] x) => (float[N, 8, h, w] y) "
        "{ y = Conv <strides = [2, 1], pads = [1, 0, 2, 1], dilations = [1, 2]> (x, w, b) }",
        (8, 6, 3, 3),
    ),
    "auto_pad": (
        '(float[N, 6, 9, 11] x) => (float[N, 8, h, w] y) { y = Conv <auto_pad = "SAME_UPPER"> (x, w, b) }',
        (8, 6, 3, 5),
    ),
    "one axis, no bias": (
        "(float[N, 6, 20] x) => (float[N, 8, h] y) { y = Conv <pads = [2, 2]> (x, w) }",
        (8, 6, 5),
    ),
    "three axes": (
        "(float[N, 4, 5, 6, 7] x) => (float[N, 6, d, h, w] y) { y = Conv <strides = [1, 2, 1]> (x, w, b) }",
        (6, 4, 2, 3, 2),
    ),
}
NETWORK = """(float[N, 3, 10, 10] x) => (float[N, 10] y) {
    h = Conv <pads = [1, 1, 1, 1]> (x, a, ab)  r = Relu (h)  i = Conv <pads = [1, 1, 1, 1], strides = [2, 2]> (r, b)
    s = Relu (i)  j = Conv <pads = [1, 1, 1, 1]> (s, c, cb)  t = Relu (j)  p = GlobalAveragePool (t)
    f = Flatten (p)  y = Gemm (f, g) }"""


def layer(kind: str) -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    text, shape = KINDS[kind]
    stored = {"w": random(*shape)} | ({"b": random(shape[0])} if ", b)" in text else {})
    model = build(text, **stored)
    sizes = [dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim[1:]]
    return model, {"x": mixed(40, *sizes)}


def network() -> onnx.ModelProto:
    return build(
        NETWORK,
        a=random(16, 3, 3, 3),
        ab=random(16),
        b=random(24, 16, 3, 3) / 8,
        c=random(24, 24, 3, 3) / 8,
        cb=random(24),
        g=random(24, 10),
    )


def tucker(
    model: onnx.ModelProto, where: Context | None = None, **options: object
) -> tuple[onnx.ModelProto, PassReport]:
    before = model.SerializeToString()
    after, report = applied("tucker", model, where or Context(), **options)
    onnx.checker.check_model(after, full_check=True)
    assert model.SerializeToString() == before
    return after, report


@pytest.mark.parametrize("with_data", [True, False])
@pytest.mark.parametrize("form", ["tucker", "cp"])
@pytest.mark.parametrize("kind", KINDS)
def test_at_full_rank_three_convolutions_compute_what_one_did(kind: str, form: str, with_data: bool) -> None:
    model, data = layer(kind)
    where = context(model, **data) if with_data else Context()
    after, report = tucker(model, where, rank=1000, always=True, form=form)
    assert ops(after) == ["Conv"] * 3
    assert [node.name for node in after.graph.node] == ["Conv_0_first", "Conv_0_core", "Conv_0_last"]
    assert deviation(model, after, data) < (1e-3 if form == "tucker" else 3e-3)
    assert [edit.node for edit in report.edits] == ["Conv_0"]
    first, core, last = (shapes(after)[f"w_{part}"] for part in ("first", "core", "last"))
    outputs, inputs, *kernel = KINDS[kind][1]
    assert core[2:] == kernel
    assert first[2:] == last[2:] == [1] * len(kernel)
    assert (first[1], last[0]) == (inputs, outputs)
    assert core[1] == (1 if form == "cp" else first[0])
    whole, now = measure(model).macs, measure(after).macs
    assert f"{whole - now:,.0f} of {whole:,.0f} MACs saved" in report.edits[0].what
    assert bool(report.warnings) is not with_data


@pytest.mark.parametrize("form", ["tucker", "cp"])
def test_answers_count_and_not_weights(form: str) -> None:
    """On samples that were not seen, of inputs that depend on each other."""
    model = network()
    calibration, others = mixed(96, 3, 10, 10), mixed(64, 3, 10, 10)
    options = {"macs": 0.5, "multiple": 2, "form": form}
    by_weight, report = tucker(model, **options)
    assert report.warnings[0].startswith(
        "without calibration data, ranks and factors are nearest to the weights"
    )
    assert all("of the weight's energy lost" in edit.what for edit in report.edits)
    by_answer, report = tucker(model, context(model, x=calibration), **options)
    assert all(" dB" in edit.what for edit in report.edits)
    assert not report.warnings
    far, near = errors(others, model, by_weight, by_answer)
    assert near < 0.5 * far
    for after in (by_weight, by_answer):
        assert measure(after).macs <= 0.5 * measure(model).macs
    assert report.metrics["macs_kept"] == pytest.approx(measure(by_answer).macs / measure(model).macs)


def test_what_is_split_is_left_alone_by_a_second_run() -> None:
    model = network()
    where = context(model, x=mixed(48, 3, 10, 10))
    after, report = tucker(model, where, macs=0.6, multiple=4)
    assert report.edits
    parts = {f"{edit.node}_{part}" for edit in report.edits for part in ("first", "core", "last")}
    whole = {"Conv_0", "Conv_2", "Conv_4"} - {edit.node for edit in report.edits}
    assert whole
    again, second = tucker(after, where, macs=0.6, multiple=4)
    assert again is after
    reasons = dict.fromkeys(parts, "it is part of a layer that is split already")
    reasons |= dict.fromkeys(whole, MET)
    reasons["Gemm_8"] = "it is a Gemm; tucker splits Conv, and svd this too"
    assert {skip.node: skip.reason for skip in second.skips} == reasons
    lower, third = tucker(after, where, macs=report.metrics["macs_kept"] - 0.02, multiple=4)
    assert {edit.node for edit in third.edits} <= whole
    assert third.edits
    assert third.metrics["macs_kept"] == pytest.approx(measure(lower).macs / measure(model).macs)
    assert third.metrics["macs_kept"] < report.metrics["macs_kept"]


def test_ranks_of_layers_and_by_energy() -> None:
    model = network()
    where = context(model, x=mixed(64, 3, 10, 10))
    after, report = tucker(model, where, rank=8, layers={"b": 6, "c": 0})
    assert [edit.what.split(",")[0] for edit in report.edits] == [
        "ranks 3 of 3 and 8 of 16",
        "ranks 6 of 16 and 6 of 24",
    ]
    assert ("Conv_4", "its rank is set to 0") in [(skip.node, skip.reason) for skip in report.skips]
    assert shapes(after)["b_core"] == [6, 6, 3, 3]
    kept = []
    for energy in (0.6, 0.85):
        after, report = tucker(model, where, energy=energy, multiple=2)
        kept.append(measure(after).macs)
        assert report.edits
    assert kept[0] < kept[1] < measure(model).macs
    auto, _ = tucker(model, where, rank="auto", macs=0.5)
    plain, _ = tucker(model, where, macs=0.5)
    assert auto.SerializeToString() == plain.SerializeToString()


class Clock:
    """Says that layers of so many inputs are slower when split."""

    def __init__(self, slow: int) -> None:
        self.slow = slow

    def latencies(self, base: onnx.ModelProto, candidate: onnx.ModelProto) -> tuple[float, float]:
        assert [node.op_type for node in candidate.graph.node] == ["Conv"] * 3
        whole, split = PairTimer().latencies(base, candidate)
        assert whole > 0 < split
        channels = base.graph.input[0].type.tensor_type.shape.dim[1].dim_value
        return (0.3125, 0.42) if channels == self.slow else (0.3125, 0.25)


@pytest.mark.parametrize("form", ["tucker", "cp"])
def test_a_layer_that_is_slower_when_split_stays_whole(form: str) -> None:
    model = network()
    _, report = apply_pass(
        configure(TuckerPass, {"timed": True, "macs": 0.4, "multiple": 2, "form": form}),
        model,
        Context(timer=Clock(slow=16)),
    )
    assert "Conv_2" not in [edit.node for edit in report.edits]
    assert all("0.312 ms became 0.25 ms" in edit.what for edit in report.edits)
    assert ("Conv_2", "slower when timed: 0.42 ms against 0.312 ms") in [
        (skip.node, skip.reason) for skip in report.skips
    ]


@pytest.mark.parametrize("form", ["tucker", "cp"])
def test_the_layers_that_it_becomes_are_fitted_and_trained_like_any_other(form: str) -> None:
    model = network()
    rows = mixed(64, 3, 10, 10)
    where = context(model, x=rows)
    after, _ = tucker(model, where, macs=0.35, multiple=2, form=form)
    fitted, report = applied("refit", after, where)
    assert any(edit.node.endswith("_last") or edit.node.startswith("Gemm") for edit in report.edits)
    before, now = errors(rows, model, after, fitted)
    assert now < before
    trainer = TorchTrainer(TrainingSetup(Rows(x=rows), teacher=model))
    trained, _ = apply_pass(
        configure(Retrain, {"epochs": 2, "batch": 16, "rate": 0.001}), fitted, Context(trainer=trainer)
    )
    assert ops(trained) == ops(fitted)
    changed = {
        name for name, values in constants(fitted).items() if (constants(trained)[name] != values).any()
    }
    assert {"b_first", "b_core", "b_last"} <= changed


@pytest.mark.parametrize("form, least", [("tucker", 0.5), ("cp", 0.75)])
def test_a_budget_that_cannot_be_met_is_warned_of(form: str, least: float) -> None:
    model = network()
    where = context(model, x=mixed(64, 3, 10, 10))
    after, report = tucker(model, where, macs=0.02, multiple=4, least=least, form=form)
    kept = measure(after).macs / measure(model).macs
    assert kept > 0.02
    assert report.metrics["macs_kept"] == pytest.approx(kept)
    (warning,) = report.warnings
    assert f"tucker leaves {100 * kept:.3g} % of the network's MACs, and macs=0.02 asks for less" in warning
    assert f"multiple= (4) or least= ({least:g})" in warning
    for given in ({"rank": 8}, {"energy": 0.5}):
        assert not tucker(model, where, multiple=4, form=form, **given)[1].warnings


def test_a_layer_that_cannot_be_fitted_is_missing_from_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    model = network()
    where = context(model, x=mixed(64, 3, 10, 10))
    # measured alone it can be, and compared with its answers it cannot: they are infinite behind the others
    found = SplitJointMoments.refusal
    monkeypatch.setattr(
        SplitJointMoments,
        "refusal",
        lambda self: "its answers overflow" if len(self.fitted.mean_x[0]) == 24 * 9 else found(self),
    )
    after, report = tucker(model, where, macs=0.5, multiple=2)
    assert ("Conv_4", "its answers overflow") in [(skip.node, skip.reason) for skip in report.skips]
    kept = measure(after).macs / measure(model).macs
    assert kept > 0.5
    assert any(f"tucker leaves {100 * kept:.3g} % of the network's MACs" in one for one in report.warnings)


def test_few_samples_are_warned_of() -> None:
    model = network()
    _, report = tucker(model, context(model, x=mixed(6, 3, 10, 10)), macs=0.5, multiple=2)
    assert report.edits
    assert any("tucker had 6 calibration samples" in warning for warning in report.warnings)
