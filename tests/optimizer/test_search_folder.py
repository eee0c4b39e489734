"""What a search keeps and erases: earlier results, interruptions, failures after the last trial, and a winner that is
confirmed.
"""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from onnx_lathe.errors import DataError, UsageError
from onnx_lathe.optimizer.cli import main
from onnx_lathe.optimizer.recipe import Recipe, parse_calls
from onnx_lathe.optimizer.report.profile import page
from onnx_lathe.optimizer.search import confirming
from onnx_lathe.optimizer.search import search as searching
from onnx_lathe.optimizer.search import table as tables
from onnx_lathe.optimizer.search.bench import Bench
from onnx_lathe.optimizer.search.clock import Clock, OutOfTimeError
from onnx_lathe.optimizer.search.judging import Verdict
from onnx_lathe.optimizer.search.request import SearchRequest, open_search
from onnx_lathe.optimizer.search.sensitivity import Point, Profile
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
    onnx.save(build(NETWORK, w1=random(12, 64), w2=random(64, 6)), tmp_path / "m.onnx")
    np.savez(tmp_path / "d.npz", x=random(1500, 12))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def arguments(*more: str, gate: str = "agreement >= 60%") -> list[str]:
    return [
        "search", "m.onnx", "--passes", "codebook", "--gate", gate, "--data", "d.npz", "--budget", "2h", "--trials", "6",
        "--threads", "1", "--quiet", "--out", "out", *more,
    ]  # fmt: skip


def record() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(Path("out/search.json").read_text())
    return found


def earlier(place: Path) -> dict[str, bytes]:
    (place / "out" / "best").mkdir(parents=True)
    for name in ("search.json", "recipe.toml", "study.journal", "best/stale.onnx"):
        (place / "out" / name).write_bytes(b"earlier")
    return files(place)


def files(place: Path) -> dict[str, bytes]:
    return {str(one): one.read_bytes() for one in (place / "out").rglob("*") if one.is_file()}


@pytest.mark.parametrize("how", ["--force", "--resume"])
@pytest.mark.parametrize(
    "more",
    [
        ["--storage", "postgresql://me@127.0.0.1:1/none"],
        ["--target", "tensorrt(builder=nonsense)"],
        ["--train", "none"],
    ],
)
def test_a_search_that_cannot_run_leaves_the_earlier_one(
    how: str, more: list[str], place: Path, capsys: Any
) -> None:
    before = earlier(place)
    assert main(arguments(how, *more)) in (2, 4)
    assert files(place) == before


def test_force_erases_all_of_the_earlier_search(place: Path) -> None:
    earlier(place)
    assert main(arguments("--force")) == 0
    assert not (place / "out" / "best" / "stale.onnx").exists()
    found = record()
    assert found["confirmed"]["samples"] > 100
    assert 1 <= found["confirmed"]["tried"] <= confirming.MOST
    assert found["confirmed"]["z"] == 1.0
    assert found["confirmed"]["metrics"]["agreement"] >= 0.6
    assert "confirmed on" in found["chosen_on"]
    assert (place / "out" / "best" / "model.onnx").exists()


def test_none_is_confirmed(place: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    earlier(place)
    monkeypatch.setattr(confirming, "confirm", lambda *given: Verdict(False, 1.0, ()))
    assert main(arguments("--force")) == 3
    found = record()
    assert found["winner"] is None
    assert found["confirmed"]["tried"] == 1
    assert found["nearest_miss"]["passed"]
    said = capsys.readouterr().out
    assert "samples that chose nothing" in said
    assert not (place / "out" / "recipe.toml").exists()


def interrupt(*given: Any, **named: Any) -> Any:
    raise KeyboardInterrupt


def fail(*given: Any, **named: Any) -> Any:
    raise DataError("out.npz: gone")


@pytest.mark.parametrize(
    "owner, name, becomes, code",
    [
        (Bench, "exact", interrupt, 130),
        (searching.pipeline, "run", interrupt, 130),
        (searching.pipeline, "run", fail, 2),
    ],
)
def test_what_ends_it_after_the_last_trial_leaves_the_record(
    owner: Any,
    name: str,
    becomes: Callable[..., Any],
    code: int,
    place: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(owner, name, becomes)
    assert main(arguments()) == code
    found = record()
    assert found["exit_code"] == code
    assert len(found["trials"]) == 6
    assert found["winner"]
    assert (place / "out" / "recipe.toml").exists()


def test_a_budget_that_the_opening_spends_is_refused(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    def late(*given: Any) -> Any:
        raise OutOfTimeError

    monkeypatch.setattr(searching, "open_search", late)
    assert "--budget 7200s: was spent before the first trial" in refused(capsys, arguments())
    assert not (place / "out").exists()


def test_opening_watches_the_clock(place: Path) -> None:
    recipe = Recipe(parse_calls("fold, codebook", "p"), ("agreement >= 90%",), data="d.npz")
    with pytest.raises(OutOfTimeError):
        open_search(SearchRequest(Path("m.onnx"), recipe, Path("out")), Clock(0.0), print, 1)


def test_sensitivity_ends_with_its_share_of_the_time(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = Recipe(parse_calls("codebook", "p"), ("agreement >= 90%",), data="d.npz")
    clock = Clock(time.time() + 1000)
    opened = open_search(SearchRequest(Path("m.onnx"), recipe, Path("out")), clock, print, 1)
    assert opened.bench.composer is not None
    looked: list[str] = []

    def curve(*given: Any) -> Callable[[float], float]:
        looked.append(given[-1])
        clock.ends -= 400
        return lambda moved: 0.0

    monkeypatch.setattr(tables, "_noise_curve", curve)
    assert len(tables.measure_table(opened.bench, clock, print)) == len(looked) == 1


def test_other_calibration_data_is_another_study(place: Path) -> None:
    found = set()
    for name in ("c1", "c2"):
        np.savez(f"{name}.npz", x=random(100, 12) * (50 if name == "c2" else 1))
        recipe = Recipe(
            parse_calls("int8", "p"), ("agreement >= 90%",), train="d.npz", calibration=f"{name}.npz"
        )
        opened = open_search(
            SearchRequest(Path("m.onnx"), recipe, Path("out"), "size"), Clock(1e12), print, 1
        )
        found.add(opened.identity)
    assert len(found) == 2


def test_a_long_grid_is_refused(place: Path, capsys: Any) -> None:
    for values in ("0.1..0.9:1e-7", "0.1..0.9:1e-320"):
        asked = arguments("--search", f"prune.sparsity={values}")
        asked[asked.index("codebook")] = "prune"
        assert "more than 1,000 values are too many" in refused(capsys, asked)


def test_a_profile_with_a_figure_missing_is_shown() -> None:
    profile = Profile("m", "codebook", {}, "d", [Point("w", "w", 4, {"sqnr": 20.0}), Point("w", "w", 3, {})])
    assert "20.0 dB" in page(profile)


def test_a_gate_of_memory_is_refused(place: Path, capsys: Any) -> None:
    assert "memory" in refused(capsys, arguments("--gate", "memory <= 1 MB"))
    with pytest.raises(UsageError, match="memory"):
        SearchRequest(
            Path("m.onnx"), Recipe(parse_calls("codebook", "p"), ("memory <= 1 MB",)), Path("out")
        ).check()
