"""`optimize auto`: passes that suit a target, and the target built."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import onnx_lathe
from onnx_lathe.errors import UsageError
from onnx_lathe.optimizer.cli import main
from onnx_lathe.optimizer.recipe import Recipe, parse_calls
from onnx_lathe.optimizer.search import table as tables
from onnx_lathe.optimizer.search.automatic import plan
from tests.support.builders import build, random
from tests.support.command import refused

pytest.importorskip("optuna")
NETWORK = "(float[N, 12] x) => (float[N, 6] y) { h = MatMul (x, w1)  r = Relu (h)  y = MatMul (r, w2) }"


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """A short look at sensitivity, however long the budget."""
    monkeypatch.setattr(tables, "RUNS", 20)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """With a model and labels that are its own answers, as current directory."""
    model = build(NETWORK, w1=random(12, 64), w2=random(64, 6))
    onnx.save(model, tmp_path / "model.onnx")
    inputs = random(2000, 12)  # enough to tell a drop of 10 points, and to confirm the winner
    labels = onnx_lathe.open(model).run(["y"], {"x": inputs})[0].argmax(1)
    np.savez(tmp_path / "data.npz", x=inputs, labels=labels)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def automatic(*more: str) -> list[str]:
    return [
        "auto", "model.onnx", "--data", "data.npz", "--gate", "top1 drop <= 10%", "--budget", "2h", "--trials", "40", "--margin", "3",
        "--threads", "1", "--quiet", *more,
    ]  # fmt: skip


@pytest.mark.parametrize("target, built", [("pack", "model.lathe"), ("ort", "model.ort.onnx")])
def test_it_ends_with_the_target(target: str, built: str, place: Path) -> None:
    assert main(automatic("--target", target)) == 0
    record: dict[str, Any] = json.loads((place / "build" / "search" / "search.json").read_text())
    names = {one["name"]: one for one in record["final"]["targets"]}
    assert names[target]["error"] is None
    assert (place / "build" / "search" / "best" / built).exists()
    assert record["winner"]["ratio"] < 0.6
    assert record["final"]["gates"][0]["passed"]


@pytest.mark.parametrize(
    "target, passes, minimize",
    [
        ("ncnn", "fold, equalize, int8", "size"),
        ("onnx, tensorrt-rtx", "fold, equalize, int8", "size"),
        ("pack", "fold, prune, codebook", "packed"),
        ("ort, pack", "fold, prune, codebook, int8", "packed"),
        ("onnx", "fold, codebook", "size"),
    ],
)
def test_passes_suit_the_target(target: str, passes: str, minimize: str) -> None:
    chosen = plan(Recipe(targets=parse_calls(target, "t")))
    assert ", ".join(map(str, chosen.recipe.steps)) == passes
    assert chosen.minimize == minimize
    assert passes in chosen.note


def test_auto_needs_a_target(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "name one with --target" in refused(capsys, automatic())


def test_as_a_function(place: Path) -> None:
    record = onnx_lathe.auto(
        "model.onnx", "ort", "top1 drop <= 10%", data="data.npz", budget="2h", trials=3, threads=1
    )
    assert record.exit_code in (0, 3)
    assert record.minimize == "size"
    with pytest.raises(UsageError, match="there is no argument 'dat'"):
        onnx_lathe.auto("model.onnx", "ort", "top1 drop <= 10%", dat="data.npz")
