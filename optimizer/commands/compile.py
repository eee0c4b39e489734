"""`optimize MODEL ...` and `optimize build`: compiles, and prints what came of it.

What compiles is imported once the arguments are understood: --help and mistakes in them do without ONNX Runtime.
"""

import argparse
import contextlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from onnx_lathe.errors import UsageError
from onnx_lathe.optimizer.commands.options import (
    Joined,
    Parser,
    add_data_options,
    add_fixed,
    add_judging_options,
    add_out,
    add_output_options,
    add_target,
    add_threads,
    data_options,
    judging_options,
    print_json,
)
from onnx_lathe.optimizer.sizes import parse_bytes
from onnx_lathe.version import VERSION

if TYPE_CHECKING:
    from onnx_lathe.optimizer.recipe import Recipe
    from onnx_lathe.optimizer.report.record import RunRecord
    from onnx_lathe.optimizer.run import Request
    from onnx_lathe.passes.loading.preparing import Wishes

COMPILE_EPILOG = """\
other commands: optimize init MODEL | inspect MODEL [OTHER] | gate BASE CANDIDATE
                | build MODEL --target T | check MODEL --target T | run MODEL --data D
                | sensitivity MODEL --pass P | search MODEL --passes P --gate G
                | auto MODEL --target T --gate G | diff A B | debug A B --out DIR
                | report BUILD_FOLDER | pack FILE | unpack FILE | passes [NAME]
                | recipes [NAME] | targets | completion SHELL; each explains itself with --help
exit codes: 0 done and gates passed, 1 a defect of Lathe, 2 wrong use or bad input, 3 a gate failed, 4 a target failed, 130 interrupted"""


def compile_model(arguments: list[str]) -> int:
    """`optimize MODEL --passes P`, or with a recipe. Returns the exit code."""
    options = _parser().parse_args(attached(arguments, "--launch"))
    recipe = _recipe(options)
    if options.passes is None and options.recipe is None:
        raise UsageError(
            "nothing to do; name passes with --passes, or a --recipe (optimize passes lists them); optimize build MODEL "
            "--target T builds a model as it is"
        )
    from onnx_lathe.optimizer.run import Request

    request = Request(
        options.model,
        recipe,
        options.out,
        options.resume,
        not options.no_latency,
        wishes=_wishes(options),
        command=arguments,
        force=options.force,
        html=not options.no_html,
    )
    return _run(request, options)


def build(arguments: list[str]) -> int:
    """`optimize build MODEL --target T`: no pass runs."""
    parser = Parser(
        prog="optimize build", description="Build a finished model for targets.", allow_abbrev=False
    )
    parser.add_argument("model", type=Path)
    add_target(parser, "what to build; several with a comma between", required=True)
    add_out(parser, "build/targets", "folder for results")
    _add_reading_options(parser)
    _add_force(parser)
    _add_no_html(parser)
    _add_markdown(parser)
    add_threads(parser)
    add_output_options(parser, "the run record")
    options = parser.parse_args(arguments)
    from onnx_lathe.optimizer.fixed_inputs import parse_fixed
    from onnx_lathe.optimizer.recipe import Recipe, parse_calls
    from onnx_lathe.optimizer.run import Request

    calls = parse_calls(options.target, "--target")
    recipe = Recipe(targets=calls, fix_inputs=parse_fixed(options.fix_input))
    request = Request(
        options.model,
        recipe,
        options.out,
        measure_latency=False,
        wishes=_wishes(options),
        command=["build", *arguments],
        force=options.force,
        html=not options.no_html,
    )
    return _run(request, options)


def _run(request: "Request", options: argparse.Namespace) -> int:
    from onnx_lathe.optimizer import pipeline, reporting
    from onnx_lathe.optimizer.claim import claimed
    from onnx_lathe.optimizer.judging.writing import check_text
    from onnx_lathe.optimizer.report.target_markdown import NEEDS_SEVERAL, write_markdown
    from onnx_lathe.optimizer.ui import Ui

    if options.markdown is not None:
        if len(request.recipe.targets) < 2:
            raise UsageError(NEEDS_SEVERAL)
        check_text(options.markdown, [str(request.model)])
    # a hook's or a loader's print must not get into the report
    with contextlib.redirect_stdout(sys.stderr):
        ui = Ui(quiet=options.quiet)
        with claimed(request.out, ui.note) as claim:
            record = pipeline.run(request, ui, claim)
            reporting.finish(record, request, ui)
        if options.markdown is not None:
            write_markdown(record, options.markdown)
    _print(record, options.json)
    return record.exit_code


def _print(record: "RunRecord", as_json: bool) -> None:
    from onnx_lathe.optimizer.report import terminal
    from onnx_lathe.optimizer.report.printing import Printer

    if as_json:
        print_json(record.as_json())
    else:
        terminal.show(record, Printer(highlight=False, emoji=False, soft_wrap=True))


