"""Results that are folders: they appear whole, are listed by file, and are taken away without what is not theirs."""

import json
from pathlib import Path

import pytest

from onnx_lathe.errors import TargetError
from onnx_lathe.optimizer.cli import main
from onnx_lathe.optimizer.report.terminal import short_names
from onnx_lathe.runtime.targets.jetson.jetson import Jetson
from tests.support.command import refused

FOLDER = "model.jetson"


def build(model: Path, out: Path, *more: str, target: str = "jetson") -> int:
    return main(["build", str(model), "--target", target, "--out", str(out), "--quiet", *more])


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


def test_the_report_lists_every_file_of_the_folder(
    lenet5: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert build(lenet5, tmp_path / "out") == 0
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    (target,) = report["targets"]
    assert {f"{FOLDER}/build.sh", f"{FOLDER}/parts/worker.py", f"{FOLDER}/reference.npz"} <= set(
        target["files"]
    )
    assert {name for name in files(tmp_path / "out") if name.startswith(FOLDER)} == set(target["files"])
    assert target["details"]["reference"] == "random"
    assert "target jetson: no data is given: the stored inputs are random values" in report["warnings"]
    assert f"target jetson: {FOLDER}/ ({len(target['files'])} files)" in capsys.readouterr().out.replace(
        "\n", " "
    )


def test_the_same_again_takes_its_place(lenet5: Path, tmp_path: Path) -> None:
    assert build(lenet5, tmp_path / "out") == 0
    before = files(tmp_path / "out")
    assert build(lenet5, tmp_path / "out", "--force") == 0
    assert files(tmp_path / "out") == before
    assert build(lenet5, tmp_path / "out", "--force", target="onnx") == 0
    assert not (tmp_path / "out" / FOLDER).exists()


def test_a_users_file_in_it_is_not_taken_away(
    lenet5: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert build(lenet5, tmp_path / "out") == 0
    capsys.readouterr()
    engine = tmp_path / "out" / FOLDER / "model.engine"
    engine.write_bytes(b"mine")
    arguments = [
        "build",
        str(lenet5),
        "--target",
        "jetson",
        "--out",
        str(tmp_path / "out"),
        "--quiet",
        "--force",
    ]
    assert "model.jetson/model.engine: is there already and not from an earlier run" in refused(
        capsys, arguments
    )
    assert engine.read_bytes() == b"mine"


def test_a_report_does_not_lead_out_of_its_folder(lenet5: Path, tmp_path: Path) -> None:
    """Somebody may have changed it: what it lists is removed."""
    assert build(lenet5, tmp_path / "out", target="onnx") == 0
    mine = tmp_path / "mine.txt"
    mine.write_text("mine")
    path = tmp_path / "out" / "report.json"
    report = json.loads(path.read_text())
    report["targets"][0]["files"] += ["../mine.txt", str(mine)]
    path.write_text(json.dumps(report))
    assert build(lenet5, tmp_path / "out", "--force", target="onnx") == 0
    assert mine.read_text() == "mine"


def test_nothing_is_left_of_a_folder_that_turns_out_wrong(
    lenet5: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object) -> None:
        raise TargetError("no")

    monkeypatch.setattr(Jetson, "verify", fail)
    assert build(lenet5, tmp_path / "out", target="jetson, onnx") == 4
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "report.html",
        "report.json",
        "model.onnx",
        "steps",
    }


def test_names_on_the_terminal() -> None:
    assert short_names(["a", "f/b", "f/c/d", "e"]) == ["a", "e", "f/ (2 files)"]
