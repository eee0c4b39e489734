"""Figures of the report are those of the written files, in the session that anyone opens; on networks of
many kinds, as an exporter writes them.
"""

import importlib
import json
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from onnx_lathe.optimizer.cli import main
from tests.support.house import ROOT

pytest.importorskip("torch")

CASES = (
    ("resnet", "fold,int8", "onnx,ort"),
    ("mobilenet", "fold,equalize,int8", "onnx,ort"),
    ("detector", "int8", "onnx,ort"),
    ("unet", "fold,int8", "ort"),
    ("autoencoder", "prune(sparsity=0.8),codebook(bits=4)", "onnx,pack"),
    ("gru", "fold,int8", "onnx,ort"),
    ("transformer", "fold,int8", "onnx,ort"),
    ("inception", "fold,float16", "onnx,pack"),
    ("convnext", "fold", "onnx,ort"),
)


@pytest.fixture
def benchmark(monkeypatch: pytest.MonkeyPatch) -> tuple[ModuleType, ModuleType]:
    """(networks_made, networks_judge) of benchmarks/."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return importlib.import_module("networks_made"), importlib.import_module("networks_judge")


@pytest.mark.parametrize(("network", "passes", "targets"), CASES, ids=lambda value: str(value))
def test_the_report_says_what_the_written_files_compute(
    network: str, passes: str, targets: str, benchmark: tuple[ModuleType, ModuleType], tmp_path: Path
) -> None:
    report, found = _compiled(benchmark, network, passes, targets, tmp_path)
    assert found["wrong"] == []
    assert set(found["sqnr"]) == {"step", *targets.split(",")}
    quality = report["steps"][-1]["quality"]
    assert "sqnr" in quality
    assert (network == "detector") == any("][" in name for name in quality)  # boxes apart from scores


def test_a_figure_that_no_file_has_is_found(benchmark: tuple[ModuleType, ModuleType], tmp_path: Path) -> None:
    report, found = _compiled(benchmark, "vgg", "int8", "ort", tmp_path)
    assert found["wrong"] == []
    quality = report["targets"][0]["quality"]
    quality |= {name: value - 3 for name, value in quality.items() if name.startswith("sqnr")}
    wrong = _judged(benchmark, report, tmp_path)["wrong"]
    assert len(wrong) == 1
    assert wrong[0].startswith("ort: sqnr[")


def _compiled(
    benchmark: tuple[ModuleType, ModuleType], network: str, passes: str, targets: str, folder: Path
) -> tuple[dict, dict]:
    """(the report, what the benchmark finds about it and the files)."""
    made, _ = benchmark
    made.export(made.Form(network, "torchscript", True, 17), folder / "model.onnx")
    arrays = {
        f"{part}/x": made.samples(network, 8, seed) for seed, part in enumerate(("calibration", "eval"))
    }
    np.savez(folder / "data.npz", **arrays)
    parts = [f"--{part}={folder / 'data.npz'}:{part}" for part in ("calibration", "eval")]
    common = ["--quiet", "--no-latency", "--out", str(folder / "out")]
    assert main([str(folder / "model.onnx"), "--passes", passes, "--target", targets, *parts, *common]) == 0
    report = json.loads((folder / "out" / "report.json").read_text(encoding="utf-8"))
    return report, _judged(benchmark, report, folder)


def _judged(benchmark: tuple[ModuleType, ModuleType], report: dict, folder: Path) -> dict:
    with np.load(folder / "data.npz") as arrays:
        feeds = {"x": arrays["eval/x"]}
    lossless = [step["name"] for step in report["steps"]] == ["fold"]
    return benchmark[1].findings(folder / "model.onnx", folder / "out", report, feeds, lossless)
