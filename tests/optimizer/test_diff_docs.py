"""Every command and example of docs/diff.md runs."""

import re
import shlex
from pathlib import Path

import numpy as np
import onnx
import pytest

import onnx_lathe
from onnx_lathe.optimizer.cli import main
from tests.support import faults
from tests.support.faults import changed, channel_times, network
from tests.support.models import ROOT

PAGE = (ROOT / "docs" / "diff.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^    optimize (.*)$", PAGE, re.MULTILINE)
EXAMPLES = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.split()[0])
def test_commands(
    tmp_path: Path,
    lenet5: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    command: str,
) -> None:
    (tmp_path / "models").symlink_to(ROOT / "models")
    (tmp_path / "build").mkdir()
    layer = onnx.load(lenet5).graph.initializer[0].name
    onnx.save(changed(onnx.load(lenet5), layer, channel_times(-2.0)), tmp_path / "build" / "model.onnx")
    monkeypatch.chdir(tmp_path)
    assert main(shlex.split(command)) == 0
    written = {"diff": "diff.html", "debug": "culprit/model.onnx"}[command.split()[0]]
    assert (tmp_path / written).is_file()
    assert "channel 2" in capsys.readouterr().out or written == "diff.html"


def test_the_example(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    onnx.save(network(), tmp_path / "a.onnx")
    onnx.save(changed(network(), "w2", channel_times(3.0)), tmp_path / "b.onnx")
    np.savez(tmp_path / "data.npz", x=faults.samples())
    monkeypatch.chdir(tmp_path)
    for example in EXAMPLES:
        exec(compile(example, "docs/diff.md", "exec"), {"onnx_lathe": onnx_lathe})
    said = capsys.readouterr().out
    assert said.startswith("b [")
    assert "('node_b', " in said
    assert COMMANDS
    assert EXAMPLES
