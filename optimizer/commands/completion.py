"""`optimize completion bash|zsh|fish`: a script that completes commands, options, and names of passes, targets and
recipes.

The script is static (shtab writes it): a key press starts no Python. Names are those that are installed when it is
written, plug-ins included.
"""

import argparse
import shlex
from collections.abc import Iterable, Mapping
from typing import Any

from onnx_lathe.errors import ExitCode, UsageError
from onnx_lathe.optimizer.commands.options import Parser, add_output_options, parser_of, print_json

SHELLS = ("bash", "zsh", "fish")
LISTS = {"passes": "passes", "target": "targets"}
"""Option -> what its value is a list of, with a comma between."""
FILES = ("data", "train", "calibration", "eval", "classes", "retrain", "tuning")
"""Options whose value is a text that begins as a path; those of type Path need no mention."""


def completion(arguments: list[str]) -> int:
    parser = Parser(
        prog="optimize completion",
        description="Print the completion script of a shell.",
        allow_abbrev=False,
    )
    parser.add_argument("shell", choices=SHELLS)
    add_output_options(parser, "the script")
    options = parser.parse_args(arguments)
    text = script(options.shell)
    if options.json:
        print_json({"shell": options.shell, "script": text})
    else:
        print(text)
    return ExitCode.DONE


def script(shell: str) -> str:
    """The script that completes `optimize` in bash, zsh or fish. Raises UsageError without the package shtab."""
    try:
        import shtab
    except ImportError as error:
        raise UsageError("completion needs shtab; pip install shtab") from error
    from onnx_lathe.optimizer.recipe_library import recipes
    from onnx_lathe.passes.core.registry import all_passes
    from onnx_lathe.runtime.targets.core.registry import targets

    names: dict[str, list[str]] = {
        "passes": list(all_passes()),
        "targets": list(targets()),
        "recipes": list(recipes()),
    }
    return _with_files_first(str(shtab.complete(whole(shtab.FILE, names), shell)), shell)


def whole(file: Mapping[str, Any], names: Mapping[str, list[str]]) -> argparse.ArgumentParser:
    """One parser of all commands, as shtab reads it; their own are several, so that each imports little."""
    from onnx_lathe.optimizer.cli import COMMANDS, COMPILE, command

    compiling = parser_of(command(COMPILE))
    root = argparse.ArgumentParser(prog="optimize", add_help=False)
    added = root.add_subparsers()
    root._actions = [*(action for action in compiling._actions if action.option_strings), added]
    for word, place in COMMANDS.items():
        one = parser_of(command(place))
        inner = added.add_parser(word, help=one.description, description=one.description, add_help=False)
        inner._actions = one._actions
        _mark(one._actions, file, names, word)
    _mark(root._actions, file, names)
    return root


def _mark(
    actions: Iterable[argparse.Action],
    file: Mapping[str, str],
    names: Mapping[str, list[str]],
    command: str = "",
) -> None:
    """Says of each argument how shtab is to complete it."""
    for action in actions:
        found: Any = None
        if action.choices is not None:
            continue
        if action.dest in LISTS:
            found = _listed(LISTS[action.dest], names[LISTS[action.dest]])
        elif action.dest == "recipe":
            found = _or_file(names["recipes"])
        elif action.dest == "name" and command in names:
            action.choices = names[command]
        elif getattr(action.type, "__name__", "") == "Path" or action.dest in FILES:
            found = file
        if found is not None:
            action.complete = found  # type: ignore[attr-defined]


def _listed(what: str, names: list[str]) -> dict[str, Any]:
    """Names with a comma between, also behind an opening quote. Between a pass's parentheses bash offers nothing, for
    what stands there are options.
    """
    words, function = " ".join(names), f"_optimize_{what}"
    bash = f"""{function}() {{
  local word="${{1#[\\"\\']}}" before="" opened closed
  opened="${{word//[!(]/}}" closed="${{word//[!)]/}}"
  (( ${{#opened}} > ${{#closed}} )) && return
  [[ "$word" == *,* ]] && before="${{word%,*}},"
  word="${{word##*,}}"
  compgen -P "$before${{word%%[! ]*}}" -W "{words}" -- "${{word#"${{word%%[! ]*}}"}}"
}}"""
    zsh = f"""{function}() {{
  _values -s , {what} {words}
}}"""
    fish = f"(__fish_complete_list , 'printf %s\\\\n {words}')"
    return {"bash": function, "zsh": function, "fish": fish, "preamble": {"bash": bash, "zsh": zsh}}


def _or_file(names: list[str]) -> dict[str, Any]:
    words = " ".join(names)
    bash = f"""_optimize_recipe_FILE() {{
  compgen -W "{words}" -- "$1"
  compgen -f -- "$1"
}}"""
    zsh = f"""_optimize_recipe_FILE() {{
  _alternative 'recipes:recipe:({words})' 'files:file:_files'
}}"""
    fish = f"(printf %s\\\\n {words}; __fish_complete_path (commandline -ct))"
    return {
        "bash": "_optimize_recipe_FILE",
        "zsh": "_optimize_recipe_FILE",
        "fish": fish,
        "preamble": {"bash": bash, "zsh": zsh},
    }


def _with_files_first(text: str, shell: str) -> str:
    """The first word may be a model in place of a command, which shtab has no word for."""
    if shell == "bash":
        return f"{text}\n_shtab_optimize_pos_0_COMPGEN=_shtab_compgen_files"
    if shell == "zsh":
        text = text.replace(
            "_describe 'optimize commands' _commands", "_describe 'optimize commands' _commands\n  _files"
        )
        return text.replace(
            "      esac\n  esac\n}",
            "        *) _arguments -C -s $_shtab_optimize_options ;;\n      esac\n  esac\n}",
            1,
        )
    if shell == "fish":
        first = shlex.quote("_shtab_optimize_using; and test $_shtab_optimize_npos -eq 0")
        text += f'\ncomplete -c optimize -n {first} -ka "(__fish_complete_path (commandline -ct))"'
    return text
