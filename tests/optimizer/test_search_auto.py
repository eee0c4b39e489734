"""`optimize auto`: passes that suit a target, and the target built."""

import json
import re
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
from tests.support.splitting import low

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
        ("pack", "fold, codebook(rounding=hessian, mantissa=7, biases=8)", "packed"),
        ("ort, pack", "fold, prune, codebook, int8", "packed"),
        ("onnx", "fold, codebook", "size"),
    ],
)
def test_passes_suit_the_target(target: str, passes: str, minimize: str) -> None:
    chosen = plan(Recipe(targets=parse_calls(target, "t")))
    assert ", ".join(map(str, chosen.recipe.steps)) == passes
    assert chosen.minimize == minimize
    assert passes in chosen.note


@pytest.mark.parametrize(
    "target, minimize, passes", [("onnx", "macs", "fold, tucker"), ("ort", "latency", "fold, tucker, int8")]
)
def test_fewer_multiplications_are_those_of_thinner_layers(target: str, minimize: str, passes: str) -> None:
    chosen = plan(Recipe(targets=parse_calls(target, "t")), minimize)
    assert ", ".join(map(str, chosen.recipe.steps)) == passes
    assert chosen.minimize == minimize
    with pytest.raises(UsageError, match="'optimize search --minimize packed' takes passes"):
        plan(Recipe(targets=parse_calls(target, "t")), "packed")


def test_ranks_of_each_layer_are_searched(place: Path) -> None:
    """Convolutions of low rank: half of the multiplications and more go without a loss."""
    network = """(float[N, 8, 6, 6] x) => (float[N, 6] y) {
        a = Conv <pads=[1, 1, 1, 1]> (x, w1)  r = Relu (a)  b = Conv <pads=[1, 1, 1, 1]> (r, w2)
        p = GlobalAveragePool (b)  f = Flatten (p)  y = Gemm (f, w3)
    }"""
    thin = low(16, 8, 3, 3, rank=2)
    model = build(network, w1=thin, w2=low(16, 16, 3, 3, rank=2), w3=random(16, 6))
    onnx.save(model, "model.onnx")
    inputs = random(1200, 8, 6, 6)
    np.savez("data.npz", x=inputs, labels=onnx_lathe.open(model).run(["y"], {"x": inputs})[0].argmax(1))
    record = onnx_lathe.auto(
        "model.onnx",
        "onnx",
        "top1 drop <= 10%",
        minimize="macs",
        data="data.npz",
        budget="2h",
        trials=12,
        threads=1,
    )
    assert record.exit_code == 0
    assert record.winner is not None
    assert record.winner.ratio < 0.7
    recipe = (place / "build" / "search" / "recipe.toml").read_text()
    assert 'name = "tucker"' in recipe
    assert set(re.findall(r"w\d", recipe)) == {"w1", "w2"}


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
