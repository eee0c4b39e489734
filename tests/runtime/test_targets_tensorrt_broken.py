"""Broken models by the command: each is refused by one line that names what is wrong, and leaves nothing behind.

All but a few are refused before TensorRT is asked: a builder that starts fails the test then.
"""

import importlib.util
from pathlib import Path
from typing import Any

import pytest

from onnx_lathe.optimizer.cli import main
from onnx_lathe.runtime.targets.tensorrt import process
from tests.support.broken import BROKEN, FILE, Broken

RECORDS = {"report.json", "report.html", "run.json"}
"""What a run writes that has measured its model, whatever came of it."""


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Models whose build was asked of TensorRT."""
    models: list[str] = []
    real = process.ask

    def ask(request: Any, *arguments: Any, **options: Any) -> dict[str, Any]:
        if "model" not in request:
            return {"version": "1"}
        models.append(request["model"])
        return real(request, *arguments, **options)

    monkeypatch.setattr(process, "ask", ask)
    return models


def target(case: Broken) -> str:
    return "tensorrt-rtx" + (f"({case.options})" if case.options else "")


def left(folder: Path) -> set[str]:
    return {path.name for path in folder.rglob("*") if path.is_file()} - RECORDS


@pytest.mark.skipif(importlib.util.find_spec("tensorrt_rtx") is None, reason="tensorrt_rtx is not installed")
@pytest.mark.parametrize("case", BROKEN, ids=lambda case: case.name)
def test_a_build_is_refused_in_one_line(
    case: Broken, tmp_path: Path, capfd: pytest.CaptureFixture[str], started: list[str]
) -> None:
    given = tmp_path / "given"
    given.mkdir()
    case.write(given / FILE)
    before = {path.name for path in given.iterdir()}
    arguments = [
        "build",
        str(given / FILE),
        "--target",
        target(case),
        "--out",
        str(tmp_path / "out"),
        "--quiet",
    ]
    assert main(arguments) == case.codes[0]
    captured = capfd.readouterr()
    refused = captured.err.splitlines()
    assert all(line.startswith("optimize: ") for line in refused), captured.err
    lines = refused + [line for line in captured.out.splitlines() if "FAILED" in line]
    assert len(lines) == 1, captured
    assert all(words in lines[0] for words in case.says), lines[0]
    assert "catchCudaError" not in lines[0]
    assert bool(started) == case.builder
    assert {path.name for path in given.iterdir()} == before
    assert left(tmp_path / "out") == set()


@pytest.mark.parametrize("case", BROKEN, ids=lambda case: case.name)
def test_a_check_says_the_same(
    case: Broken, tmp_path: Path, capfd: pytest.CaptureFixture[str], started: list[str]
) -> None:
    case.write(tmp_path / FILE)
    before = {path.name for path in tmp_path.iterdir()}
    assert main(["check", str(tmp_path / FILE), "--target", target(case)]) == case.codes[1]
    captured = capfd.readouterr()
    if case.codes[1] == 2:
        assert len(captured.err.splitlines()) == 1, captured.err
    else:
        assert captured.err == ""
    said = " ".join((captured.err + captured.out).split())
    if case.codes[1]:
        assert all(words in said for words in case.says), said
    assert not started
    assert {path.name for path in tmp_path.iterdir()} == before
