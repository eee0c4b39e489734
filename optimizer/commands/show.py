"""`optimize passes`, `targets` and `check`: tables that explain."""

from pathlib import Path

from onnx_lathe.errors import ExitCode
from onnx_lathe.optimizer.commands.options import (
    Parser,
    add_fixed,
    add_output_options,
    add_target,
    add_threads,
    print_json,
)
from onnx_lathe.optimizer.report.printing import Printer


def passes(arguments: list[str]) -> int:
    parser = Parser(
        prog="optimize passes", description="List the passes, or every option of one.", allow_abbrev=False
    )
    parser.add_argument("name", nargs="?")
    add_output_options(parser, "the passes")
    options = parser.parse_args(arguments)

    from onnx_lathe.optimizer.report import reference

    if options.json:
        print_json(reference.passes_as_data(options.name))
        return 0
    reference.show_passes(options.name, Printer(highlight=False, emoji=False))
    return 0


def targets(arguments: list[str]) -> int:
    parser = Parser(
        prog="optimize targets",
        description="List the targets and whether they are available here.",
        allow_abbrev=False,
    )
    add_output_options(parser, "the targets")
    options = parser.parse_args(arguments)

    from onnx_lathe.optimizer.report import reference

    if options.json:
        print_json(reference.targets_as_data())
        return 0
    reference.show_targets(Printer(highlight=False, emoji=False))
    return 0


def check(arguments: list[str]) -> int:
    parser = Parser(prog="optimize check", description="Which nodes a target refuses, which layers really run in INT8 on it, and why the others do not. "
                     "The exit code is 4 if a node is refused.", allow_abbrev=False)  # fmt: skip
    parser.add_argument("model", type=Path, help="the ONNX file, such as the model.onnx of an earlier run")
    add_target(parser, "such as ort or tensorrt-rtx; several with a comma between", required=True)
    add_fixed(parser)
    add_threads(parser)
    add_output_options(parser, "the verdicts")
    options = parser.parse_args(arguments)

    from onnx_lathe.optimizer import check
    from onnx_lathe.optimizer.fixed_inputs import parse_fixed
    from onnx_lathe.optimizer.recipe import parse_calls
    from onnx_lathe.optimizer.report.layers import show_checks

    found = check.check(
        options.model, parse_calls(options.target, "--target"), parse_fixed(options.fix_input)
    )
    if options.json:
        print_json([one.as_json() for one in found])
    else:
        show_checks(found, Printer(highlight=False, emoji=False))
    return ExitCode.TARGET_FAILED if any(one.refused for one in found) else ExitCode.DONE
