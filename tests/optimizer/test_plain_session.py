"""What the report says of the file for ort is what a user gets who opens it, and a loss is said."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

import onnx_lathe
from onnx_lathe.errors import TargetError
from onnx_lathe.optimizer import build as building
from onnx_lathe.optimizer.recipe import Call
from onnx_lathe.optimizer.report.record import RunRecord
from onnx_lathe.passes.numerics.quantization.pair_sums import saturates
from onnx_lathe.runtime.running import evaluate as evaluating
from onnx_lathe.runtime.targets.core.registry import find as find_target
from tests.support.builders import build
from tests.support.placement import IMAGES, MOBILE, RESIDUAL, kernels, network

EVALUATION = (0.9 * IMAGES[::-1, :, ::-1]).astype(np.float32)


def compiled(text: str, folder: Path, target: str = "ort", passes: str = "int8") -> RunRecord:
    data = {"x": EVALUATION}
    return onnx_lathe.optimize(
        network(text), passes, calibration={"x": IMAGES}, eval=data, targets=target, out=folder, latency=False
    )


def unbuilt(*_: object) -> None:
    raise TargetError("not here")


def measured(text: str, folder: Path) -> float:
    """SQNR in dB of the written file, in a session with nothing chosen."""
    onnx.save(network(text), folder / "original.onnx")
    outputs = []
    for path in (folder / "original.onnx", folder / "model.ort.onnx"):
        session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        outputs.append(session.run(None, {"x": EVALUATION})[0].astype(np.float64))
    return float(10 * np.log10((outputs[0] ** 2).sum() / ((outputs[0] - outputs[1]) ** 2).sum()))


@pytest.mark.parametrize("text", [RESIDUAL, MOBILE], ids=["residual", "mobile"])
def test_the_figure_is_that_of_a_plain_session(text: str, tmp_path: Path) -> None:
    record = compiled(text, tmp_path)
    assert record.targets[0].quality["sqnr"] == pytest.approx(measured(text, tmp_path), abs=0.05)
    assert not any("signal to noise, the model" in warning for warning in record.warnings)


def test_a_loss_against_the_model_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What a user computes is made worse than what Lathe's own session does; the lowering does not see it."""
    plain = building.ort.plain_session

    def noisy(source: Path | onnx.ModelProto, threads: int = 0) -> onnxruntime.InferenceSession:
        if isinstance(source, onnx.ModelProto):
            return plain(source)
        model = onnx.load(source)
        head = next(tensor for tensor in model.graph.initializer if tensor.name == "head_int8")
        values = onnx.numpy_helper.to_array(head)
        head.CopyFrom(onnx.numpy_helper.from_array(values // 16 * 16, head.name))
        return onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])

    monkeypatch.setattr(building.ort, "plain_session", noisy)
    record = compiled(RESIDUAL, tmp_path)
    said = next(warning for warning in record.warnings if warning.startswith("target ort: its file gives"))
    figures = [float(word) for word in said.replace(":", " ").split() if word.replace(".", "").isdigit()]
    assert figures[0] == pytest.approx(record.targets[0].quality["sqnr"], abs=0.06)
    assert figures[0] + 1 < figures[1]
    assert "it gives" in said or "they give" in said


def test_a_lowering_that_costs_accuracy_is_said_for_what_is_not_timed_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An engine's file cannot be opened without its GPU; the model that it is built from can."""
    lowered = building.lower

    def coarser(*arguments: Any) -> Any:
        model, report = lowered(*arguments)
        for tensor in model.graph.initializer:
            if len(tensor.dims) > 1:
                values = onnx.numpy_helper.to_array(tensor)
                step = 16 if values.dtype == np.int8 else np.float32(0.25)
                values = values // step * step
                tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
        return model, report

    monkeypatch.setattr(find_target("tensorrt-rtx"), "available", lambda self: None)
    monkeypatch.setattr(find_target("tensorrt-rtx"), "runs_here", lambda self, options: False)
    monkeypatch.setattr(find_target("tensorrt-rtx"), "build", unbuilt)

    def warnings(folder: str, passes: str = "int8") -> list[str]:
        found = compiled(RESIDUAL, tmp_path / folder, "tensorrt-rtx", passes).warnings
        return [warning for warning in found if "as it is lowered for it gives" in warning]

    assert warnings("exact") == []
    monkeypatch.setattr(building, "lower", coarser)
    (of_floats,) = warnings("floats", passes="fold")
    assert "int8" not in of_floats
    (said,) = warnings("coarse")
    assert said.startswith("target tensorrt-rtx: the model as it is lowered for it gives ")
    assert "the form for tensorrt-rtx costs that" in said


