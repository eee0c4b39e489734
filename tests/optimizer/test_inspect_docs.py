"""Every command of docs/inspect.md runs, and its columns and figures are those of the code."""

import re
import shlex
from pathlib import Path

import numpy as np
import pytest

import onnx_lathe
from onnx_lathe.optimizer.cli import main
from onnx_lathe.optimizer.inspecting.energy import ADD_PJ, DRAM_PJ, MULTIPLY_PJ, REGISTER_PJ, SRAM_PJ
from onnx_lathe.optimizer.report.columns import COLUMNS
from tests.support.house import ROOT

PAGE = (ROOT / "docs" / "inspect.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^ +(optimize .*)$", PAGE, re.MULTILINE)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lenet5: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(lenet5.read_bytes())
    np.savez(tmp_path / "data.npz", image=np.zeros((2, 1, 28, 28), np.float32))
    monkeypatch.chdir(tmp_path)
    onnx_lathe.optimize("model.onnx", "prune(sparsity=0.9)", out="build", latency=False)


def test_there_are_commands() -> None:
    assert len(COMMANDS) > 8


@pytest.mark.usefixtures("project")
def test_commands_do_what_the_page_says(capsys: pytest.CaptureFixture[str]) -> None:
    for command in COMMANDS:
        assert main(shlex.split(command)[1:]) == 0, command
        assert "90.0 %" in capsys.readouterr().out if "build" in command else True
    assert Path("layers.html").stat().st_size > 1000


@pytest.mark.usefixtures("project")
def test_the_script() -> None:
    (script,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    exec(compile(script, "docs/inspect.md", "exec"), {"onnx_lathe": onnx_lathe})


def test_every_column_is_explained() -> None:
    known = {*COLUMNS} - {"layer", "op", "ms", "training"}
    assert known <= set(re.findall(r"`([a-z-]+)`", PAGE))


def test_the_table_of_energy() -> None:
    rows = dict(re.findall(r"^\| ([\w-]+(?: integer)?) \| ([\d.]+ \| [\d.]+) \|", PAGE, re.MULTILINE))
    names = {"8-bit integer": "int8", "32-bit integer": "int32", "float16": "float16", "float32": "float32"}
    assert rows == {name: f"{ADD_PJ[key]} | {MULTIPLY_PJ[key]}" for name, key in names.items()}
    assert f"| {REGISTER_PJ:.0f}, {SRAM_PJ:.0f}, {DRAM_PJ:.0f} |" in PAGE
