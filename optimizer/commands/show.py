"""`optimize passes`, `targets`, `inspect` and `check`: tables that explain."""

import json
from pathlib import Path

from rich.console import Console

from onnx_lathe.optimizer.commands.options import Parser


def passes(arguments: list[str]) -> int:
    parser = Parser(
        prog="optimize passes", description="List the passes, or every option of one.", allow_abbrev=False
    )
    parser.add_argument("name", nargs="?")
    options = parser.parse_args(arguments)

    from onnx_lathe.optimizer.report import reference

    reference.show_passes(options.name, Console(highlight=False, emoji=False))
    return 0


def targets(arguments: list[str]) -> int:
    Parser(
        prog="optimize targets", description="List the targets and whether they are available here."
    ).parse_args(arguments)

    from onnx_lathe.optimizer.report import reference

    reference.show_targets(Console(highlight=False, emoji=False))
    return 0


def inspect(arguments: list[str]) -> int:
    parser = Parser(prog="optimize inspect", description="Per-layer table of a model.", allow_abbrev=False)
    parser.add_argument("model", type=Path)
    options = parser.parse_args(arguments)

    from onnx_lathe.optimizer.inspect import layer_table
    from onnx_lathe.optimizer.report.layers import show_layers
    from onnx_lathe.runtime.files import model_file

    model = model_file.load(options.model)
    table = layer_table(model)
    show_layers(table.rows, table.size, Console(highlight=False, emoji=False))
    return 0


def check(arguments: list[str]) -> int:
    parser = Parser(prog="optimize check", description="Which layers really run in INT8 on a target, and why the others do not.",
                     allow_abbrev=False)  # fmt: skip
    parser.add_argument("model", type=Path, help="the ONNX file, such as the model.onnx of an earlier run")
    parser.add_argument(
        "--target",
        required=True,
        metavar="T",
        help="such as ort or tensorrt-rtx; several with a comma between",
    )
    parser.add_argument("--json", action="store_true", help="print the verdicts as JSON instead of tables")
    options = parser.parse_args(arguments)

    from onnx_lathe.optimizer import check
    from onnx_lathe.optimizer.recipe import parse_calls
    from onnx_lathe.optimizer.report.layers import show_checks

    found = check.check(options.model, parse_calls(options.target, "--target"))
    if options.json:
        print(json.dumps([one.as_json() for one in found], indent=1))
    else:
        show_checks(found, Console(highlight=False, emoji=False))
    return 0