def test_no_processor_saturates_in_a_file_that_is_opened_as_it_is() -> None:
    """Weights of one sign, whose largest levels stand side by side."""
    weight = np.where(np.arange(64 * 8).reshape(64, 8) % 3, 0.98, 1).astype(np.float32)
    model = build("(float[N, 64] x) => (float[N, 8] y) { y = MatMul (x, w) }", w=weight)
    data = {"x": np.random.default_rng(0).standard_normal((8, 64)).astype(np.float32)}
    place = {
        target: building.placement(building.configured_targets([Call(target, {})]))
        for target in ("onnx", "tensorrt-rtx")
    }
    assert place["onnx"] == replace(place["tensorrt-rtx"], pairs=True)
    result = onnx_lathe.rewrite(model, "int8", calibration=data, targets="onnx")
    levels = next(tensor for tensor in result.graph.initializer if tensor.name == "w_int8")
    assert not saturates(onnx.numpy_helper.to_array(levels).T).any()


@pytest.mark.parametrize("target", ["ort", "tensorrt-rtx"])
def test_the_lowering_is_judged_by_calibration_data_alone(
    target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sessions of the lowering see no sample that judges."""
    seen: list[np.ndarray] = []
    comparer = evaluating.OriginalComparer.sqnr

    def watched(
        self: evaluating.OriginalComparer, model: onnx.ModelProto, plain: bool = False
    ) -> float | None:
        seen.extend(batch.inputs["x"] for batch in self.data.batches(1))
        return comparer(self, model, plain)

    monkeypatch.setattr(evaluating.OriginalComparer, "sqnr", watched)
    monkeypatch.setattr(find_target("tensorrt-rtx"), "available", lambda self: None)
    monkeypatch.setattr(find_target("tensorrt-rtx"), "build", unbuilt)
    compiled(RESIDUAL, tmp_path, target)
    assert seen
    assert {sample.tobytes() for sample in seen} == {IMAGES[i : i + 1].tobytes() for i in range(len(IMAGES))}


def test_an_original_that_is_sorted_as_it_is_read_is_compared_with(tmp_path: Path) -> None:
    model = network(RESIDUAL)
    model.graph.node.insert(0, model.graph.node.pop())
    path = tmp_path / "unsorted.onnx"
    path.write_bytes(model.SerializeToString())
    data = {"calibration": {"x": IMAGES}, "eval": {"x": EVALUATION}}
    record = onnx_lathe.optimize(path, "int8", **data, targets="ort", out=tmp_path / "out", latency=False)
    assert record.targets[0].error is None
    assert record.targets[0].quality["sqnr"] > 20


@pytest.mark.parametrize(
    "text",
    [
        "(float[N, 16] x) => (float[N, 8] y) { y = MatMul (x, w) }",
        "(float[N, 16] x) => (float[N, 8] y) { h = MatMul (x, v)  r = Relu (h)  y = MatMul (r, w) }",
    ],
)
def test_a_network_without_biases_is_written_for_ort(text: str, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    stored = {"w": rng.standard_normal((16, 8)), "v": rng.standard_normal((16, 16))}
    model = build(
        text, **{name: array.astype(np.float32) for name, array in stored.items() if f"{name})" in text}
    )
    data = {"x": rng.standard_normal((64, 16)).astype(np.float32)}
    record = onnx_lathe.optimize(model, "int8", data=data, targets="ort", out=tmp_path, latency=False)
    assert record.outcome == "done"
    assert record.targets[0].quality["sqnr"] > 25


def test_weights_of_7_bits_that_are_asked_for_stay_on_integers(tmp_path: Path) -> None:
    """What they cost against weights of 8 bits is over 1 dB, and spread over the layers."""
    data = {"calibration": {"x": IMAGES}, "eval": {"x": EVALUATION}}
    record = onnx_lathe.optimize(
        network(RESIDUAL), "int8", **data, targets="ort(reduce_range=true)", out=tmp_path, latency=False
    )
    operators = kernels(onnx.load(tmp_path / "model.ort.onnx"))
    assert operators["QLinearConv"] == 3
    assert operators["Conv"] == 0
    assert any("signal to noise, the model" in warning for warning in record.warnings)
