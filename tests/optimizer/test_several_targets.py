"""Several targets in one run: one table, what the gates allow in it, and what it does not claim."""

import io
import json
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jsonschema
import numpy as np
import pytest
from rich.console import Console

from onnx_lathe.optimizer import contest, opened
from onnx_lathe.optimizer.cli import main
from onnx_lathe.optimizer.gate import Gate
from onnx_lathe.optimizer.report.comparison import (
    BUILT,
    LOWERED,
    NOT_MEASURED,
    SIMULATED,
    Comparison,
    TargetRow,
)
from onnx_lathe.optimizer.report.html.document import document
from onnx_lathe.optimizer.report.record import RunRecord, read_record
from onnx_lathe.optimizer.report.target_markdown import markdown
from onnx_lathe.optimizer.report.target_table import as_page, cells, choice, columns, footnotes, show_targets
from onnx_lathe.runtime.running import ort
from tests.support.house import ROOT
from tests.support.pages import made

SCHEMA = json.loads((ROOT / "docs" / "report.schema.json").read_text())


def said(out: Path) -> dict[str, Any]:
    report = json.loads((out / "report.json").read_text())
    jsonschema.validate(report, SCHEMA)
    return dict(report)


def test_targets_stand_side_by_side_and_what_did_not_run_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("ncnn")
    text = tmp_path / "table.md"
    asked = ["--gate", "top1 drop <= 50%", "--gate", "sqnr >= 5", "--markdown", str(text), "--no-html"]
    out = made(tmp_path, "--target", "pack,jetson,ncnn,ort(speed=any),onnx", *asked, passes="int8")
    found = said(out)["comparison"]
    assert found["metrics"] == ["top1", "sqnr"]
    rows = {row["name"]: row for row in found["rows"]}
    assert next(iter(rows)) == "(original)"
    for name in ("ncnn", "ort", "onnx"):
        row = rows[name]
        assert (row["measured"], row["verdict"], row["runs_here"]) == ("as built", "passed", True)
        assert set(row["quality"]) == {"top1", "sqnr"}
        assert row["latency_ms"] > 0
    assert rows["pack"]["quality"] == {}
    assert (rows["pack"]["verdict"], rows["pack"]["latency_ms"]) == ("not judged", None)
    assert (rows["jetson"]["measured"], rows["jetson"]["runs_here"]) == ("as lowered", False)
    assert rows["jetson"]["latency_ms"] is None
    assert (rows["ncnn"]["int8_layers"], rows["ncnn"]["layers"]) == (3, 3)
    assert rows["onnx"]["layers"] is None
    able = [rows[name] for name in ("ncnn", "ort", "onnx")]
    assert found["smallest"] == min(able, key=lambda row: row["size_bytes"])["name"] != "pack"
    assert found["fastest"] == min(able, key=lambda row: row["latency_ms"])["name"]
    printed = capsys.readouterr().out
    assert "not run here" in printed
    assert f"fastest: {found['fastest']}" in printed or "smallest and fastest" in printed
    written = text.read_text()
    assert written.startswith("### Targets of `")
    assert "| pack | " in written
    record = read_record(out / "report.json")
    assert record.comparison is not None
    assert [asdict(row) for row in record.comparison.rows][1]["name"] == found["rows"][1]["name"]
    page = document(record, None, None, None, [])["comparison"]
    assert [row["name"].split(" ")[0] for row in page["rows"]] == [row["name"] for row in found["rows"]]


def test_one_target_that_fails_a_gate_leaves_the_table_and_no_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("ncnn")
    evaluate = opened.evaluate

    def worse(*given: Any) -> Any:
        found = evaluate(*given)
        found["top1"] = 0.0
        return found

    monkeypatch.setattr(opened, "evaluate", worse)
    text = tmp_path / "table.md"
    asked = ["--gate", "top1 drop <= 10%", "--no-latency", "--markdown", str(text), "--no-html"]
    out = made(tmp_path, "--target", "ncnn,ort", *asked, passes="int8", code=3)
    assert sorted(path.name for path in out.iterdir()) == ["report.json", "steps"]
    report = said(out)
    assert [one["files"] for one in report["targets"]] == [[], []]
    found = report["comparison"]
    rows = {row["name"]: row for row in found["rows"]}
    assert [row["name"] for row in found["rows"]] == ["(original)", "ort", "ncnn"]
    assert (rows["ort"]["verdict"], rows["ncnn"]["verdict"]) == ("passed", "failed")
    assert rows["ncnn"]["reason"].startswith("top1 drop <= 10%: ")
    assert (found["smallest"], found["fastest"]) == ("ort", None)
    assert min(rows["ort"]["size_bytes"], rows["ncnn"]["size_bytes"]) > 0
    assert "| ncnn | " in text.read_text()
    assert "| FAILED |" in text.read_text()


