"""The runner of benchmarks/torture.py: what it counts, prints and writes."""

import importlib
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest

from tests.support.house import ROOT


@pytest.fixture
def torture(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> ModuleType:
    """The runner, with a page and two parts of its own."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    runner = importlib.import_module("torture")
    page = tmp_path / "torture.md"
    page.write_text((ROOT / "benchmarks" / "torture.md").read_text(encoding="utf-8"), encoding="utf-8")
    monkeypatch.setattr(runner, "PAGE", page)
    monkeypatch.setattr(runner, "version", lambda: "abc")
    monkeypatch.setattr(runner, "known", lambda: {"made": part(runner), "broken": broken(runner)})
    return runner


def part(runner: ModuleType) -> SimpleNamespace:
    """Passes even numbers, skips those that end in 5, fails others."""

    def run(request: object) -> Iterator[object]:
        for number in request.numbers:
            with request.place(number) as folder:
                assert not list(folder.iterdir())
                if number % 2 == 0:
                    yield runner.torture_parts.passed(number, "even")
                elif number % 10 == 5:
                    yield runner.torture_parts.skipped(number, "ends in | 5")
                else:
                    yield runner.torture_parts.failed(number, f"is odd\nby seed {request.seed}")

    return SimpleNamespace(__doc__="Numbers.", CASES=10, run=run)


def broken(runner: ModuleType) -> SimpleNamespace:
    def run(request: object) -> Iterator[object]:
        yield runner.torture_parts.passed(0)
        raise KeyError("gone")

    return SimpleNamespace(__doc__="Ends early.", CASES=3, run=run)


def rows(torture: ModuleType) -> list[str]:
    lines = torture.PAGE.read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line.startswith(("| made", "| broken"))]


def test_outcomes_are_counted_and_fail_the_command(
    torture: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    assert torture.main(["made", "--seed", "7"]) == 1
    said = capsys.readouterr()
    assert "made: 10 cases, 5 passed, 1 skipped, 4 failed" in said.out
    assert "1  skipped: ends in | 5" in said.out
    assert "made: failed: 3: is odd by seed 7" in said.err
    assert rows(torture)[0].startswith("| made | ")
    assert "| abc | 7 | 10 | 5 | 1 | 4 |" in rows(torture)[0]
    assert "5 even; 1 skipped: ends in \\| 5; **failed**: 1: is odd by seed 7" in rows(torture)[0]


def test_one_case_is_done_again_and_its_row_replaced(torture: ModuleType) -> None:
    torture.main(["made"])
    assert torture.main(["made", "--first", "4", "--cases", "1"]) == 0
    assert len(rows(torture)) == 1
    assert "| 1 | 1 | 0 | 0 |" in rows(torture)[0]


def test_a_part_that_ends_by_itself_has_failed_and_the_next_runs(
    torture: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    before = torture.PAGE.read_text(encoding="utf-8")
    assert torture.main(["broken", "made", "--first", "4", "--cases", "1", "--no-page"]) == 1
    said = capsys.readouterr().out
    assert "the part itself ended with KeyError: 'gone'" in said
    assert "together: 3 cases, 2 passed, 0 skipped, 1 failed" in said
    assert torture.PAGE.read_text(encoding="utf-8") == before


def test_time_is_kept(torture: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    torture.main(["made", "--minutes", "0", "--no-page"])
    assert "made: 1 cases, 1 passed, 0 skipped, 0 failed" in capsys.readouterr().out


def test_an_unknown_part_is_named(torture: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        torture.main(["marzipan"])
    assert ended.value.code == 2
    assert "there is no part 'marzipan'; there are made, broken" in capsys.readouterr().err


def test_a_sample_of_hostile_files(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The first cases of a seed of their own, in this process; `make torture` runs thousands, and bounds their memory."""
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    hostile = importlib.import_module("torture_parts.hostile")
    ends = [hostile.attacked(number, 21, tmp_path)[2] for number in range(120)]
    assert len({end.split(":")[0] for end in ends}) >= 5
    assert any(end.endswith("the same outputs") for end in ends)


def test_guided_cases_are_skipped_where_their_tool_is_not(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    parts, guided = (importlib.import_module(f"torture_parts{name}") for name in ("", ".guided"))
    monkeypatch.setattr(guided.importlib.util, "find_spec", lambda name: None)
    outcomes = list(guided.run(parts.Request(tmp_path, 0, 9)))
    assert [one.verdict for one in outcomes] == ["skipped"]
    assert "atheris is not installed" in outcomes[0].reason
