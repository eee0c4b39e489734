"""`optimize completion`: what the scripts offer, in a real bash where there is one."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from onnx_lathe.errors import UsageError
from onnx_lathe.optimizer.cli import COMMANDS, COMPILE, command, main
from onnx_lathe.optimizer.commands.completion import SHELLS, script
from onnx_lathe.optimizer.commands.options import parser_of
from tests.support.command import refused

ASK = """
source script.bash
COMP_WORDS=("$@"); COMP_CWORD=$(( $# - 1 )); COMPREPLY=()
_shtab_optimize
printf '%s\\n' "${COMPREPLY[@]}"
"""


def test_every_command_hands_its_parser_over() -> None:
    """It parses before it does anything else; what runs would need a model."""
    for word, place in COMMANDS.items():
        assert parser_of(command(place)).prog == f"optimize {word}"
    assert parser_of(command(COMPILE)).prog == "optimize"


@pytest.mark.parametrize("shell", SHELLS)
def test_a_script_has_every_command_option_and_name(shell: str, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("shtab")
    assert main(["completion", shell]) == 0
    text = capsys.readouterr().out
    options = [option for action in parser_of(command(COMPILE))._actions for option in action.option_strings]
    plain = [option.lstrip("-") if shell == "fish" else option for option in options]
    for word in (*COMMANDS, *plain, "prune_channels", "tensorrt-rtx", "small-download"):
        assert word in text, word
    assert main(["completion", shell, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"shell": shell, "script": text.removesuffix("\n")}


@pytest.fixture(scope="module")
def bash(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("shtab")
    if shutil.which("bash") is None:
        pytest.skip("there is no bash here")
    folder = tmp_path_factory.mktemp("bash")
    (folder / "script.bash").write_text(script("bash"), encoding="utf-8")
    (folder / "ask.bash").write_text(ASK, encoding="utf-8")
    (folder / "model.onnx").touch()
    (folder / "mine.toml").touch()
    return folder


@pytest.mark.parametrize(
    "words, offered",
    [
        (["in"], ["init", "inspect"]),
        (["mod"], ["model.onnx"]),
        (["model.onnx", "--pass"], ["--passes"]),
        (["model.onnx", "--passes", "fold,pr"], ["fold,prune", "fold,prune_channels", "fold,prune_nm"]),
        (["model.onnx", "--passes", '"fold, in'], ["fold, int4", "fold, int8"]),
        (["model.onnx", "--passes", "fold,prune(scope=global,s"], [""]),
        (["model.onnx", "--passes", "prune(training={epochs: 1},"], [""]),
        (["model.onnx", "--passes", "prune(sparsity=0.8),fl"], ["prune(sparsity=0.8),float16"]),
        (["model.onnx", "--target", "ort,tens"], ["ort,tensorrt", "ort,tensorrt-rtx"]),
        (["model.onnx", "--recipe", "ph"], ["phone"]),
        (["model.onnx", "--recipe", "mi"], ["mine.toml"]),
        (["passes", "fl"], ["float16"]),
        (["recipes", "d"], ["deep-compression", "dsd"]),
        (["gate", "a.onnx", "mod"], ["model.onnx"]),
        (["gate", "a.onnx", "b.onnx", "--ev"], ["--eval"]),
        (["pack", "model.onnx", "--effort", "f"], ["fast"]),
        (["completion", "z"], ["zsh"]),
    ],
)
def test_bash_offers(words: list[str], offered: list[str], bash: Path) -> None:
    asked = ["bash", "--norc", "ask.bash", "optimize", *words]
    done = subprocess.run(asked, cwd=bash, capture_output=True, text=True, check=True)
    assert done.stdout.split("\n")[:-1] == offered
    assert not done.stderr


def test_another_shell_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert "invalid choice: 'tcsh'" in refused(capsys, ["completion", "tcsh"])


def test_without_shtab_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "shtab", None)
    with pytest.raises(UsageError, match="pip install shtab"):
        script("bash")
