"""`--fix-input`: an input of the model becomes a constant, and the model given is fed with the same value."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import onnx_lathe
from onnx_lathe.errors import UsageError
from onnx_lathe.optimizer.cli import main
from onnx_lathe.optimizer.recipe import Recipe, load_recipe
from onnx_lathe.optimizer.search.recipe_file import write_recipe
from onnx_lathe.runtime.running import ort
from tests.support.builders import build, random

NETWORK = """(float[N, 64] x, int64 rate) => (float[N, 16] y) {
    wide = Equal(rate, limit)
    y = If (wide) <
        then_branch = one () => (float[N, 16] s) { s = Gemm(x, high) },
        else_branch = other () => (float[N, 16] t) { t = Gemm(x, low) }
    >
}"""


@pytest.fixture
def model(tmp_path: Path) -> Path:
    path = tmp_path / "rates.onnx"
    stored = {"limit": np.array(16000), "high": random(64, 16), "low": random(64, 16)}
    onnx.save(build(NETWORK, **stored), path)
    return path


@pytest.fixture
def data(tmp_path: Path) -> Path:
    path = tmp_path / "data.npz"
    np.savez(path, x=random(40, 64))
    return path


def optimize(*arguments: object) -> int:
    return main([*map(str, arguments), "--quiet"])


def report(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "report.json").read_text())
    return found


def outputs(path: Path, **feeds: np.ndarray) -> np.ndarray:
    return ort.run(ort.session(path), feeds)["y"]


@pytest.mark.parametrize("rate", [16000, 8000])
def test_the_branch_that_the_value_chooses_is_what_is_left(
    model: Path, data: Path, tmp_path: Path, rate: int, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    gates = [
        "--gate",
        "sqnr >= 100 dB",
        "--gate",
        "latency ratio >= 0.001",
        "--gate",
        "memory ratio >= 0.001",
    ]
    fixed = ["--fix-input", f"rate={rate}"]
    assert optimize(model, "--passes", "fold", *fixed, "--data", data, "--out", out, *gates) == 0
    made = onnx.load(out / "model.onnx")
    assert [value.name for value in made.graph.input] == ["x"]
    assert [node.op_type for node in made.graph.node] == ["Gemm"]
    x = random(5, 64)
    np.testing.assert_allclose(
        outputs(out / "model.onnx", x=x), outputs(model, x=x, rate=np.array(rate)), rtol=1e-4, atol=1e-5
    )
    found = report(out)
    assert found["model"]["changes"] == [f"input 'rate' is the constant {rate}"]
    assert found["model"]["fixed_inputs"] == {"rate": rate}
    assert f"input 'rate' is the constant {rate}" in capsys.readouterr().out
    assert {gate["subject"] for gate in found["gates"]} == {"model"}
    assert main(["report", str(out), "--html", str(tmp_path / "again.html")]) == 0


def test_what_the_data_holds_of_it_is_not_read(model: Path, tmp_path: Path) -> None:
    path, out = tmp_path / "both.npz", tmp_path / "out"
    np.savez(path, x=random(40, 64), rate=np.full(40, 8000), labels=np.arange(40) % 3)
    assert optimize(model, "--passes", "fold", "--fix-input", "rate=16000", "--data", path, "--out", out,
                    "--gate", "top1 drop <= 0%") == 0  # fmt: skip
    said = f"{path}: array 'rate' is not read: the model has this input as a constant"
    assert report(out)["data"].count(said) == 1
    loader = tmp_path / "loader.py"
    loader.write_text(
        "import numpy as np\ndef batches():\n    r = np.random.default_rng(0)\n    for _ in range(3):\n"
        "        yield {'x': r.standard_normal((8, 64)).astype(np.float32), 'rate': np.full(8, 8000)}\n"
    )
    arguments = ["--fix-input", "rate=16000", "--calibration", f"{loader}:batches", "--eval", path]
    assert optimize(model, "--passes", "fold,int8", *arguments, "--out", out, "--force") == 0
    assert sum("array 'rate' is not read" in note for note in report(out)["data"]) == 2
    arrays = {"x": random(40, 64), "rate": np.full(40, 8000)}
    made = onnx_lathe.rewrite(model, "fold, int8", data=arrays, fix_inputs={"rate": np.int64(16000)})
    assert [value.name for value in made.graph.input] == ["x"]


def test_a_recipe_fixes_inputs_and_the_command_others(model: Path, data: Path, tmp_path: Path) -> None:
    recipe, out = tmp_path / "recipe.toml", tmp_path / "out"
    recipe.write_text('passes = "fold"\n[fix-input]\nrate = 8000\n')
    assert load_recipe(recipe).fix_inputs == {"rate": 8000}
    assert optimize(model, "--recipe", recipe, "--data", data, "--out", out) == 0
    assert report(out)["model"]["fixed_inputs"] == {"rate": 8000}
    assert (
        optimize(
            model, "--recipe", recipe, "--fix-input", "rate=16000", "--data", data, "--out", out, "--force"
        )
        == 0
    )
    assert report(out)["model"]["fixed_inputs"] == {"rate": 16000}
    write_recipe(recipe, Recipe(fix_inputs={"rate": 1, "flags": [True, False], "a b": [[0.5]]}), [])
    assert load_recipe(recipe).fix_inputs == {"rate": 1, "flags": [True, False], "a b": [[0.5]]}
    for text, said in (
        ("fix-input = 3", "fix-input takes values by the names"),
        ('[fix-input]\nrate = "a"', "'rate' takes a number"),
    ):
        recipe.write_text(text)
        with pytest.raises(UsageError, match=said):
            load_recipe(recipe)


def test_a_run_goes_on_with_the_same_value_alone(
    model: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [
        model,
        "--passes",
        "fold",
        "--data",
        data,
        "--out",
        tmp_path / "out",
        "--gate",
        "sqnr >= 100 dB",
    ]
    assert optimize(*arguments, "--fix-input", "rate=16000") == 0
    assert optimize(*arguments, "--fix-input", "rate=16000", "--resume") == 0
    assert optimize(*arguments, "--fix-input", "rate=8000", "--resume") == 2
    assert "the reading of the model changed" in capsys.readouterr().err


def test_a_model_without_passes_is_built_and_checked_so(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert optimize("build", model, "--fix-input", "rate=16000", "--target", "ort", "--out", out) == 0
    assert [value.name for value in onnx.load(out / "model.ort.onnx").graph.input] == ["x"]
    assert optimize("check", model, "--target", "litert", "--fix-input", "rate=16000") == 0
    capsys.readouterr()
    assert optimize("check", model, "--target", "litert") == 4
    assert [one.refused for one in onnx_lathe.check(model, "litert", fix_inputs={"rate": 8000})] == [[]]


def test_finished_models_are_judged_with_the_value(
    model: Path, data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    assert optimize(model, "--passes", "fold", "--fix-input", "rate=16000", "--out", out) == 0
    made = out / "model.onnx"
    for rate, code in ((16000, 0), (8000, 3)):
        given = ["--fix-input", f"rate={rate}", "--data", data]
        assert (
            optimize(
                "gate", model, made, *given, "--gate", "sqnr >= 60 dB", "--gate", "latency ratio >= 0.001"
            )
            == code
        )
        assert optimize("run", made, "--against", model, *given) == 0
    capsys.readouterr()
    assert optimize("gate", model, made, "--fix-input", "rata=1", "--data", data, "--gate", "sqnr >= 60") == 2
    said = capsys.readouterr().err
    assert "--fix-input rata: no ONNX model here has this input" in said
    assert "'x', 'rate'" in said


def test_settings_are_measured_and_searched_so(model: Path, tmp_path: Path) -> None:
    data = {"x": random(400, 64), "labels": np.arange(400) % 3}
    found = onnx_lathe.sensitivity(
        model, "prune", data=data, strengths=(0.5,), fix_inputs={"rate": 16000}, cache=tmp_path / "c.jsonl"
    )
    assert len({point.layer for point in found.points}) == 1
    record = onnx_lathe.search(
        model, "fold, prune", "sqnr >= 0 dB", data=data, minimize="latency", budget="20s", trials=3, fix_inputs={"rate": 16000},
        out=tmp_path / "search",
    )  # fmt: skip
    assert record.exit_code == 0
    assert load_recipe(next((tmp_path / "search").rglob("*.toml"))).fix_inputs == {"rate": 16000}


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["rate"], "--fix-input 'rate': write NAME=VALUE, such as sr=16000"),
        (["rate="], "write NAME=VALUE"),
        (["rate=fast"], "'fast' is no number or list"),
        (["rate=1", "rate=2"], "'rate' is there twice"),
        (["rate=[1"], "'[1' is no number or list"),
        (["rate={}"], "'rate' takes a number, true or false, or a list of them"),
        (["speed=1"], "rates.onnx: has no input 'speed' to make a constant of; its inputs are 'x', 'rate'"),
        (
            ["rate=0.5"],
            "rates.onnx: input 'rate' is int64, one number: its value takes whole numbers, not 0.5",
        ),
    ],
)
def test_what_cannot_be_is_one_line(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], given: list[str], said: str
) -> None:
    flags = [part for text in given for part in ("--fix-input", text)]
    assert optimize(model, "--passes", "fold", "--out", tmp_path / "out", *flags) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()