def test_a_build_without_data_is_chosen_by_size_alone_and_says_that_nothing_judged_it(
    lenet5: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["build", str(lenet5), "--target", "onnx,ort", "--out", str(tmp_path / "out")]) == 0
    found = said(tmp_path / "out")["comparison"]
    assert found["metrics"] == []
    assert all(row["latency_ms"] is None and row["verdict"] != "passed" for row in found["rows"])
    assert found["smallest"] in ("onnx", "ort")
    assert found["fastest"] is None
    assert "no data and no gate say that they are good enough" in capsys.readouterr().out.replace("\n", " ")


def test_a_run_of_one_target_has_no_table(lenet5: Path, tmp_path: Path) -> None:
    build = ["build", str(lenet5), "--target", "onnx", "--out", str(tmp_path / "out"), "--quiet"]
    assert main(build) == 0
    assert said(tmp_path / "out")["comparison"] is None
    assert main([*build, "--force", "--markdown", str(tmp_path / "t.md")]) == 2
    assert main([*build[:3], "onnx,ort", *build[4:], "--force", "--markdown", str(tmp_path)]) == 2


def row(name: str, size: int, **more: Any) -> TargetRow:
    given = {"measured": "as built", "quality": {"top1": 0.9}, "latency_ms": 1.0, "verdict": "passed"} | more
    return TargetRow(name, size, **given)


def chosen(*rows: TargetRow, metrics: tuple[str, ...] = ("top1",)) -> Comparison:
    found = Comparison([*metrics], [row("(original)", 1000, verdict=""), *rows], "")
    contest._choose(found, gated=True)
    return found


def test_none_is_chosen_that_failed_or_whose_own_file_was_not_measured() -> None:
    lowered = row("lowered", 10, measured="as lowered", runs_here=False, latency_ms=None)
    found = chosen(
        row("failed", 20, verdict="failed"),
        lowered,
        row("unmeasured", 30, measured="", quality={}),
        row("wrong", 0, verdict="error"),
        row("small", 100, latency_ms=3.0),
        row("fast", 200, latency_ms=0.5),
    )
    assert (found.smallest, found.fastest) == ("small", "fast")
    assert choice(found).startswith("smallest: small; fastest: fast; of the targets whose files")
    near = chosen(
        row("one", 5, latency_ms=1.04), row("two", 6, latency_ms=1.0), row("far", 7, latency_ms=1.06)
    )
    assert choice(near).startswith("smallest: one; fastest: two (one within 5 %); ")
    none = chosen(lowered)
    assert (none.smallest, none.fastest) == (None, None)
    assert choice(none) == "no target to choose: none whose files were measured here and pass every gate"
    assert choice(chosen(row("one", 5))).startswith("smallest and fastest: one, of the targets")
    assert choice(chosen(row("one", 5, latency_ms=None))).startswith("smallest (none was timed): one, ")


def test_a_simulator_is_not_timed_and_slows_no_other_down(monkeypatch: pytest.MonkeyPatch) -> None:
    class Simulated:
        simulated = "its times say nothing of a chip's"

    timed: list[Any] = []

    def times(sessions: list[Any], feeds: Any, budget_s: float) -> np.ndarray:
        timed.extend(sessions)
        return np.ones((3, len(sessions)))

    monkeypatch.setattr(contest, "shared_feeds", lambda *_: {})
    monkeypatch.setattr(ort, "times", times)
    found = chosen(
        row("chip", 10, measured=SIMULATED, latency_ms=None), row("plain", 20, latency_ms=None), metrics=()
    )
    entries: Any = [SimpleNamespace(session=lambda _, one=one: one) for one in (Simulated(), "plain")]
    run: Any = SimpleNamespace(
        original_session=lambda threads: "original", roles=SimpleNamespace(sample=None)
    )
    contest._time(run, entries, found)
    contest._choose(found, gated=False)
    assert timed == ["original", "plain"]
    assert [one.latency_ms for one in found.rows] == [1.0, None, 1.0]
    assert (found.smallest, found.fastest) == ("chip", "plain")
    assert found.notes == [f"chip was not timed: {Simulated.simulated}"]
    assert any("chip's simulator" in line for line in footnotes(found))


