"""Gates of a whole run: metrics against labels, intervals and memory, from a recipe and from the command line."""

import json
from pathlib import Path

import jsonschema
import numpy as np
import onnx
import pytest

from onnx_lathe.errors import UsageError
from onnx_lathe.optimizer.cli import main
from onnx_lathe.optimizer.recipe import load_recipe
from tests.support.builders import build, random
from tests.support.command import refused
from tests.support.house import ROOT

OWN = """
import numpy as np

def margin(answers, labels):
    best = np.sort(answers["y"], axis=1)
    return best[:, -1] - best[:, -2]

def decode(outputs):
    return list(outputs["y"].argmax(1))

def right(answers, labels):
    return np.equal(answers, labels)
"""
RECIPE = """
passes = "fold, prune(sparsity=0.3)"
gate = ["top1 drop <= 60%", "f1 >= 10%", "margin >= 0", "margin drop <= 90% relative", "memory <= 1 GB"]
confidence = "90%"
tolerance = ["2%", "sqnr=1dB"]
target = "onnx"

[metric]
margin = "own.py:margin"

[data]
eval = "data.npz"
"""


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A classifier, its data, and a recipe in a folder below."""
    monkeypatch.chdir(tmp_path)
    weight, x = random(16, 4), random(80, 16)
    onnx.save(build("(float[n,16] x) => (float[n,4] y) { y = MatMul(x, w) }", w=weight), "model.onnx")
    below = tmp_path / "recipes"
    below.mkdir()
    (below / "own.py").write_text(OWN)
    (below / "recipe.toml").write_text(RECIPE)
    np.savez(below / "data.npz", x=x, labels=(x @ weight).argmax(1))
    return tmp_path


def report() -> dict:
    found = json.loads(Path("build/report.json").read_text())
    jsonschema.validate(found, json.loads((ROOT / "docs" / "report.schema.json").read_text()))
    return found


def test_a_recipe_says_how_gates_judge(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["model.onnx", "--recipe", "recipes/recipe.toml", "--no-latency", "--quiet"]
    assert main(command) == 0
    found = report()
    gates = {gate["gate"]: gate for gate in found["gates"]}
    drop = gates["top1 drop <= 60%"]
    assert drop["interval"]["confidence"] == 0.9
    assert drop["interval"]["samples"] == 80
    assert "judged by its upper end" in drop["message"]
    assert drop["margin"] == pytest.approx(0.6 - drop["interval"]["high"])
    assert found["baseline"]["margin"] > found["steps"][-1]["quality"]["margin"]
    assert gates["memory <= 1 GB"]["measured"] > 0
    assert found["steps"][-1]["quality"]["cosine"] < 1
    assert "cosine" not in found["steps"][-1]["worse"]
    assert main([*command, "--confidence", "99%", "--gate", "top1 drop <= 60%", "--force"]) == 0
    assert report()["gates"][0]["interval"]["confidence"] == 0.99


def test_a_run_that_goes_on_has_intervals_and_new_metrics(
    project: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["model.onnx", "--passes", "fold, prune(sparsity=0.3)", "--eval", "recipes/data.npz"]
    command += ["--no-latency", "--quiet"]
    assert main(command) == 0
    assert main([*command, "--resume", "--gate", "top1 drop <= 60%", "--gate", "f1 drop <= 60%"]) == 0
    found = report()
    assert [gate["interval"]["samples"] for gate in found["gates"]] == [80, 80]
    assert found["steps"][-1]["quality"]["f1"] < 1


def test_targets_are_judged_by_intervals_too(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["model.onnx", "--passes", "fold, prune(sparsity=0.3)", "--eval", "recipes/data.npz"]
    command += ["--target", "ort", "--no-latency", "--quiet", "--metric", "right=recipes/own.py:right"]
    command += ["--postprocess", "recipes/own.py:decode", "--gate", "right drop <= 60%"]
    assert main(command) == 0
    found = report()
    assert [gate["subject"] for gate in found["gates"]] == ["model", "ort"]
    assert found["gates"][0]["interval"] == found["gates"][1]["interval"]
    assert found["gates"][0]["interval"]["high"] > found["gates"][0]["measured"]


@pytest.mark.parametrize(
    "line, said",
    [
        ('confidence = "2"', "--confidence 2: give 50% to 99.9%"),
        ("confidence = 0.95", "'confidence' takes str, not 0.95"),
        ('tolerance = "sqnr"', "--tolerance sqnr: write points"),
        ("[metric]\nmine = 3", "'metric.mine' takes str, not 3"),
        ('confidense = "95%"', "unknown key 'confidense'; did you mean 'confidence'?"),
    ],
)
def test_mistakes_in_a_recipe(project: Path, line: str, said: str) -> None:
    path = project / "recipe.toml"
    path.write_text(line)
    with pytest.raises(UsageError) as refusal:
        load_recipe(path)
    assert said in str(refusal.value)


def test_files_of_a_recipe_are_meant_from_its_folder(project: Path) -> None:
    path = project / "recipes" / "other.toml"
    path.write_text(
        '[metric]\nm = "own.py:right"\n[data]\npostprocess = "own.py:decode"\nsymbols = "s.txt"\n'
    )
    recipe = load_recipe(path)
    assert recipe.metrics == {"m": str(project / "recipes" / "own.py:right")}
    assert recipe.postprocess == str(project / "recipes" / "own.py:decode")
    assert recipe.symbols == str(project / "recipes" / "s.txt")


def test_a_gate_without_labels_says_what_it_needs(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    np.savez("bare.npz", x=random(20, 16))
    command = ["model.onnx", "--passes", "fold", "--eval", "bare.npz", "--gate", "f1 >= 10%", "--no-latency"]
    said = refused(capsys, [*command, "--quiet"])
    assert (
        said == "optimize: metric 'f1' needs labels, and the data has none; one per sample: its class number"
    )
    assert not Path("build").exists()
    assert "map needs evaluation data whose labels are boxes" in refused(
        capsys, ["model.onnx", "--passes", "fold", "--gate", "map >= 10%", "--quiet"]
    )


def test_gates_that_see_the_model_alone_are_named(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """ort's model is timed, and pack's file is neither run nor the file of the gate on size."""
    command = ["model.onnx", "--passes", "fold", "--no-html", "--force"]
    gates = ["--gate", "size <= 1 MB; latency <= 100000 ms"]
    said = "gates that did not judge what was built for a target: size <= 1 MB (ort, pack); latency <= 100000 ms (pack)"
    assert main([*command, *gates, "--target", "ort", "--target", "pack"]) == 0
    assert [text for text in report()["warnings"] if text.startswith("gates")] == [said]
    assert f"warning: {said}" in capsys.readouterr().err
    assert [found["name"] for found in report()["targets"]] == ["ort", "pack"]
    assert main([*command, *gates, "--target", "onnx"]) == 0
    assert not [text for text in report()["warnings"] if text.startswith("gates")]


def test_options_that_name_calls_may_be_repeated(project: Path) -> None:
    assert main(["check", "model.onnx", "--target", "nonsense", "--target", "ort"]) == 2
    command = ["model.onnx", "--passes", "fold", "--passes", "prune(sparsity=0.3)", "--no-latency"]
    assert main([*command, "--no-html", "--force", "--target", "onnx"]) == 0
    assert [step["name"] for step in report()["steps"]] == ["fold", "prune"]
    assert (
        main(["build", "model.onnx", "--target", "onnx", "--target", "pack", "--out", "build", "--force"])
        == 0
    )
    assert [found["name"] for found in report()["targets"]] == ["onnx", "pack"]
