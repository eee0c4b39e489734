"""`optimize report` on files that are not its own, and on folders that were damaged."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from onnx_lathe.optimizer import layer_errors, reporting
from onnx_lathe.optimizer.cli import main
from tests.support.builders import build, random
from tests.support.command import refused


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output folder of a run whose model was given by a relative path."""
    folder = tmp_path_factory.mktemp("run")
    text = "(float[N, 4] x) => (float[N, 4] y) { y = MatMul(x, w) }"
    onnx.save(build(text, w=random(4, 4)), folder / "m.onnx")
    np.savez(folder / "d.npz", x=random(64, 4))
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        arguments = ["m.onnx", "--passes", "prune(sparsity=0.5,min_size=1),int8", "--data", "d.npz"]
        assert main([*arguments, "--out", "out", "--quiet", "--no-latency"]) == 0
    return folder / "out"


@pytest.fixture
def out(run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(run, tmp_path / "copy"))


def test_a_file_that_is_not_its_own_is_replaced_with_force_alone(
    out: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mine = tmp_path / "mine.html"
    for page, arguments in ((mine, ["--html", str(mine)]), (out / "report.html", [])):
        page.write_text("<html>mine</html>")
        told = refused(capsys, ["report", str(out), *arguments])
        assert f"{page}: is there already and no page of a run" in told
        assert page.read_text() == "<html>mine</html>"
        assert main(["report", str(out), *arguments, "--force", "--quiet"]) == 0
        assert main(["report", str(out), *arguments, "--quiet"]) == 0  # it is its own now


def test_a_model_given_by_a_relative_path_is_found_from_another_folder(
    out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = (out / "report.html").read_bytes()
    monkeypatch.chdir(tmp_path)
    assert reporting.report(out).notes == []
    assert (out / "report.html").read_bytes() == page


def test_a_page_with_layers_is_not_replaced_by_one_without(
    out: Path, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change(out / "report.json", lambda table: table["model"].pop("file"))  # as of an earlier version
    page = (out / "report.html").read_bytes()
    told = refused(capsys, ["report", str(out)])
    assert "shows layers, and the new page could not: m.onnx" in told
    assert "give --model" in told
    assert (out / "report.html").read_bytes() == page
    assert reporting.report(out, model=run.parent / "m.onnx").notes == []
    assert any("nothing is said of layers" in note for note in reporting.report(out, force=True).notes)


def change(file: Path, how: Callable[[Any], object]) -> None:
    table = json.loads(file.read_text())
    how(table)
    file.write_text(json.dumps(table))


DAMAGE: dict[str, Callable[[Any], object]] = {
    "command[0] is 1, not a text": lambda table: table.update(command=[1]),
    "model.path is missing": lambda table: table.update(model={}),
    "model.path is 5, not a text": lambda table: table["model"].update(path=5),
    "model.size_bytes is 'x'": lambda table: table["model"].update(size_bytes="x"),
    "steps[0].edits[0].what is missing": lambda table: table["steps"][0].update(edits=[{"node": "a"}]),
    "steps[0].quality is None": lambda table: table["steps"][0].update(quality=None),
    "steps[0].name is missing": lambda table: table.update(steps=[{"number": 1}]),
    "steps[0].skips is 3, not a list": lambda table: table["steps"][0].update(skips=3),
    "steps is 'none', not a list": lambda table: table.update(steps="none"),
    "baseline.size is 'x', not a number": lambda table: table["baseline"].update(size="x"),
    "(ValueError)": lambda table: table["baseline"].update(size=float("nan")),
    "is no record of a run": lambda table: table.pop("schema"),
    "names ../m.onnx, which is not in the folder": lambda table: table["steps"][0].update(file="../m.onnx"),
    "names /etc/passwd, which": lambda table: table["steps"][1].update(file="/etc/passwd"),
}


@pytest.mark.parametrize("said", DAMAGE)
def test_a_damaged_record_is_one_line(out: Path, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    change(out / "report.json", DAMAGE[said])
    told = refused(capsys, ["report", str(out)])
    assert f"{out / 'report.json'}: " in told
    assert said in told


HARM: dict[str, Callable[[Any], object]] = {
    "samples": lambda table: table.update(samples="8"),
    "errors": lambda table: table.update(errors=[]),
    "sqnr": lambda table: next(iter(table["errors"].values())).update(sqnr="good"),
    "values": lambda table: table.update(values={"y": {"low": 0, "high": 1}}),
    "ms": lambda table: table.update(ms_before={"MatMul_0": None}),
    "nan": lambda table: table.update(ms_before={"MatMul_0": float("nan")}),
    "unknown": lambda table: table.update(more=1),
}


@pytest.mark.parametrize("harm", HARM)
def test_damaged_measurements_count_as_none(out: Path, harm: str) -> None:
    assert layer_errors.read(out) is not None
    change(out / "steps" / "layers.json", HARM[harm])
    assert layer_errors.read(out) is None
    assert "layers were not measured in this run" in reporting.report(out).notes
