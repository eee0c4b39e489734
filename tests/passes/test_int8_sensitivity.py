"""int8(sensitivity, max_drop, min_sqnr): layers measured alone and ranked, and the fewest left in float."""

from collections.abc import Mapping

import numpy as np
import onnx
import pytest

from onnx_lathe.errors import PassError
from onnx_lathe.passes.core.options import configure
from onnx_lathe.passes.core.report import PassReport
from onnx_lathe.passes.core.services import Context
from onnx_lathe.passes.graph.model import export_model, import_model
from onnx_lathe.passes.int8.int8 import Int8
from onnx_lathe.runtime.running.calibration import StreamingCalibrator
from onnx_lathe.runtime.running.evaluate import OutputComparer
from tests.support.builders import build, random
from tests.support.int8 import Form, Rows

X = random(200, 8)
NET = """(float[N, 8] x) => (float[N, 6] y) {
    [one] a = MatMul (x, first)  r = Tanh (a)  [two] b = MatMul (r, second)  s = Tanh (b)  [three] c = MatMul (s, third)  t = Tanh (c)
    [four] y = MatMul (t, fourth) }"""
SIZES = {"first": (8, 8), "second": (8, 8), "third": (8, 8), "fourth": (8, 6)}


def weights(**outliers: float) -> dict[str, np.ndarray]:
    """The first unit behind each layer is 0 at all times. The named weights have large values for it, which
    leaves INT8 few levels for the others and changes nothing else.
    """
    made = {name: random(*shape) / np.float32(2) for name, shape in SIZES.items()}
    for name, values in made.items():
        values[0] = outliers.get(name, 0)
        values[:, 0] = 0 if name != "fourth" else values[:, 0]
    return made


GOOD, BAD = weights(), weights(second=60, third=30)


def apply(model: onnx.ModelProto, **options: object) -> tuple[onnx.ModelProto, PassReport]:
    graph, data = import_model(model), Rows(x=X)
    context = Context(calibrator=StreamingCalibrator(data), runner=OutputComparer(data, limit=512))
    report = configure(Int8, {"bias_correction": False} | options).apply(graph, context)
    return export_model(graph), report


def quality(model: onnx.ModelProto, *in_float: str, only: str | None = None) -> Mapping[str, float]:
    """Measured from outside: the layers of these weights in float, or of all but one."""
    left = [name for name in SIZES if name != only] if only else in_float
    candidate, _ = apply(model, layers=dict.fromkeys(left, False))
    return OutputComparer(Rows(x=X), limit=512).compare(model, candidate)


def test_each_layer_is_measured_alone_and_ranked() -> None:
    model = build(NET, **BAD)
    result, report = apply(model, sensitivity=True)
    wanted = {name: quality(model, only=name)["sqnr"] for name in SIZES}
    found = {
        key.removeprefix("sensitivity/"): value
        for key, value in report.metrics.items()
        if key.startswith("sensitivity/")
    }
    assert found == pytest.approx(wanted, abs=1e-6)
    assert list(found) == sorted(wanted, key=wanted.__getitem__)
    phrases = [edit.what for edit in report.edits if edit.node == "two"]
    rank = list(found).index("second") + 1
    assert phrases[-1].endswith(f"; alone {wanted['second']:.1f} dB, sensitivity rank {rank} of 4")
    assert report.metrics["calibration_sqnr"] == pytest.approx(quality(model)["sqnr"], abs=1e-6)
    assert result == apply(model)[0]


def test_the_fewest_layers_are_left_in_float() -> None:
    model = build(NET, **BAD)
    result, report = apply(model, max_drop=2.0)
    left = {skip.node: skip.reason for skip in report.skips}
    assert report.metrics["left_in_float"] == len(left)
    assert 1 <= len(left) <= 2
    names = {"one": "first", "two": "second", "three": "third", "four": "fourth"}
    assert quality(model, *(names[node] for node in left))["agreement"] >= 0.98
    for node in left:  # each of them is needed
        assert quality(model, *(names[other] for other in left if other != node))["agreement"] < 0.98
    assert report.metrics["calibration_agreement"] >= 0.98
    alone = quality(model, only="second")
    expected = f"left in float: alone it costs {100 * (1 - alone['agreement']):.2g} points of agreement, {alone['sqnr']:.1f} dB signal to noise"
    assert left["two"] == f"{expected} (max_drop=2)"
    assert Form(result).producers.keys().isdisjoint({"second"})


def test_nothing_is_left_where_the_goal_is_met() -> None:
    _, report = apply(build(NET, **GOOD), max_drop=50, min_sqnr=5)
    assert report.metrics["left_in_float"] == 0
    assert report.metrics["layers"] == 4
    assert not report.skips


def test_a_goal_in_decibels() -> None:
    text = "(float[N, 8] x) => (float[N, 8, 1] z) { [one] a = MatMul (x, first)  [two] b = MatMul (a, second)  z = Unsqueeze (b, k) }"
    model = build(text, first=BAD["first"], second=BAD["second"], k=np.int64([2]))
    graph, data = import_model(model), Rows(x=X)
    context = Context(calibrator=StreamingCalibrator(data), runner=OutputComparer(data, limit=512))
    with pytest.raises(
        PassError, match=r"int8\(max_drop=...\) counts points of agreement .* give min_sqnr=, in dB, instead"
    ):
        configure(Int8, {"max_drop": 0.5}).apply(graph, context)
    _, report = apply(model, min_sqnr=36)
    assert {skip.node: skip.reason.split(": ")[0] for skip in report.skips} == {"two": "left in float"}
    assert "all but" in report.skips[0].reason
    assert report.metrics["calibration_sqnr"] >= 36


def test_a_goal_that_int8_cannot_meet_leaves_everything() -> None:
    result, report = apply(build(NET, **BAD), min_sqnr=150)
    assert report.warnings == ["no layer can be INT8 at min_sqnr=150: all stay in float"]
    assert report.metrics["left_in_float"] == 4
    assert "QuantizeLinear" not in Form(result).ops()
    assert not report.edits


@pytest.mark.parametrize("last", ["Log", "Relu"])
def test_a_goal_in_decibels_for_outputs_without_a_signal_is_refused(last: str) -> None:
    """Infinity, or zeros only: no layer is to blame, and leaving all of them in float would not help."""
    first = 0 * GOOD["first"]
    model = build(
        f"(float[N, 8] x) => (float[N, 8] y) {{ [one] a = MatMul (x, first)  y = {last} (a) }}", first=first
    )
    with pytest.raises(
        PassError,
        match=r"int8\(min_sqnr=20\): an output of the model holds NaN or infinity, or nothing but zeros",
    ):
        apply(model, min_sqnr=20)
    assert apply(model, max_drop=50)[1].metrics["left_in_float"] == 0


def test_weights_alone_are_searched_without_calibration() -> None:
    model = build(NET, **BAD)
    instance = configure(Int8, {"activations": False, "sensitivity": True})
    assert instance.needs == ("runner",)
    report = instance.apply(import_model(model), Context(runner=OutputComparer(Rows(x=X), limit=512)))
    assert sum(key.startswith("sensitivity/") for key in report.metrics) == 4


def test_data_is_needed() -> None:
    instance = configure(Int8, {"max_drop": 1})
    assert instance.needs == ("calibrator", "runner")
    graph = import_model(build(NET, **GOOD))
    with pytest.raises(PassError, match="needs calibration data to compare outputs on"):
        instance.apply(graph, Context(calibrator=StreamingCalibrator(Rows(x=X))))
    assert {node.op for node in graph.nodes} == {"MatMul", "Tanh"}
