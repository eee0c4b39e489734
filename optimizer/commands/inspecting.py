"""`optimize inspect`: what each layer of a model costs, or two models side by side."""

import argparse
import contextlib
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from onnx_lathe.errors import ExitCode, UsageError
from onnx_lathe.optimizer.commands.options import (
    Parser,
    add_output_options,
    add_reading_of_data,
    add_threads,
    check_file,
    print_json,
)

if TYPE_CHECKING:
    from rich.console import Console

    from onnx_lathe.optimizer.inspecting.analysis import Question
    from onnx_lathe.optimizer.inspecting.rows import Inspection


def _parser() -> Parser:
    parser = Parser(
        prog="optimize inspect",
        description="What each layer of a model costs; of two models, both side by side.",
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("model", type=Path)
    add("other", type=Path, nargs="?", help="another model, such as what was made of the first")
    add("--shape", action="append", default=[], metavar="NAME=1x3x224x224",
        help="size of an input that the model leaves open; once for each input")  # fmt: skip
    add("--batch", type=int, metavar="N", help="samples at a time (default: 1)")
    add("--weights", action="store_true",
        help="read weights that lie in another file, and count different values however many weights there are")  # fmt: skip
    add("--training", action="store_true",
        help="memory that training holds: activations kept for the backward pass, gradients, optimizer")  # fmt: skip
    add("--optimizer", default="adam", metavar="O", help="of --training: sgd, momentum or adam (the default)")
    add("--parallel", metavar="P",
        help="what workers send and hold that share a training: a number of workers, for all strategies, or a grid such as "
        "data=2,height=2")  # fmt: skip
    add("--time", action="store_true", help="measure each layer in ONNX Runtime")
    add("--data", metavar="D", help="what --time runs the model on (default: random values)")
    add_reading_of_data(parser)
    _add_table_options(parser)
    add_threads(parser, "threads of --time (default: one per core)")
    add_output_options(parser, "layers and totals")
    return parser


def _add_table_options(parser: Parser) -> None:
    table = parser.add_argument_group("table")
    table.add_argument(
        "--columns", metavar="C,C", help="with commas between, or all; --json and --html have all"
    )
    table.add_argument("--sort", metavar="C", help="order by a column, the largest first")
    table.add_argument("--all", action="store_true", help="also nodes that take no memory of their own")
    table.add_argument("--html", type=Path, metavar="FILE", help="write one page that sorts by every column")


def inspect(arguments: list[str]) -> int:
    options = _parser().parse_args(arguments)
    _check(options)

    from onnx_lathe.optimizer.inspecting.analysis import Question
    from onnx_lathe.optimizer.inspecting.inspecting import inspect_file
    from onnx_lathe.optimizer.inspecting.sizes import parse_shapes
    from onnx_lathe.optimizer.recipe import Recipe, override
    from onnx_lathe.optimizer.report.printing import Printer

    question = Question(
        parse_shapes(options.shape), options.batch, options.weights, options.training, options.optimizer
    )
    if options.parallel is not None:
        return _share(options, question)
    timed = None
    if options.time:
        reading = {"preprocess": options.preprocess, "classes": options.classes}
        timed = override(Recipe(), eval=options.data, **reading)
    paths = [options.model, *([] if options.other is None else [options.other])]
    with contextlib.redirect_stdout(sys.stderr):  # what a loader prints is no result
        found = [inspect_file(path, question, timed) for path in paths]
    console = Printer(highlight=False, emoji=False)
    if options.other is not None:
        _compare(found, options, console)
    else:
        _show(found[0], options, console)
    return ExitCode.DONE


def _check(options: argparse.Namespace) -> None:
    """Raises UsageError for what would be found out too late."""
    from onnx_lathe.optimizer.report import columns

    if options.batch is not None and options.batch < 1:
        raise UsageError(f"--batch takes a number from 1 on, not {options.batch}")
    if options.parallel is not None and (asked := _beside_parallel(options)):
        raise UsageError(f"{asked} does not go with --parallel, which has tables of its own; leave one out")
    if options.data and not options.time:
        raise UsageError("--data is what --time runs the model on; give --time too")
    if options.other is not None and (options.html or options.sort or options.columns or options.all):
        raise UsageError(
            "--html, --sort, --columns and --all are for one model; leave them out, or the other model"
        )
    check_file(options.html, ".html", [options.model])
    if options.sort:
        columns.column(options.sort, "--sort")
    if options.columns:
        columns.parse_columns(options.columns)


def _beside_parallel(options: argparse.Namespace) -> str:
    """What is asked for that --parallel has no answer to."""
    given = {
        "another model": options.other is not None,
        "--time": options.time,
        "--training": options.training,
    }
    given |= {f"--{name}": getattr(options, name) for name in ("columns", "sort", "all", "html")}
    return next((name for name, value in given.items() if value), "")


def _share(options: argparse.Namespace, question: "Question") -> int:
    from onnx_lathe.optimizer.inspecting.sharing import parse_sharing, share_file
    from onnx_lathe.optimizer.report.printing import Printer
    from onnx_lathe.optimizer.report.sharing import show_sharing

    found = share_file(options.model, question, parse_sharing(options.parallel))
    if options.json:
        print_json(found.as_json())
    else:
        show_sharing(found, Printer(highlight=False, emoji=False))
    return ExitCode.DONE


def _compare(found: "list[Inspection]", options: argparse.Namespace, console: "Console") -> None:
    from onnx_lathe.optimizer.inspecting.comparison import compare
    from onnx_lathe.optimizer.report.side_by_side import show_comparison

    both = compare(*found)
    if options.json:
        print_json(both.as_json())
    else:
        show_comparison(both, console)


def _show(found: "Inspection", options: argparse.Namespace, console: "Console") -> None:
    from onnx_lathe.errors import printable
    from onnx_lathe.optimizer.report import columns, inspection
    from onnx_lathe.optimizer.report.inspection_page import page
    from onnx_lathe.runtime.files.writing import replacing

    if options.html:
        lines = [*inspection.summary(found.whole), *inspection.said_beside(found.whole)]
        with replacing(options.html) as file:
            file.write(
                page(found, printable(options.model.name), lines, options.sort).encode(errors="replace")
            )
    if options.json:
        print_json(found.as_json())
        return
    names: tuple[str, ...] = columns.USUAL
    if options.columns:
        names = columns.parse_columns(options.columns)
    elif options.training:
        names = columns.OF_TRAINING
    elif options.time:
        names = columns.TIMED
    if options.sort and options.sort not in names:
        names = (*names[:2], options.sort, *names[2:])
    inspection.show_inspection(found, console, names, options.sort, options.all, not options.columns)
