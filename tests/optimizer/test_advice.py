"""A model that became slower says so: with figures, and with what another target would give."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest

from onnx_lathe.optimizer import advice, pipeline
from onnx_lathe.optimizer.cli import main
from onnx_lathe.optimizer.services import Services
from onnx_lathe.optimizer.step import _worse
from onnx_lathe.runtime.running import profiling


@pytest.fixture(autouse=True)
def short_measurements(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(profiling, "BUDGET_S", 0.02)


@pytest.fixture
def network(tmp_path: Path) -> tuple[Path, Path]:
    rng = np.random.default_rng(0)
    model = onnx.parser.parse_model("""<ir_version: 8, opset_import: ["": 17]> g (float[N, 8, 6, 6] x) => (float[N, 8, 6, 6] y) {
        [one] a = Conv <pads = [1, 1, 1, 1]> (x, w)
        [relu] r = Relu (a)
        [two] y = Conv <pads = [1, 1, 1, 1]> (r, w)
    }""")
    values = (0.2 * rng.standard_normal((8, 8, 3, 3))).astype(np.float32)
    model.graph.initializer.append(onnx.numpy_helper.from_array(values, "w"))
    onnx.save(model, tmp_path / "m.onnx")
    np.savez(tmp_path / "d.npz", x=rng.standard_normal((20, 8, 6, 6)).astype(np.float32))
    return tmp_path / "m.onnx", tmp_path / "d.npz"


def compiled(network: tuple[Path, Path], out: Path, *arguments: str) -> dict[str, object]:
    model, data = network
    command = [str(model), "--passes", "fold, int8", "--data", str(data), "--out", str(out), "--quiet"]
    assert main([*command, *arguments]) == 0
    report: dict[str, object] = json.loads((out / "report.json").read_text())
    return report


def test_a_slower_int8_model_says_so_and_what_ort_would_give(
    network: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    times = iter([np.array([[2.0, 2.0]]), np.array([[2.0, 5.0]])])
    monkeypatch.setattr(pipeline, "time_pair", lambda *_: next(times))
    monkeypatch.setattr(advice, "time_pair", lambda *_: np.array([[2.0, 0.9]]))
    report = compiled(network, tmp_path / "out")
    assert report["warnings"][-1].endswith(  # type: ignore[index]
        "the INT8 model takes 2.5x the original's time: its form is what other targets start from; built with --target ort it takes at most 0.45x"
    )
    assert "latency" in report["steps"][1]["worse"]  # type: ignore[index]


def test_advice_chooses_no_layers_by_time(
    network: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That is the build's work, and takes longer than the passes."""
    monkeypatch.setattr(pipeline, "time_pair", lambda *_: np.array([[2.0, 5.0]]))
    monkeypatch.setattr(advice, "time_pair", lambda *_: np.array([[2.0, 2.4]]))
    monkeypatch.setattr(Services, "profiling", lambda *_: pytest.fail("layers are timed"))
    report = compiled(network, tmp_path / "out")
    assert report["warnings"][-1].endswith(  # type: ignore[index]
        "built with --target ort it takes at most 1.2x, less where layers that are slower on integers stay in float"
    )


def test_a_faster_one_says_nothing(
    network: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pipeline, "time_pair", lambda *_: np.array([[2.0, 1.0]]))
    report = compiled(network, tmp_path / "out")
    assert not [line for line in report["warnings"] if "INT8 model takes" in line]  # type: ignore[attr-defined]
    assert "latency" not in report["steps"][1]["worse"]  # type: ignore[index]


def test_the_target_itself_guards_with_measured_times(
    network: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`speed=keep` asks for profiles, `speed=any` and --no-latency do not."""
    asked = []
    profiling = Services.profiling
    monkeypatch.setattr(
        Services, "profiling", lambda self, context: asked.append(context) or profiling(self, context)
    )
    compiled(network, tmp_path / "a", "--target", "ort")
    assert len(asked) == 1
    compiled(network, tmp_path / "b", "--target", "ort(speed=any)")
    compiled(network, tmp_path / "c", "--target", "ort", "--no-latency")
    assert len(asked) == 1


def test_a_share_of_zeros_that_hardly_changes_is_not_made_worse() -> None:
    assert _worse({"sparsity": 0.0065, "top1": 0.9}, {"sparsity": 0.0064, "top1": 0.9}) == []
    assert _worse({"sparsity": 0.9, "top1": 0.9}, {"sparsity": 0.5, "top1": 0.8999}) == ["sparsity", "top1"]
