"""`optimize gate`: judges one model against another."""

import contextlib
import sys
from dataclasses import asdict
from pathlib import Path

from onnx_lathe.errors import ExitCode
from onnx_lathe.optimizer.commands.options import (
    Parser,
    add_data_options,
    add_output_options,
    add_threads,
    data_options,
    print_json,
)


def gate(arguments: list[str]) -> int:
    parser = Parser(
        prog="optimize gate", description="Judge a candidate against a base model.", allow_abbrev=False
    )
    parser.add_argument("base", type=Path)
    parser.add_argument("candidate", type=Path)
    parser.add_argument("--gate", action="append", required=True, metavar="G")
    add_data_options(parser)
    add_threads(parser)
    add_output_options(parser, "the verdicts")
    options = parser.parse_args(arguments)

    from onnx_lathe.optimizer import compare
    from onnx_lathe.optimizer.recipe import Recipe, override
    from onnx_lathe.optimizer.ui import Ui

    recipe = override(Recipe(), gates=tuple(options.gate), **data_options(options))
    with contextlib.redirect_stdout(sys.stderr):  # what a loader prints is no verdict
        verdicts = compare.compare(options.base, options.candidate, recipe, Ui(quiet=options.quiet))
    passed = all(verdict.passed for verdict in verdicts)
    if options.json:
        print_json({"passed": passed, "gates": [asdict(verdict) for verdict in verdicts]})
    else:
        for verdict in verdicts:
            print(f"gate {'passed' if verdict.passed else 'FAILED'}  {verdict.message}")
    return ExitCode.DONE if passed else ExitCode.GATE_FAILED
