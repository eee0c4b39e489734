"""What `optimize gate` writes: to a terminal, as JSON, and for CI."""

import json
import os
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import onnx
import pytest

from onnx_lathe.errors import printable
from onnx_lathe.optimizer.cli import main
from onnx_lathe.optimizer.judging import writing
from tests.support.builders import build
from tests.support.command import refused
from tests.support.judged import PASSED_ON, classifiers, pair


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the commands are typed."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_what_ci_gets(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    command = [*classifiers(changed=8), "--junit", "gates.xml", "--markdown", "gates.md"]
    command += ["--gate", "top1 drop <= 1%", "--gate", "size ratio >= 0.5"]
    assert main(command) == 3
    root = ElementTree.parse("gates.xml").getroot()
    assert root.keys() == ["name", "tests", "failures", "errors", "time"]
    suite = root.find("testsuite")
    assert suite is not None
    assert suite.get("skipped") == "0"
    assert (suite.get("tests"), suite.get("failures")) == ("2", "1")
    cases = suite.findall("testcase")
    assert [case.get("name") for case in cases] == ["top1 drop <= 1%", "size ratio >= 0.5"]
    failure = cases[0].find("failure")
    assert failure is not None
    assert "missed by" in str(failure.get("message"))
    assert cases[1].find("failure") is None
    facts = {one.get("name"): one.get("value") for one in suite.iter("property")}
    assert str(facts["kernels"]).startswith("ONNX Runtime ")
    assert {"samples", "processor", "library onnxruntime"} <= facts.keys()
    text = Path("gates.md").read_text(encoding="utf-8")
    assert text.startswith("### Model gates: 1 of 2 gates failed\n")
    assert "| ❌ | `top1 drop <= 1%` | 15 points, 95 % interval" in text
    assert main(command) == 3
    assert Path("gates.md").read_text(encoding="utf-8") == text
    monkeypatch.setenv(writing.STEP_SUMMARY, str(folder / "gates.md"))
    assert main(command) == 3
    assert Path("gates.md").read_text(encoding="utf-8") == f"{text}\n{text}"
    Path("gates.md").write_bytes("Résumé".encode("utf-16"))
    assert main(command) == 3
    assert Path("gates.md").read_bytes() == "Résumé".encode("utf-16") + f"\n{text}".encode()


def test_json_names_the_kernels(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    main([*classifiers(changed=0), "--gate", "top1 >= 99%", "--json"])
    found = json.loads(capsys.readouterr().out)
    assert found["passed"] is True
    assert found["processor"]["flags"]
    assert found["libraries"]["onnxruntime"] in found["kernels"]
    assert found["base"]["library"].startswith("ONNX Runtime")
    assert found["candidate"]["metrics"]["top1"] == 1
    assert found["gates"][0]["interval"]["low"] == pytest.approx(0.9124, abs=1e-4)


@pytest.mark.parametrize("option", ["--junit", "--markdown"])
def test_a_place_that_cannot_be_written_to_is_refused_first(
    option: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["gate", "nowhere.onnx", "nowhere.onnx", "--gate", "size <= 1 MB", option]
    assert "is a folder" in refused(capsys, [*command, "."])
    assert "no folder that can be written to" in refused(capsys, [*command, "none/gates.xml"])


def test_what_is_read_or_written_otherwise_is_no_place_to_write_to(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [*classifiers(changed=0), "--gate", "size <= 1 MB"]
    Path("linked.onnx").symlink_to("base.onnx")
    command += ["--classes", "names.txt", "--metric", "mine=own.py:mine"]
    for place, read in {
        "candidate.onnx": "candidate.onnx",
        "linked.onnx": "base.onnx",
        "./data.npz": "data.npz",
        "names.txt": "names.txt",
        "own.py": "own.py:mine",
    }.items():
        assert f"{Path(place)}: is read as {read}; write to" in refused(capsys, [*command, "--junit", place])
    assert "is read as data.npz:test" in refused(
        capsys, [*command, "--data", "data.npz:test", "--markdown", "data.npz"]
    )
    assert "each need a file of their own" in refused(
        capsys, [*command, "--junit", "gates", "--markdown", "./gates"]
    )
    assert "is a device" in refused(capsys, [*command, "--junit", os.devnull])


EVIL = "z\r\x1b[2K# `all` |\n@octocat https://evil.example/\x9b\u2028\u202e"
SEEN = "z \ufffd[2K# `all` | @octocat https://evil.example/\ufffd \ufffd"


def test_names_in_a_model_are_shown_as_names(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Not as lines, marks of a terminal or of Markdown, links or people."""
    command = [*classifiers(changed=0), "--junit", "gates.xml", "--markdown", "gates.md"]
    two = "(float[n,4] x) => (float[n,4] y, float[n,4] z) { y = Mul(x, s) z = Mul(x, t) }"
    for file, scale in (("base.onnx", 1), ("candidate.onnx", 1.2)):
        model = build(two, s=np.float32([1, 1, 1, 1]), t=np.float32(scale))
        model.graph.output[1].name = model.graph.node[1].output[0] = EVIL
        onnx.save(model, file)
    assert main([*command, "--gate", "sqnr >= 50"]) == 3
    said = capsys.readouterr().out
    assert said.splitlines()[0].startswith(f"gate FAILED  sqnr >= 50: 13.98 dB ([{SEEN}]), ")
    assert said.count("\n") == 1
    text = Path("gates.md").read_text(encoding="utf-8")
    code = SEEN.replace("`", "'").replace("|", "¦")
    assert f"| ❌ | `sqnr >= 50` | 13.98 dB (`[{code}]`), " in text
    assert text.count("octocat") == 1
    (failure,) = ElementTree.parse("gates.xml").getroot().iter("failure")
    assert f"([{SEEN}])" in str(failure.get("message"))
    onnx.save(
        build(
            two.replace("[n,4] z", "[4] z").replace("Mul(x, t)", "Mul(t, t)"),
            s=np.float32(1),
            t=np.ones(4, np.float32),
        ),
        "candidate.onnx",
    )
    assert main([*command, "--gate", "sqnr >= 50"]) == 3
    said = capsys.readouterr()
    assert SEEN in said.out
    assert EVIL not in said.out + said.err
    assert main([*command, "--gate", "sqnr[nothing like it] >= 1"]) == 2
    assert SEEN in capsys.readouterr().err


def test_names_of_files_in_markdown_are_names(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = [*pair(PASSED_ON, 1), "--gate", "size <= 1MB", "--markdown", "gates.md", "--junit", "gates.xml"]
    command[2] = "one\n\n# `two`"
    try:
        Path("candidate.onnx").rename(command[2])
    except OSError:
        pytest.skip("no such name here")
    assert main(command) == 0
    text = Path("gates.md").read_text(encoding="utf-8")
    assert text.splitlines()[2] == "`one  # 'two'` against `base.onnx`"
    assert "one  # `two` against" in Path("gates.xml").read_text(encoding="utf-8")
    assert printable("of no encoding \udcff") == "of no encoding \ufffd"
