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
