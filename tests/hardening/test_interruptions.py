"""What is in an output folder after a run was killed, and who may write there: a sample of benchmarks/torture_parts/interruptions.py."""

import json
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import onnx
import pytest

from onnx_lathe.errors import UsageError
from onnx_lathe.optimizer import artifacts
from onnx_lathe.optimizer.claim import NAME, Claim, claimed
from onnx_lathe.optimizer.cli import main
from onnx_lathe.runtime.processes import environment
from tests.support import faults
from tests.support.command import refused
from tests.support.house import ROOT

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")

KILLED = """
import os, signal, sys
from onnx_lathe.optimizer import build
from onnx_lathe.optimizer.cli import main

put = build._put

def killed_after_one(*given):
    put(*given)
    os.kill(os.getpid(), signal.SIGKILL)

build._put = killed_after_one
main(sys.argv[1:])
"""


def arguments(folder: Path, *more: str, targets: str = "onnx, ort") -> list[str]:
    model = folder / "net.onnx"
    onnx.save(faults.network(), model)
    out = ["--out", str(folder / "out"), "--target", targets, "--no-latency", "--no-html", "--quiet"]
    return [str(model), "--passes", "fold", *out, *more]


def quiet(text: str) -> None:
    raise AssertionError(text)


def test_results_of_a_run_that_was_killed_as_it_put_them_there_are_its_own(tmp_path: Path) -> None:
    given = arguments(tmp_path)
    ended = subprocess.run(
        [sys.executable, "-c", KILLED, *given], env=environment(), check=False, timeout=300
    )
    out = tmp_path / "out"
    assert ended.returncode == -signal.SIGKILL
    (cut_off,) = out.glob(".building-*")
    (out / "steps" / ".01-fold.onnx.0123abcd.tmp").touch()
    (out / "steps" / ".mine.tmp").touch()
    assert (out / NAME).exists()
    assert len(list(out.glob("model.*"))) == 1
    assert main([*given, "--resume"]) == 0
    assert not cut_off.exists()
    assert {path.name for path in out.iterdir()} == {"model.onnx", "model.ort.onnx", "report.json", "steps"}
    assert {path.name for path in (out / "steps").iterdir()} == {"01-fold.onnx", "run.json", ".mine.tmp"}


def test_a_clearing_that_was_cut_off_goes_on(tmp_path: Path) -> None:
    """The report goes last: while there is anything of the results, it says whose that is."""
    given, out = arguments(tmp_path), tmp_path / "out"
    assert main(given) == 0
    removed: list[str] = []
    unlink = Path.unlink

    def cut_off(path: Path, missing_ok: bool = False) -> None:
        if path.parent == out and path.name.startswith(("model", "report")):
            if removed:
                raise KeyboardInterrupt
            removed.append(path.name)
        unlink(path, missing_ok)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(Path, "unlink", cut_off)
        assert main(given) == 130
    assert removed != ["report.json"]
    assert main([*given, "--resume"]) == 0
    assert (out / "model.onnx").exists()


def test_what_is_announced_stays_in_the_folder(tmp_path: Path) -> None:
    (tmp_path / "out" / "steps").mkdir(parents=True)
    mine = tmp_path / "mine.txt"
    mine.write_text("mine")
    for names in (["../mine.txt", str(mine), "", ".", 3], {"a": 1}, 5):
        (tmp_path / "out" / artifacts.PLACING).write_text(json.dumps(names))
        artifacts.clear(tmp_path / "out")
    assert mine.read_text() == "mine"
    assert not artifacts.there(tmp_path / "out")


@pytest.mark.parametrize("more", [[], ["--force"], ["--resume"]])
def test_a_second_run_in_the_folder_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], more: list[str]
) -> None:
    given, out = arguments(tmp_path, *more), tmp_path / "out"
    out.mkdir()
    with claimed(out, quiet) as claim:
        claim.take()
        line = refused(capsys, given)
        assert (
            line == f"optimize: {out}: another run is writing there; wait for its end, or give another --out"
        )
        assert [path.name for path in out.iterdir()] == [NAME]
    assert list(out.iterdir()) == []


def test_a_folder_that_another_run_began_in_meanwhile_is_left(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was not there when the request was checked, so nothing was claimed."""
    given, out, take = arguments(tmp_path), tmp_path / "out", Claim.take

    def late(claim: Claim) -> None:
        (out / "steps").mkdir(parents=True)
        (out / "report.json").write_text("{}")
        take(claim)

    monkeypatch.setattr(Claim, "take", late)
    assert "another run began there meanwhile" in refused(capsys, given)
    assert (out / "report.json").read_text() == "{}"


def test_a_claim_is_looked_for_again_where_its_file_was_taken_away(tmp_path: Path) -> None:
    first, second = Claim(tmp_path, quiet), Claim(tmp_path, quiet)
    first.take()
    with pytest.raises(UsageError, match="another run is writing there"):
        second.take()
    first.release()
    second.take()
    assert second.held
    (
        tmp_path / NAME
    ).unlink()  # as a run does at its end: what this one holds is no file of the folder any more
    first.take()
    assert first.held
    second.release()
    first.release()


def test_a_disk_without_locks_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown(descriptor: int) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr("onnx_lathe.optimizer.claim._lock", unknown)
    told: list[str] = []
    with claimed(tmp_path, told.append) as claim:
        claim.take()
        assert claim.held
    assert "the disk knows no locks (Operation not supported)" in told[0]


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks for processes in /proc")
def test_a_sample_of_the_torture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    from torture_parts import interruptions
    from torture_parts._pool import each

    case = partial(interruptions.interrupted, seed=3, within=tmp_path)
    ready = partial(interruptions.prepare, tmp_path, light=True)
    done = list(each(case, ready, SAMPLE, 120.0))
    assert [one.fault for one in done] == [""] * len(SAMPLE)


SAMPLE = (1, 2, 29)
"""Kills, and a second run at once."""
