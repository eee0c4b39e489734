"""`optimize recipes` and `optimize init`: recipes that are there, and one made for a model."""

import contextlib
import sys
from pathlib import Path

from rich.markup import escape

from onnx_lathe.errors import ExitCode, UsageError, nearest
from onnx_lathe.optimizer.commands.options import (
    Parser,
    add_data_options,
    add_out,
    add_output_options,
    add_target,
    add_threads,
    data_options,
    print_json,
)
from onnx_lathe.optimizer.report.printing import Printer


def recipes(arguments: list[str]) -> int:
    parser = Parser(
        prog="optimize recipes",
        description="List the built-in recipes, or print one, to be copied and changed.",
        allow_abbrev=False,
    )
    parser.add_argument("name", nargs="?")
    add_output_options(parser, "the recipes")
    options = parser.parse_args(arguments)

    from onnx_lathe.optimizer import recipe_library
    from onnx_lathe.optimizer.report.tables import plain_table

    known = recipe_library.recipes()
    if options.name is not None and options.name not in known:
        hint = nearest(options.name, known) or f"; there are {', '.join(known)}"
        raise UsageError(f"there is no built-in recipe '{options.name}'{hint}")
    shown = known if options.name is None else {options.name: known[options.name]}
    if options.json:
        found = [
            {"name": name, "summary": recipe_library.summary(path), "text": path.read_text(encoding="utf-8")}
            for name, path in shown.items()
        ]
        print_json(found if options.name is None else found[0])
    elif options.name is not None:
        print(known[options.name].read_text(encoding="utf-8"), end="")
    else:
        table = plain_table("recipe", "what it does")
        for name, path in shown.items():
            table.add_row(name, escape(recipe_library.summary(path)))
        Printer(highlight=False, emoji=False).print(table)
    return ExitCode.DONE


def init(arguments: list[str]) -> int:
    parser = Parser(
        prog="optimize init",
        description="Write a commented recipe that fits the model and the data it is shown, and runs as it is.",
        allow_abbrev=False,
    )
    parser.add_argument("model", type=Path, help="the ONNX file")
    add_data_options(parser)
    add_target(parser, "what the recipe is to build (default ort, without data onnx); see: optimize targets")
    add_out(parser, "recipe.toml", "the recipe", "FILE")
    parser.add_argument("--force", action="store_true", help="overwrite the file of --out")
    add_threads(parser)
    add_output_options(parser, "the recipe and what it follows from")
    options = parser.parse_args(arguments)

    from onnx_lathe.optimizer import proposal

    with contextlib.redirect_stdout(sys.stderr):  # what a loader prints is no result
        made = proposal.init(
            options.model,
            targets=options.target,
            out=options.out,
            force=options.force,
            **data_options(options),
        )
    if options.json:
        print_json(made.as_json())
        return ExitCode.DONE
    if not options.quiet:
        print(made.text)
    print(f"{made.path} is written; next: {made.command}")
    return ExitCode.DONE
