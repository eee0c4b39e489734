"""The command `optimize`: which command is meant, exit codes, and mistakes in one line; no logic.

Exit codes: see ExitCode in onnx_lathe/errors.py.
"""

import re
import sys
import traceback
from collections.abc import Callable, Sequence
from importlib import import_module
from pathlib import Path

from onnx_lathe.discovery import uncollected
from onnx_lathe.errors import ExitCode, LatheError, UsageError, printable
from onnx_lathe.optimizer.closed_pipe import output_may_be_refused
from onnx_lathe.optimizer.words import meant
from onnx_lathe.runtime.interruption import signals_interrupt
from onnx_lathe.runtime.threads import limited

COMMANDS = {
    "passes": "show.passes",
    "targets": "show.targets",
    "recipes": "recipes.recipes",
    "init": "recipes.init",
    "completion": "completion.completion",
    "inspect": "inspecting.inspect",
    "simulate": "simulating.simulate",
    "check": "show.check",
    "build": "compile.build",
    "gate": "judge.gate",
    "diff": "diffing.diff",
    "debug": "diffing.debug",
    "run": "running.run",
    "report": "report.report",
    "sensitivity": "searching.sensitivity",
    "search": "searching.search",
    "auto": "searching.auto",
    "pack": "packing.pack",
    "unpack": "packing.unpack",
}
"""Word -> module of optimizer/commands and function, imported when it is called."""
COMPILE = "compile.compile_model"
"""What runs where the first word is no command."""


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit code. Every mistake of the user is one line on standard error."""
    with output_may_be_refused() as output:
        code = _told(list(sys.argv[1:] if argv is None else argv))
        output.flush()
        if output.lost:
            _complain(f"standard output cannot be written: {output.lost}; its place is full or gone")
        return code or (ExitCode.WRONG_USE if output.lost else code)


def _told(arguments: list[str]) -> int:
    try:
        with signals_interrupt():
            return _dispatch(arguments)
    except LatheError as error:
        _complain(str(error))
        return error.exit_code
    except KeyboardInterrupt:
        compiling = not arguments or arguments[0] not in COMMANDS
        kept = "; finished steps and epochs are kept, the same command with --resume continues"
        _complain("interrupted" + (kept if compiling else ""))
        return ExitCode.INTERRUPTED
    except Exception as error:  # noqa: BLE001 - the last resort: a defect of ours is told from a mistake
        traceback.print_exc()
        from onnx_lathe.version import VERSION

        what = f"this is a defect of Lathe {VERSION} ({type(error).__name__})"
        _complain(f"{what}; please report it with the lines above")
        return ExitCode.DEFECT


def _complain(message: str) -> None:
    print(f"optimize: {printable(message)}", file=sys.stderr)


def _dispatch(arguments: list[str]) -> int:
    if arguments == ["--version"]:
        from onnx_lathe.version import VERSION  # slow to import

        print(f"optimize {VERSION}")
        return ExitCode.DONE
    first = arguments[0] if arguments else "-"
    with limited(_threads(arguments)):
        if first in COMMANDS:
            return command(COMMANDS[first])(arguments[1:])
        if re.fullmatch(r"[A-Za-z][\w-]*", first) and not Path(first).exists():
            raise UsageError(f"{first}: there is no such file or command{meant(first, COMMANDS)}")
        return command(COMPILE)(arguments)


def _threads(arguments: Sequence[str]) -> int:
    """Of `--threads N`, 0 without it: libraries read it when they are imported, which parsing comes after."""
    for place, word in enumerate(arguments):
        name, equals, value = word.partition("=")
        if name == "--threads":
            value = value if equals else "".join(arguments[place + 1 : place + 2])
            if not re.fullmatch(r"[1-9][0-9]{0,3}", value):
                raise UsageError(f"--threads takes a number from 1 to 9999, not '{value}'")
            return int(value)
    return 0


def command(place: str) -> Callable[[list[str]], int]:
    """The function of a command, by its place in COMMANDS."""
    module, _, function = place.partition(".")
    with uncollected():
        found = import_module(f"onnx_lathe.optimizer.commands.{module}")
    called: Callable[[list[str]], int] = getattr(found, function)
    return called


if __name__ == "__main__":
    sys.exit(main())
