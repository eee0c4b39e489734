"""`optimize ... | head`: whoever reads may leave, and the exit code is what the command found."""

import os
import subprocess
import sys
from pathlib import Path

import onnx
import pytest

from onnx_lathe.optimizer.cli import main
from tests.support.builders import build, random
from tests.support.house import ROOT


@pytest.fixture
def refused_model(tmp_path: Path) -> Path:
    """A model with a node that ncnn does not have."""
    model = build(
        "(float[1, 8] x) => (float[1, 8] y) { h = MatMul (x, w) y = Hardmax (h) }", 21, w=random(8, 8)
    )
    onnx.save(model, tmp_path / "model.onnx")
    return tmp_path / "model.onnx"


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["check", "MODEL", "--target", "ncnn"], 4),
        (["check", "MODEL", "--target", "ncnn", "--json"], 4),
        (["inspect", "MODEL"], 0),
        (["targets", "--json"], 0),
        (["passes", "prune"], 0),
        (["passes", "nonsense"], 2),
    ],
)
def test_the_exit_code_is_that_of_the_command(
    refused_model: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], code: int, stream: str
) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    with open(writing, "w") as closed:
        monkeypatch.setattr(sys, stream, closed)
        assert main([str(refused_model) if word == "MODEL" else word for word in arguments]) == code


@pytest.mark.parametrize("arguments", [["--help"], ["passes"]])
def test_python_has_nothing_left_to_write_when_it_ends(arguments: list[str]) -> None:
    command = [sys.executable, "-m", "onnx_lathe", *arguments]
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(command, cwd=ROOT, stdout=writing, stderr=subprocess.PIPE, text=True, check=False)
    os.close(writing)
    assert (done.returncode, done.stderr) == (0, "")


def ended(command: str) -> tuple[int, str]:
    """(exit code, words on standard error) of a shell's `$optimize COMMAND`."""
    text = f'"$0" -m onnx_lathe {command}'
    done = subprocess.run(
        ["sh", "-c", text, sys.executable], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return done.returncode, done.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="a shell's way to close a stream")
@pytest.mark.parametrize(
    "command, code, said",
    [
        ("passes >&-", 0, ""),
        ("passes nonsense 2>&-", 2, ""),
        ("passes --json >&- 2>&-", 0, ""),
        ("passes nonsense >&-", 2, "optimize: "),
    ],
)
def test_a_closed_stream_is_no_defect(command: str, code: int, said: str) -> None:
    found, words = ended(command)
    assert found == code
    assert words.startswith(said)
    assert "Traceback" not in words


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux has it")
@pytest.mark.parametrize("command, code", [("passes", 2), ("targets --json", 2), ("--version", 2)])
def test_a_full_disk_is_said_in_one_line(command: str, code: int) -> None:
    found, said = ended(f"{command} > /dev/full")
    assert (found, len(said.splitlines())) == (code, 1)
    assert said.startswith("optimize: standard output cannot be written: No space left on device")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="Linux has it")
def test_a_full_disk_leaves_the_exit_code_of_the_command() -> None:
    assert ended("passes nonsense 2> /dev/full") == (2, "")
    assert ended("passes 2> /dev/full") == (0, "")
