"""Every command of docs/from-implicit-int8.md does what the page says, but for the engine's build itself."""

import json
import re
import shlex
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import onnx_lathe
from onnx_lathe.optimizer.cli import main
from onnx_lathe.runtime.targets.core.base import Artifact
from onnx_lathe.runtime.targets.core.registry import find as find_target
from tests.support.house import ROOT

PAGE = (ROOT / "docs" / "from-implicit-int8.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^ +(optimize .*)$", PAGE, re.MULTILINE)
SCRIPT = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
LAYERS = ("image", "max_pool2d", "max_pool2d_1", "relu")


def run(command: str, *more: str) -> int:
    return main([*shlex.split(command)[1:], *more])


def report() -> Any:
    return json.loads(Path("build/report.json").read_text())


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lenet5: Path, small_mnist: Path) -> Path:
    """An old project as current directory: a model, the cache of its calibrator, and some pictures."""
    (tmp_path / "model.onnx").write_bytes(lenet5.read_bytes())
    with np.load(small_mnist) as arrays:
        images = arrays["test/image"][:100].astype(np.float32) / 255
        np.savez(tmp_path / "images.npz", image=images, labels=arrays["test/labels"][:100])
    monkeypatch.chdir(tmp_path)
    exec(compile(SCRIPT[0], "docs/from-implicit-int8.md", "exec"), {})
    lines = ["TRT-8601-EntropyCalibration2", *(f"{name}: 3caa5293" for name in LAYERS)]
    Path("calib.cache").write_text("\n".join([*lines, "(Unnamed Layer* 3) [Constant]_output: 3c010a14"]))

    def build(self: object, model: Path, directory: Path, *_: object) -> Artifact:
        path = directory / "model.tensorrt.engine"
        path.write_bytes(b"engine")
        return Artifact((path,), 6)

    monkeypatch.setattr(find_target("tensorrt"), "available", lambda self: None)
    monkeypatch.setattr(find_target("tensorrt"), "build", build)
    return tmp_path


@pytest.mark.parametrize("command", [line for line in COMMANDS if not line.startswith("optimize check")])
def test_the_command_runs(project: Path, command: str) -> None:
    assert run(command, "--no-latency", "--quiet") == 0
    found = report()
    assert found["outcome"] == "done"
    assert found["targets"][0]["files"] == ["model.tensorrt.engine"]


def test_the_page_has_a_command_for_each_way() -> None:
    passes = " ".join(COMMANDS)
    assert all(
        word in passes
        for word in (
            "ranges=calib.cache",
            "float16",
            "layers=",
            "keep=",
            "min_sqnr",
            "sensitivity",
            "method=",
        )
    )


def test_a_project_moves_in_one_command_without_data(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(COMMANDS[0], "--no-latency", "--quiet") == 0
    step = report()["steps"][1]
    assert step["metrics"]["layers"] == 4
    assert [skip["node"] for skip in step["skips"]] == ["(Unnamed Layer* 3) [Constant]_output"]
    assert "biases stay as they are" in capsys.readouterr().out
    check = next(line for line in COMMANDS if line.startswith("optimize check"))
    assert run(check) == 0
    said = capsys.readouterr().out
    assert "by rule: a convolution of 1 to 20 channels gains nothing from INT8" in " ".join(said.split())
    assert "2 of 4 layers run in INT8" in said


def test_layers_of_a_pattern_stay_in_float(project: Path) -> None:
    assert run(next(line for line in COMMANDS if "layers=" in line), "--no-latency", "--quiet") == 0
    assert report()["steps"][1]["metrics"]["layers"] == 2


def test_ranges_that_a_program_set_are_a_cache(project: Path) -> None:
    assert run(COMMANDS[-1], "--no-latency", "--quiet") == 0
    edit = report()["steps"][1]["edits"][0]
    assert "range -1 to 1" in edit["what"]


@pytest.mark.parametrize("option", ["sensitivity=true", "min_sqnr=20", "max_drop=1"])
def test_what_measures_says_that_it_needs_data_beside_a_cache(
    project: Path, option: str, capsys: pytest.CaptureFixture[str]
) -> None:
    command = COMMANDS[0].replace("calib.cache", f"calib.cache, {option}")
    assert run(command) == 2
    said = capsys.readouterr().err.strip()
    assert (
        said
        == "optimize: pass 'int8' needs calibration data for {}; give --data, --train or --calibration, or, where there is none, --calibration synthetic".format(
            option.partition("=")[0]
        )
    )


@pytest.mark.parametrize(
    "content, said",
    [(b"\x08\x07 onnx", "no calibration cache"), (b"TRT-8601-MinMaxCalibration\nimage: 7fc00000", "line 2")],
)
def test_a_wrong_cache_is_one_line_before_anything_runs(
    project: Path, content: bytes, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("calib.cache").write_bytes(content)
    assert run(COMMANDS[0]) == 2
    shown = capsys.readouterr().err.strip()
    assert said in shown
    assert "calib.cache" in shown
    assert "\n" not in shown
    assert not Path("build").exists()


def test_a_cache_of_another_model_leaves_no_engine(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("calib.cache").write_text("TRT-8601-MinMaxCalibration\nconv1_out: 3caa5293\n")
    assert run(COMMANDS[0], "--no-latency", "--quiet") == 2
    assert "no activation of the model has one of its 1 names, such as 'conv1_out'" in capsys.readouterr().err
    assert not list(Path("build").glob("*.engine"))


def test_a_recipe_means_the_cache_from_its_own_folder(project: Path, tmp_path: Path) -> None:
    (project / "old").mkdir()
    (project / "calib.cache").rename(project / "old" / "calib.cache")
    (project / "old" / "recipe.toml").write_text('[[pass]]\nname = "int8"\nranges = "calib.cache"\n')
    assert main(["model.onnx", "--recipe", "old/recipe.toml", "--no-latency", "--quiet"]) == 0


def test_python_takes_a_cache_too(project: Path) -> None:
    made = onnx_lathe.rewrite("model.onnx", "int8(ranges=calib.cache)")
    assert sum(node.op_type == "QuantizeLinear" for node in made.graph.node) == 4


def test_trtexec_of_tensorrt_10_is_told_to_take_types_as_they_are() -> None:
    """As `build.sh` of a Jetson's bundle tells it."""
    passage = next(part for part in PAGE.split("\n\n") if "trtexec --onnx=" in part)
    assert "10.x with `--stronglyTyped`" in passage
    assert "--stronglyTyped" in (ROOT / "docs" / "jetson.md").read_text(encoding="utf-8")
