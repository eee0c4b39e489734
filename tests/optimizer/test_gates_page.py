"""docs/gates.md: its workflow is valid and its steps run, as do its tests, functions, commands and recipe."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import onnx
import pytest

from onnx_lathe.optimizer.cli import main
from onnx_lathe.optimizer.gate import Gate
from onnx_lathe.optimizer.judging import pytest_plugin
from onnx_lathe.optimizer.judging.metrics import METRICS
from tests.support.builders import build, random
from tests.support.house import ROOT

PAGE = (ROOT / "docs" / "gates.md").read_text(encoding="utf-8")
BLOCKS = {
    language: re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)
    for language in ("yaml", "python", "toml")
}
COMMANDS = re.findall(r"^ {4}(optimize gate .*)$", PAGE, re.MULTILINE)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lenet5: Path, small_mnist: Path) -> Path:
    """A repository with a model, its data, and the command on the path."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "model.onnx").write_bytes(lenet5.read_bytes())
    (tmp_path / "data.npz").write_bytes(small_mnist.read_bytes())
    (tmp_path / "own.py").write_text(BLOCKS["python"][2])
    tool = tmp_path / "bin" / "optimize"
    tool.parent.mkdir()
    tool.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m onnx_lathe "$@"\n')
    tool.chmod(0o755)
    return tmp_path


def environment(project: Path, **more: str) -> dict[str, str]:
    paths = f"{project / 'bin'}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, "PATH": paths, "PYTHONPATH": str(ROOT), **more}


@pytest.mark.slow
def test_the_workflow_runs(project: Path) -> None:
    """Every step that is no action and installs nothing, as GitHub's runner starts it; then the tests of the page."""
    yaml = pytest.importorskip("yaml")
    workflow = yaml.safe_load(BLOCKS["yaml"][0])
    steps = workflow["jobs"]["gates"]["steps"]
    assert [step["uses"].partition("@")[0] for step in steps if "uses" in step] == [
        "actions/checkout",
        "actions/setup-python",
        "actions/upload-artifact",
    ]
    assert steps[-1]["if"] == "always()"
    scripts = [step["run"] for step in steps if "run" in step]
    assert scripts[0] == 'pip install "onnx-lathe[metrics]"'
    summary = project / "summary.md"
    summary.write_text("")
    for script in scripts[1:]:
        ran = subprocess.run(
            ["bash", "--noprofile", "--norc", "-eo", "pipefail", "-c", script],
            env=environment(project, GITHUB_STEP_SUMMARY=str(summary)),
            capture_output=True,
            text=True,
        )
        assert ran.returncode == 0, ran.stderr
    assert summary.read_text(encoding="utf-8").startswith("### Model gates: 2 gates passed")
    suite = ElementTree.parse(project / steps[-1]["with"]["path"]).getroot()
    assert suite.get("tests") == "2"
    (project / "test_models.py").write_text(BLOCKS["python"][0])
    ran = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", pytest_plugin.__name__, "test_models.py"],
        env=environment(project, PYTEST_DISABLE_PLUGIN_AUTOLOAD="1"),
        capture_output=True,
        text=True,
    )
    assert ran.returncode == 0, ran.stdout
    assert "1 passed" in ran.stdout


def test_a_workflow_fails_with_a_gate(project: Path) -> None:
    yaml = pytest.importorskip("yaml")
    (script,) = [
        step["run"]
        for step in yaml.safe_load(BLOCKS["yaml"][0])["jobs"]["gates"]["steps"]
        if step.get("name") == "Judge"
    ]
    (project / "build").mkdir()
    (project / "build" / "model.onnx").write_bytes((project / "model.onnx").read_bytes())
    ran = subprocess.run(
        ["bash", "-e", "-c", script],
        env=environment(project, GITHUB_STEP_SUMMARY=str(project / "summary.md")),
    )
    assert ran.returncode == 3
    assert "1 of 2 gates failed" in (project / "summary.md").read_text(encoding="utf-8")


@pytest.fixture
def detector(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A network whose raw output is what it is fed: boxes by middle and size above the scores of two classes."""
    monkeypatch.chdir(tmp_path)
    text = "(float[n,6,9] image) => (float[n,6,9] raw) { raw = Mul(image, s) }"
    onnx.save(build(text, s=np.float32(1)), "detector.onnx")
    onnx.save(build(text, s=np.float32([1, 1, 1.05, 1.05, 1, 1]).reshape(6, 1)), "small.onnx")
    middle = 30 * (np.arange(9) % 3 + 1) + 0 * random(40, 2, 9)
    middle[:, 1] = 30 * (np.arange(9) // 3 + 1)
    size, scores = 10 + 5 * np.abs(random(40, 2, 9)), 1 / (1 + np.exp(-2 * random(40, 2, 9)))
    raw = np.concatenate([middle, size, scores], axis=1).astype(np.float32)
    boxes = np.concatenate([middle - size / 2, middle + size / 2], axis=1).transpose(0, 2, 1)
    classes = np.where(random(40, 9) > 0, scores.argmax(1), -1)
    np.savez("pictures.npz", images=raw, boxes=boxes, classes=classes)
    Path("boxes.py").write_text(BLOCKS["python"][1])


def test_the_functions_for_a_detector(detector: None, capsys: pytest.CaptureFixture[str]) -> None:
    (command,) = [line for line in COMMANDS if "boxes.py" in line]
    assert main([*shlex.split(command)[1:], "--quiet"]) == 0
    said = capsys.readouterr().out
    assert "map drop <= 10%: " in said
    assert "95 % interval" in said


def test_the_other_commands_and_the_recipe(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("recipe.toml").write_text(BLOCKS["toml"][0])
    assert main(["model.onnx", "--recipe", "recipe.toml", "--no-latency", "--quiet"]) == 0
    assert capsys.readouterr().out.count("judged by its upper end") == 2
    with np.load("data.npz") as arrays:
        images = arrays["test/image"].astype(np.float32) / 255
        np.savez("data.npz", **arrays, image=images.reshape(-1, 1, 28, 28), labels=arrays["test/labels"])
    others = [line for line in COMMANDS if "boxes.py" not in line]
    assert len(others) == 2
    for command in others:
        assert main([*shlex.split(command)[1:], "--quiet"]) == 0


def test_the_page_knows_every_metric_and_its_gates_are_gates() -> None:
    words = set(re.findall(r"`([a-z0-9_]+)`", PAGE))
    assert METRICS.keys() <= words
    rows = re.findall(r"^\| `([^`]+[<>]=[^`]+)` \|", PAGE, re.MULTILINE)
    assert len(rows) == 6
    for row in rows:
        assert Gate.parse(row)
