"""Engines of models that leave sizes open, by command: what is taken without data, and several profiles."""

import importlib.util
import json
from pathlib import Path

import onnx
import pytest

from onnx_lathe.errors import UsageError
from onnx_lathe.optimizer.cli import main
from onnx_lathe.runtime.targets.core.registry import find
from tests.support import builders

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None, reason="tensorrt_rtx is not installed"
)
PICTURES = "(float[n, 3, h, w] x) => (float[n, 4, a, b] y) { y = Conv (x, k) }"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "open.onnx"
    onnx.save(builders.build(PICTURES, 17, k=builders.random(4, 3, 3, 3)), path)
    return path


def built(model: Path, target: str) -> tuple[int, dict, list]:
    """Exit code, report and the sidecar's profiles."""
    out = model.parent / "out"
    code = main(["build", str(model), "--target", target, "--out", str(out), "--quiet"])
    sidecar = out / "model.tensorrt-rtx.engine.json"
    found = json.loads(sidecar.read_text())["profiles"] if sidecar.exists() else []
    return code, json.loads((out / "report.json").read_text()), found


def test_without_data_and_shapes_an_engine_is_built_and_its_size_said(model: Path) -> None:
    code, report, (profile,) = built(model, "tensorrt-rtx")
    assert code == 0
    assert profile["x"] == {"min": [1, 3, 224, 224], "opt": [1, 3, 224, 224], "max": [32, 3, 224, 224]}
    assert any("built for Nx3x224x224 (N: option batch)" in text for text in report["warnings"])


def test_several_profiles_of_one_command(model: Path) -> None:
    target = "tensorrt-rtx(batch=1|2:4:8, shapes={x: Nx3x16x16|Nx3x16x16:Nx3x24x32:Nx3x32x32})"
    code, report, profiles = built(model, target)
    assert code == 0
    assert [one["x"]["opt"] for one in profiles] == [[1, 3, 16, 16], [4, 3, 24, 32]]
    assert not any("built for" in text for text in report["warnings"])


def test_profiles_that_do_not_agree_are_refused(model: Path, capsys: pytest.CaptureFixture[str]) -> None:
    target = "tensorrt-rtx(batch=1|2, shapes={x: Nx3x8x8|Nx3x9x9|Nx3x7x7})"
    assert main(["build", str(model), "--target", target, "--out", str(model.parent / "out"), "--quiet"]) == 2
    assert (
        "option shapes of 'x' is for 3 profiles, option batch for 2: give one, or 3"
        in capsys.readouterr().err
    )


def test_options_that_do_not_fit_the_model_are_wrong_use_in_a_build_too(
    model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as sizes that only what the passes made of the model contradicts."""

    def contradicted(*_: object) -> None:
        raise UsageError("option shapes: dimension 0 of input 'x' is fixed at 1")

    monkeypatch.setattr(find("tensorrt-rtx"), "build", contradicted)
    code, report, _ = built(model, "tensorrt-rtx")
    assert (code, report["exit_code"]) == (2, 2)
    assert "is fixed at 1" in report["targets"][0]["error"]
