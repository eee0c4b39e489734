"""The same bits again: what benchmarks/torture_parts/determinism.py asks of every pass, and a sample of it."""

import importlib
import re
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType

import pytest

from onnx_lathe.optimizer.cli import main
from onnx_lathe.passes.core.registry import all_passes
from onnx_lathe.runtime.targets.core.registry import targets
from tests.support.house import ROOT

SAMPLE = ("prune-global", "codebook", "int8-weights", "svd-weight")
UNLIKE = ("report.json", "run.json", "layers.json")


@pytest.fixture
def determinism(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    return importlib.import_module("torture_parts.determinism")


def files(folder: Path) -> dict[str, bytes]:
    found = [path for path in folder.rglob("*") if path.is_file() and path.name not in UNLIKE]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in found}


@pytest.mark.parametrize("name", SAMPLE)
def test_two_threads_give_the_bits_of_one(determinism: ModuleType, tmp_path: Path, name: str) -> None:
    arguments = determinism.cases(tmp_path)[name]
    for threads in ("1", "2"):
        out = ["--out", str(tmp_path / threads), "--threads", threads]
        assert main([*arguments, *out, "--no-latency", "--no-html", "--quiet"]) == 0
    assert files(tmp_path / "1")
    assert files(tmp_path / "1") == files(tmp_path / "2")


def test_every_pass_has_a_case(determinism: ModuleType, tmp_path: Path) -> None:
    every = determinism.cases(tmp_path)
    assert len(every) == determinism.CASES
    told = " ".join(words[2] for words in every.values())
    assert [name for name in all_passes() if not re.search(rf"\b{name}\b", told)] == []
    built = {name.removeprefix("target-") for name in every if name.startswith("target-")}
    assert built <= set(targets())


def found(
    first: Mapping[str, str], again: Mapping[str, str], threads: Mapping[str, str], code: int = 0
) -> dict[str, tuple[int, Mapping[str, str], str]]:
    return {
        "first": (code, first, "said"), "again": (0, again, ""), "two threads": (0, threads, "")
    }  # fmt: skip


def test_another_file_fails_and_an_exception_passes(
    determinism: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    same, other = {"model.onnx": "1"}, {"model.onnx": "2"}
    assert determinism.judged("a", found(same, same, same)).verdict == "passed"
    outcome = determinism.judged("a", found(same, same, other))
    assert (outcome.verdict, outcome.reason) == ("failed", "two threads: model.onnx differ")
    assert determinism.judged("a", found(same, same, {})).verdict == "failed"
    assert determinism.judged("a", found(same, same, same, code=2)).reason == "exit code 2: said"
    monkeypatch.setattr(determinism, "EXCEPTIONS", {("a", "two threads"): "sums"})
    assert determinism.judged("a", found(same, same, other)).kind == "two threads: sums"
    assert "and is the same" in determinism.judged("a", found(same, same, same)).reason
    assert determinism.judged("a", found(same, other, other)).verdict == "failed"


def test_exceptions_are_documented(determinism: ModuleType) -> None:
    page = (ROOT / "docs" / "determinism.md").read_text(encoding="utf-8")
    for (name, way), why in determinism.EXCEPTIONS.items():
        assert re.search(rf"\| `{name}` \| {way} \| .*{re.escape(why)}", page), name
    assert len(re.findall(r"^\| `[\w-]+` \| (?:again|two threads) \|", page, re.MULTILINE)) == len(
        determinism.EXCEPTIONS
    )
