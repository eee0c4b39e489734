"""What callers in Python give, checked in one place."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import onnx_lathe
from onnx_lathe.errors import UsageError
from onnx_lathe.optimizer import arguments
from onnx_lathe.optimizer.commands import compile, options, recipes, searching
from tests.support.models import ROOT

HEAVY = (
    "torch",
    "onnxruntime",
    "onnx_graphsurgeon",
    "optuna",
    "ncnn",
    "coremltools",
    "PIL",
    "ai_edge_litert",
)
HELPS = f"""
import contextlib, io, sys
from onnx_lathe.optimizer.cli import COMMANDS, main
for word in ["", *COMMANDS]:
    with contextlib.redirect_stdout(io.StringIO()) as shown, contextlib.suppress(SystemExit):
        main([*filter(None, [word]), "--help"])
    assert "usage: optimize" in shown.getvalue(), word
    if loaded := [name for name in {HEAVY!r} if name in sys.modules]:
        print(word, loaded)
"""


def test_one_text_or_several_and_a_path() -> None:
    assert arguments.texts("top1 >= 0.9", "gates") == ("top1 >= 0.9",)
    assert arguments.texts(["a", "b"], "gates") == ("a", "b")
    assert arguments.path("model.onnx", "model") == Path("model.onnx")


@pytest.mark.parametrize("wrong", [3, [1], {"a"}, None])
def test_another_type_is_one_line_that_names_the_argument(wrong: Any) -> None:
    with pytest.raises(UsageError, match="gates takes a text or a list of texts, not"):
        arguments.texts(wrong, "gates")
    with pytest.raises(UsageError, match="out takes a path, not"):
        arguments.path(wrong, "out")


def test_every_function_of_the_face_says_so_alike(tmp_path: Path) -> None:
    for call, what in (
        (lambda: onnx_lathe.gate("a", 3, "size <= 1"), "candidate"),  # type: ignore[arg-type]
        (lambda: onnx_lathe.run(3), "model"),  # type: ignore[arg-type]
        (lambda: onnx_lathe.debug("a", "b", 3), "out"),  # type: ignore[arg-type]
    ):
        with pytest.raises(UsageError, match=f"^{what} takes a path, not int$"):
            call()


def test_commands_share_the_options_for_targets_and_results() -> None:
    for command, default in (
        (compile.build, Path("build/targets")),
        (searching.search, Path("build/search")),
        (recipes.init, Path("recipe.toml")),
    ):
        parser = options.parser_of(command)
        known = {action.dest: action for action in parser._actions}
        assert known["out"].default == default
        assert f"(default {default.as_posix()})" in str(known["out"].help)
        assert isinstance(known["target"], options.Joined)
    found = options.parser_of(compile.build).parse_args(["m.onnx", "--target", "ort", "--target", "ncnn"])
    assert found.target == "ort,ncnn"


def test_help_loads_nothing_heavy() -> None:
    """It comes at once; so does the line that refuses a mistake in the arguments."""
    done = subprocess.run([sys.executable, "-c", HELPS], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout == ""
