"""The command line on networks whose inputs do not all begin with a batch axis."""

import json
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

import onnx_lathe
from onnx_lathe.optimizer.cli import main
from tests.support import calls
from tests.support.builders import build, random
from tests.support.command import refused

FLOORS = {
    "fold": float("inf"),
    "fold,int8": 30.0,
    "float16": 50.0,
    "prune(sparsity=0.2, sensitivity=true)": 10.0,
    "prune_channels(sparsity=0.2, importance=activation)": -3.0,
    "codebook(bits=4)": 15.0,
    "fold,svd(energy=0.95, multiple=1)": 5.0,
    "fold,int4": 15.0,
    "fold,int8(sensitivity=true, min_sqnr=20)": 25.0,
    "equalize,int8(rounding=adaptive, rounding_steps=100)": 30.0,
    "prune(sparsity=0.2),retrain(epochs=1, batch=8)": 10.0,
}
"""Recipe -> least signal to noise that a plain session of the written file has, in dB."""


def arguments(folder: Path, name: str, passes: str) -> list[str]:
    model, data = calls.written(folder, name)
    return [
        str(model), "--passes", passes, "--data", str(data), "--out", str(folder / "build"), "--no-latency",
        "--quiet", "--force", "--target", "ort",
    ]  # fmt: skip


def plain_sqnr(base: Path, candidate: Path, name: str) -> float:
    """Of the worst output, over all samples, in dB."""
    before, after = (onnxruntime.InferenceSession(path) for path in (base, candidate))
    worst = float("inf")
    for index in range(len(before.get_outputs())):
        signal, noise = 0.0, 0.0
        for row in range(calls.SAMPLES):
            feeds = calls.call(name, calls.samples(name), row)
            wanted, found = (
                session.run(None, feeds)[index].astype(np.float64) for session in (before, after)
            )
            signal, noise = (
                signal + float(np.square(wanted).sum()),
                noise + float(np.square(wanted - found).sum()),
            )
        worst = min(worst, 10 * np.log10(signal / noise) if noise else float("inf"))
    return worst


@pytest.mark.parametrize("recipe", FLOORS)
@pytest.mark.parametrize("name", calls.NETWORKS)
def test_every_pass_works_on_calls(tmp_path: Path, name: str, recipe: str) -> None:
    assert main(arguments(tmp_path, name, recipe)) == 0
    report = json.loads((tmp_path / "build" / "report.json").read_text())
    assert any("each sample is one call of the model" in note for note in report["data"])
    assert "sqnr" in report["steps"][-1]["quality"]
    assert plain_sqnr(tmp_path / "model.onnx", tmp_path / "build" / "model.ort.onnx", name) >= FLOORS[recipe]


@pytest.mark.parametrize("name", calls.NETWORKS)
def test_models_are_compared_on_calls(tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]) -> None:
    model, data = calls.written(tmp_path, name)
    made = onnx_lathe.rewrite(model, "fold, int8", calibration=calls.samples(name))
    onnx.save(made, tmp_path / "int8.onnx")
    wanted = plain_sqnr(model, tmp_path / "int8.onnx", name)
    command = ["gate", str(model), str(tmp_path / "int8.onnx"), "--data", str(data), "--json"]
    assert main([*command, "--gate", "sqnr >= 25", "--gate", "latency ratio >= 0.001"]) == 0
    measured = json.loads(capsys.readouterr().out)["gates"][0]["measured"]
    assert measured > 25
    assert measured == pytest.approx(wanted, rel=1e-3)
    assert main(["check", str(tmp_path / "int8.onnx"), "--target", "ort"]) == 0


@pytest.mark.parametrize(
    "least", [np.array([1.5], np.float32), np.full(64, 1.5, np.float32)], ids=["shared", "each"]
)
@pytest.mark.parametrize("features", [8, 16])
def test_one_number_of_shape_1_beside_a_dynamic_batch_works_throughout(
    tmp_path: Path, features: int, least: np.ndarray
) -> None:
    text = f"(float[N, {features}] x, float[1] t) => (float[N, 6] y) {{ h = Mul(x, t) y = MatMul(h, w) }}"
    path, data = tmp_path / "model.onnx", tmp_path / "data.npz"
    onnx.save(build(text, w=random(features, 6)), path)
    np.savez(data, x=random(64, features), t=least)
    made, judged = tmp_path / "build", ["--data", str(data), "--gate", "sqnr >= 10"]
    command = [str(path), *judged, "--out", str(made), "--no-latency", "--quiet", "--force", "--passes"]
    for recipe in ("fold,int8", "prune(sparsity=0.2),retrain(epochs=1, batch=8)"):
        assert main([*command, recipe]) == 0
        report = json.loads((made / "report.json").read_text())
        assert any("each sample is one call of the model" in note for note in report["data"])
        assert main(["gate", str(path), str(made / "model.onnx"), *judged]) == 0


def test_latency_is_that_of_one_call(tmp_path: Path) -> None:
    given = arguments(tmp_path, "stateful", "fold")
    assert main([one for one in given if one != "--no-latency"]) == 0
    quality = json.loads((tmp_path / "build" / "report.json").read_text())["steps"][0]["quality"]
    assert 0 < quality["latency"] < 100


def test_a_run_without_data(tmp_path: Path) -> None:
    for name in calls.NETWORKS:
        model, _ = calls.written(tmp_path, name)
        out = str(tmp_path / name)
        assert main([str(model), "--passes", "fold,float16", "--out", out, "--quiet", "--no-latency"]) == 0


@pytest.mark.parametrize(
    "changes, reason",
    [
        ({"gain": None}, "has no array 'gain' for the model's input; it has state, x"),
        ({"state": np.zeros((40, 2, 16), np.float32)}, "takes [2, ?, 16]; give [samples, 2, ?, 16]"),
        ({"state": np.zeros((30, 2, 1, 16), np.float32)}, "array 'state' has 30 samples, but 'x' has 40"),
    ],
)
def test_what_does_not_fit_is_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: dict[str, np.ndarray | None], reason: str
) -> None:
    given = arguments(tmp_path, "stateful", "fold,int8")
    arrays = calls.samples("stateful") | changes
    np.savez(tmp_path / "data.npz", **{name: array for name, array in arrays.items() if array is not None})
    assert reason in refused(capsys, given)
