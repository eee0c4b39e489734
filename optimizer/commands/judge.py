"""`optimize gate`: judges one model against another."""

from pathlib import Path

from onnx_lathe.errors import ExitCode
from onnx_lathe.optimizer.commands.options import Parser, add_data_options, data_options


def gate(arguments: list[str]) -> int:
    parser = Parser(
        prog="optimize gate", description="Judge a candidate against a base model.", allow_abbrev=False
    )
    parser.add_argument("base", type=Path)
    parser.add_argument("candidate", type=Path)
    parser.add_argument("--gate", action="append", required=True, metavar="G")
    add_data_options(parser)
    options = parser.parse_args(arguments)

    from onnx_lathe.optimizer import compare
    from onnx_lathe.optimizer.recipe import Recipe, override
    from onnx_lathe.optimizer.ui import Ui

    recipe = override(Recipe(), gates=tuple(options.gate), **data_options(options))
    verdicts = compare.compare(options.base, options.candidate, recipe, Ui())
    for verdict in verdicts:
        print(f"gate {'passed' if verdict.passed else 'FAILED'}  {verdict.message}")
    return 0 if all(verdict.passed for verdict in verdicts) else ExitCode.GATE_FAILED
