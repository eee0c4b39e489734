"""The built-in recipes: found by name, listed, printed, and run on networks of others and on LeNet-5."""

import json
import re
from pathlib import Path

import numpy as np
import onnx
import pytest

import onnx_lathe
from onnx_lathe.optimizer.cli import main
from onnx_lathe.optimizer.recipe import load_recipe
from onnx_lathe.optimizer.recipe_library import recipes
from tests.support.builders import random
from tests.support.command import refused
from tests.support.models import MODELS, miniature, shipped_with_onnx

NAMES = ("deep-compression", "dsd", "jetson-int8", "no-data", "no-training-data", "phone", "small-download")
FOREIGN = ("squeezenet", "resnet50")
WANTED = {
    "deep-compression": ("model.onnx", "model.lathe"),
    "dsd": ("model.onnx",),
    "jetson-int8": ("model.jetson/build.sh",),
    "no-data": ("model.onnx", "model.lathe"),
    "no-training-data": ("model.onnx", "model.lathe"),
    "phone": ("model.ncnn.param", "model.ncnn.bin"),
    "small-download": ("model.lathe",),
}


def short(name: str, folder: Path) -> Path:
    """The recipe with trainings of one epoch, and packed fast."""
    path = folder / f"{name}.toml"
    text = recipes()[name].read_text(encoding="utf-8").replace('"pack"', '"pack(effort=fast)"')
    path.write_text(re.sub(r"epochs = \d+", "epochs = 1", text), encoding="utf-8")
    return path


def needs(name: str) -> None:
    if name not in ("jetson-int8", "no-data", "no-training-data"):
        pytest.importorskip("torch")
    if name == "phone":
        pytest.importorskip("ncnn")


def compiled(model: Path, recipe: Path, data: list[str]) -> dict[str, object]:
    code = main([str(model), "--recipe", str(recipe), *data, "--no-latency", "--quiet", "--out", "out"])
    assert code == 0
    return dict(json.loads(Path("out/report.json").read_text(encoding="utf-8")))


@pytest.fixture(scope="module")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("foreign")
    for name in FOREIGN:
        (path,) = shipped_with_onnx(f"light/light_{name}.onnx")
        model = miniature(path, 32)
        onnx.save(model, folder / f"{name}.onnx")
        stored = {tensor.name for tensor in model.graph.initializer}
        (fed,) = [value.name for value in model.graph.input if value.name not in stored]
        np.savez(folder / f"{name}.npz", **{fed: random(20, 3, 32, 32)})
    return folder


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("network", [FOREIGN[0], pytest.param(FOREIGN[1], marks=pytest.mark.slow)])
def test_a_recipe_runs_on_a_network_of_others_without_labels(
    name: str, network: str, foreign: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    needs(name)
    monkeypatch.chdir(tmp_path)
    data = ["--data", str(foreign / f"{network}.npz")]
    report = compiled(foreign / f"{network}.onnx", short(name, tmp_path), data)
    changed = [step["name"] for step in report["steps"] if step["changed"]]  # type: ignore[attr-defined]
    assert set(changed) >= {step.name for step in load_recipe(Path(name)).steps} - {"equalize"}
    for file in WANTED[name]:
        assert Path("out", file).is_file()


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_runs_on_lenet5(
    name: str, lenet5: Path, small_mnist: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    needs(name)
    monkeypatch.chdir(tmp_path)
    data = ["--train", f"{small_mnist}:train", "--eval", f"{small_mnist}:test", "--preprocess", "scale=1/255"]
    report = compiled(lenet5, short(name, tmp_path), [*data, "--gate", "top1 >= 90%"])
    assert report["outcome"] == "done"


def test_no_data_runs_without_any(foreign: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    report = compiled(foreign / "squeezenet.onnx", short("no-data", tmp_path), [])
    size = report["steps"][-1]["size_bytes"]  # type: ignore[index]
    assert size < 0.5 * report["model"]["size_bytes"]  # type: ignore[index]


def test_no_training_data_is_judged_without_labels_and_refused_without_samples(
    lenet5: Path,
    small_mnist: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    with np.load(small_mnist) as stored:
        np.savez("calibration.npz", image=stored["train/image"][:100])
        np.savez("others.npz", image=stored["test/image"][:200])
    data = ["--calibration", "calibration.npz", "--eval", "others.npz", "--preprocess", "scale=1/255"]
    recipe = short("no-training-data", tmp_path)
    gates = ["--gate", "agreement >= 95%", "--gate", "packed ratio >= 5"]
    report = compiled(lenet5, recipe, [*data, *gates])
    assert report["outcome"] == "done"
    steps = {step["name"]: step for step in report["steps"]}  # type: ignore[attr-defined]
    assert steps["refit"]["quality"]["sqnr"] > steps["int8"]["quality"]["sqnr"]
    said = refused(capsys, [str(lenet5), "--recipe", str(recipe), "--out", "none"])
    assert "pass 'prune' needs calibration data; give --data, --train or --calibration" in said


def test_they_are_listed_and_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert tuple(recipes()) == NAMES
    assert main(["recipes"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines() if line[:1].strip()][1:] == [
        *NAMES
    ]
    assert main(["recipes", "phone"]) == 0
    assert capsys.readouterr().out == (MODELS / "recipes" / "phone.toml").read_text(encoding="utf-8")
    assert main(["recipes", "dsd", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["name"] == "dsd"
    assert found["summary"].startswith("Dense-sparse-dense")
    assert onnx_lathe.recipes() == recipes()


def test_they_name_no_layer_no_data_and_no_gate() -> None:
    """They are for any network, with the data and the gate of the command line."""
    for path in recipes().values():
        recipe = load_recipe(path)
        assert (recipe.data, recipe.train, recipe.calibration, recipe.eval, recipe.gates) == (
            *[None] * 4,
            (),
        )
        assert not [step for step in recipe.steps if "layers" in step.options]
        assert re.search(rf"^#   optimize model\.onnx --recipe {path.stem}\b", path.read_text(), re.MULTILINE)


def test_a_file_of_that_name_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert load_recipe(Path("phone")).targets[0].name == "ncnn"
    Path("phone").write_text('passes = "fold"\ntarget = "ort"\n', encoding="utf-8")
    assert load_recipe(Path("phone")).targets[0].name == "ort"


@pytest.mark.parametrize(
    "name, said", [("phon", "did you mean 'phone'?"), ("xyz", "there are deep-compression, dsd,")]
)
def test_a_name_that_is_no_recipe_is_refused(
    name: str, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert said in refused(capsys, ["model.onnx", "--recipe", name])
    assert said in refused(capsys, ["recipes", name])