def _recipe(options: argparse.Namespace) -> "Recipe":
    """The recipe file's, with what the command line says in its place."""
    from onnx_lathe.optimizer.fixed_inputs import parse_fixed
    from onnx_lathe.optimizer.recipe import Recipe, load_recipe, override, parse_calls, with_tuning

    recipe = override(
        load_recipe(options.recipe) if options.recipe else Recipe(),
        steps=None if options.passes is None else parse_calls(options.passes, "--passes"),
        gates=None if options.gate is None else tuple(options.gate),
        targets=None if options.target is None else parse_calls(options.target, "--target"),
        retrain=options.retrain,
        launch=options.launch,
        parallel=options.parallel,
        memory=None if options.memory is None else parse_bytes(options.memory, "--memory"),
        seed=options.seed,
        fix_inputs=parse_fixed(options.fix_input),
        **data_options(options),
        **judging_options(options),
    )
    return recipe if options.tuning is None else with_tuning(recipe, options.tuning)


def _parser() -> Parser:
    parser = Parser(
        prog="optimize",
        description="Compile an ONNX model for a device.",
        epilog=COMPILE_EPILOG,
        allow_abbrev=False,
    )
    parser.add_argument("model", type=Path, help="the ONNX file")
    parser.add_argument(
        "--passes",
        action=Joined,
        metavar="P",
        help='what to do, in order: "fold,prune(sparsity=0.9),retrain,int8"',
    )
    parser.add_argument(
        "--recipe",
        type=Path,
        metavar="FILE",
        help="TOML file with passes, data, gates and targets, or a built-in one by name, such as phone (optimize "
        "recipes); options override it",
    )
    add_data_options(parser)
    add_judging_options(parser)
    _add_training_options(parser)
    _add_run_options(parser)
    return parser


def _add_training_options(parser: Parser) -> None:
    parser.add_argument(
        "--retrain", metavar="FILE.py:FUNCTION", help="your own training code for the retrain pass"
    )
    parser.add_argument(
        "--memory",
        metavar="SIZE",
        help="what activations may take in training, such as 2GiB; the rest is computed again",
    )
    parser.add_argument(
        "--launch",
        metavar="ARGS",
        help='train in several processes or machines, by torchrun: "--nproc-per-node=2"',
    )
    parser.add_argument(
        "--parallel",
        metavar="P",
        help='how those processes share the training out: "data=2,height=2", "filter=2", "auto", "pipeline=2,micro=8", '
        '"server" (default: each has a part of every batch)',
    )


def _add_run_options(parser: Parser) -> None:
    parser.add_argument(
        "--gate",
        action="append",
        metavar="G",
        help='such as "top1 drop <= 0.5%%" or "size ratio >= 10"; may be repeated',
    )
    add_target(parser, "what to build, such as onnx,tensorrt-rtx (default onnx); see: optimize targets")
    parser.add_argument(
        "--tuning",
        metavar="FILE",
        help="for the pass winograd: algorithms of convolutions that were chosen on a device",
    )
    add_out(parser, "build", "folder for results")
    parser.add_argument("--resume", action="store_true", help="continue an interrupted run in the same --out")
    parser.add_argument("--seed", type=int, help="of the split of --data (default 0)")
    _add_reading_options(parser)
    parser.add_argument("--no-latency", action="store_true", help="do not time the models")
    _add_force(parser)
    _add_no_html(parser)
    _add_markdown(parser)
    add_threads(parser)
    add_output_options(parser, "the run record")
    parser.add_argument("--version", action="version", version=f"optimize {VERSION}")


def _add_reading_options(parser: Parser) -> None:
    parser.add_argument(
        "--keep-metadata",
        action="store_true",
        help="keep what the exporter wrote of your source code: stack traces, scopes",
    )
    parser.add_argument(
        "--drop-optional-inputs",
        action="store_true",
        help="weights that are inputs too can no longer be fed, so passes may change them",
    )
    add_fixed(parser)


def _wishes(options: argparse.Namespace) -> "Wishes":
    from onnx_lathe.passes.loading.preparing import Wishes

    return Wishes(options.keep_metadata, options.drop_optional_inputs)


def _add_force(parser: Parser) -> None:
    parser.add_argument(
        "--force", action="store_true", help="erase what --out holds of another recipe or model"
    )


def _add_markdown(parser: Parser) -> None:
    parser.add_argument(
        "--markdown",
        type=Path,
        metavar="FILE",
        help="also write the table of several targets as Markdown; what $GITHUB_STEP_SUMMARY names is added to",
    )


def _add_no_html(parser: Parser) -> None:
    parser.add_argument("--no-html", action="store_true", help="write report.json alone, not report.html")


def attached(arguments: Sequence[str], name: str) -> list[str]:
    """The arguments with `name VALUE` as `name=VALUE`: argparse would take a value that begins with - for
    an option.
    """
    words = list(arguments)
    while name in words[:-1]:
        at = words.index(name)
        words[at : at + 2] = [f"{name}={words[at + 1]}"]
    return words