def test_the_schema_knows_what_figures_may_be_of() -> None:
    definitions = SCHEMA["$defs"]
    known = {BUILT, SIMULATED, LOWERED, NOT_MEASURED}
    assert (
        set(definitions["comparison"]["properties"]["rows"]["items"]["properties"]["measured"]["enum"])
        == known
    )
    assert set(definitions["target"]["properties"]["measured"]["enum"]) == known - {NOT_MEASURED}


def test_a_gate_on_size_judges_each_file_before_one_is_chosen() -> None:
    gates = [Gate.parse("size <= 150B"), Gate.parse("latency ratio >= 2")]
    original = row("(original)", 1000, latency_ms=1.0, verdict="")
    large, slow, good = row("a", 200, latency_ms=0.1), row("b", 100), row("c", 100, latency_ms=0.4)
    for one in (large, slow, good):
        contest._refuse_by_figures(one, gates, [], original)
    assert [one.verdict for one in (large, slow, good)] == ["not chosen", "not chosen", "passed"]
    assert "size <= 150" in large.reason
    assert large.reason.endswith("the gate judged the model alone, so the run did not fail")
    assert choice(chosen(large, slow, good)).startswith("smallest and fastest: c, ")
    assert "latency ratio >= 2" in slow.reason


def test_cells_mark_what_is_not_of_the_file_itself() -> None:
    found = chosen(
        row("x", 100, latency_ms=0.5, int8_layers=3, layers=4),
        row(
            "phone\x1b[2J",
            50,
            measured="as lowered",
            runs_here=False,
            latency_ms=None,
            verdict="not judged",
            reason="because",
        ),
    )
    assert columns(found) == ["target", "size", "top-1", "latency", "INT8 layers", "gates"]
    original, one, other = (cells(each, found) for each in found.rows)
    assert original == ["(original)", "1 kB", "90.00 %", "1.00 ms", "-", ""]
    assert one == ["x (smallest, fastest)", "100 B (10.0x)", "90.00 %", "0.500 ms (2.0x)", "3 of 4", "passed"]
    assert other[1:] == ["50 B (20.0x)", "90.00 %*", "not run here", "-", "not judged"]
    notes = footnotes(found)
    assert notes[0].startswith("* of the model as it is lowered")
    assert any("says nothing of a phone" in note for note in notes)
    assert notes[-1].endswith(": because")
    console = Console(record=True, width=140, file=io.StringIO())
    show_targets(found, console)
    assert "\x1b[2J" not in console.export_text(styles=False)
    page = as_page(found)
    assert page is not None
    assert page["rows"][1]["cells"][0] == (100.0, "100 B (10.0x)")  # type: ignore[index]


def test_markdown_without_a_table_names_the_gates(tmp_path: Path) -> None:
    record = RunRecord("0", [], {"path": "a|b.onnx"}, outcome="gate failed")
    text = markdown(record)
    assert text.startswith("### Targets of `a¦b.onnx`: gate failed\n")
    assert "No target was built." in text


def test_a_run_that_passed_shows_no_failed_gate_in_its_table(
    lenet5: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    limit = f"size <= {lenet5.stat().st_size + 1000}B"
    out = ["--out", str(tmp_path / "out"), "--no-html", "--no-latency"]
    asked = [str(lenet5), "--passes", "fold", "--gate", limit, "--target", "onnx,jetson", *out]
    assert main(asked) == 0
    rows = {row["name"]: row for row in said(tmp_path / "out")["comparison"]["rows"]}
    assert (rows["onnx"]["verdict"], rows["jetson"]["verdict"]) == ("passed", "not chosen")
    assert "FAILED" not in capsys.readouterr().out
