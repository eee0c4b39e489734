"""No name in a model steers the terminal of whoever looks at it, whichever command prints it."""

import ast
from pathlib import Path

import numpy as np
import onnx
import pytest

from onnx_lathe.optimizer.cli import main
from tests.support.builders import build, random
from tests.support.house import ROOT

HOSTILE = "\x1b[2Jgone\x1b]0;title\x07"
"""Clears the screen, and names the window."""


@pytest.fixture
def hostile(tmp_path: Path) -> Path:
    model = build(
        "(float[N, 8] x) => (float[N, 4] y) { y = Gemm<transB=1>(x, w, b) }", w=random(4, 8), b=random(4)
    )
    model.graph.node[0].name = HOSTILE
    model.graph.output[0].name = model.graph.node[0].output[0] = HOSTILE
    onnx.save(model, tmp_path / "model.onnx")
    np.savez(tmp_path / "data.npz", x=random(16, 8))
    return tmp_path / "model.onnx"


@pytest.mark.parametrize(
    "command",
    [
        ["check", "--target", "ort"],
        ["run"],
        ["inspect"],
        ["--passes", "int8", "--data", "DATA", "--out", "OUT", "--no-latency", "--no-html"],
    ],
    ids=lambda command: command[0],
)
def test_a_hostile_name_is_printed_and_not_obeyed(
    command: list[str], hostile: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = {"OUT": str(hostile.parent / "out"), "DATA": str(hostile.parent / "data.npz")}
    words = [given.get(word, word) for word in command]
    model = [str(hostile)]
    assert main([*words[:1], *model, *words[1:]] if not words[0].startswith("-") else model + words) == 0
    captured = capsys.readouterr()
    assert "gone" in captured.out
    assert not {"\x1b", "\x07"} & set(captured.out + captured.err)


def test_every_command_prints_by_the_console_that_filters() -> None:
    plain = {
        path.name
        for path in (ROOT / "optimizer" / "commands").glob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Name) and node.id == "Console"
    }
    assert plain == set()
