"""`optimize diff` and `optimize debug`: where two models part, and which layer is to blame."""

import argparse
import contextlib
import re
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
    from onnx_lathe.optimizer.recipe import Recipe


def diff(arguments: list[str]) -> int:
    parser = Parser(
        prog="optimize diff",
        description="Two models side by side: nodes, stored tensors, and how far each tensor is from the base's.",
        allow_abbrev=False,
    )
    _add_models(
        parser,
        "an ONNX file, packed or not; of an .ort, a .tflite, ncnn's .param or an .engine outputs alone",
    )
    parser.add_argument(
        "--at", metavar="DB", default="20dB", help="models part at the first tensor below it (default: 20dB)"
    )
    parser.add_argument("--samples", type=int, default=32, metavar="N", help="at most so many (default: 32)")
    parser.add_argument("--sort", action="store_true", help="worst first (default: in order of execution)")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write a page that opens offline")
    parser.add_argument(
        "--model-explorer", type=Path, metavar="FILE.json", help="write node data for Google's Model Explorer"
    )
    add_threads(parser)
    add_output_options(parser, "all figures")
    options = parser.parse_args(arguments)
    at = _decibels(options.at)

    from onnx_lathe.optimizer.diffing.diff import diff_models
    from onnx_lathe.optimizer.diffing.explorer import node_data
    from onnx_lathe.optimizer.diffing.page import page
    from onnx_lathe.optimizer.diffing.terminal import show_diff
    from onnx_lathe.optimizer.report.printing import Printer
    from onnx_lathe.optimizer.ui import Ui
    from onnx_lathe.runtime.files.writing import replacing

    made = [(options.html, page, ".html"), (options.model_explorer, node_data, ".json")]
    for file, _, ending in made:
        check_file(file, ending, [options.base, options.candidate])
    with contextlib.redirect_stdout(sys.stderr):  # what a loader prints is no result
        found = diff_models(
            options.base, options.candidate, _recipe(options), Ui(quiet=options.quiet), at=at, samples=options.samples
        )  # fmt: skip
    for file, made_of, _ in made:
        if file is not None:
            with replacing(file) as stream:
                stream.write(made_of(found).encode(errors="replace"))
    if options.json:
        print_json(found.as_json())
    else:
        show_diff(found, Printer(highlight=False, emoji=False, soft_wrap=True), options.sort)
    return ExitCode.DONE


def debug(arguments: list[str]) -> int:
    parser = Parser(
        prog="optimize debug",
        description="Find the layer of B that is wrong by itself when it is fed with what A computes, or at which B "
        "does not run, and write the smallest model that shows it, with its input.",
        allow_abbrev=False,
    )
    _add_models(parser, "an ONNX file, packed or not")
    parser.add_argument(
        "--out", type=Path, required=True, metavar="DIR", help="a new folder for what is found"
    )
    parser.add_argument(
        "--top", type=int, default=1, metavar="N", help="so many of the worst layers (default: 1)"
    )
    parser.add_argument(
        "--at",
        metavar="DB",
        help="a layer is to blame below it (default: 18 dB below the median layer, from 15 to 60 dB)",
    )
    parser.add_argument("--samples", type=int, default=8, metavar="N", help="at most so many (default: 8)")
    add_threads(parser)
    add_output_options(parser, "what was found")
    options = parser.parse_args(arguments)
    at = None if options.at is None else _decibels(options.at)

    from onnx_lathe.optimizer.diffing.debug import debug_models
    from onnx_lathe.optimizer.diffing.terminal import show_debugged
    from onnx_lathe.optimizer.report.printing import Printer
    from onnx_lathe.optimizer.ui import Ui

    with contextlib.redirect_stdout(sys.stderr):  # what a loader prints is no result
        found = debug_models(
            options.base, options.candidate, _recipe(options), Ui(quiet=options.quiet), options.out,
            top=options.top, at=at, samples=options.samples,
        )  # fmt: skip
    if options.json:
        print_json(found.as_json())
    else:
        show_debugged(found, Printer(highlight=False, emoji=False, soft_wrap=True))
    return ExitCode.DONE


def _add_models(parser: argparse.ArgumentParser, what: str) -> None:
    parser.add_argument("base", type=Path, metavar="A", help=f"the model that is right: {what}")
    parser.add_argument("candidate", type=Path, metavar="B", help="the model that is judged")
    parser.add_argument(
        "--data",
        metavar="D",
        help="an .npz (FILE.npz:PART), a folder of images or FILE.py:FUNCTION (default: random values)",
    )
    add_reading_of_data(parser)


def _recipe(options: argparse.Namespace) -> "Recipe":
    from onnx_lathe.optimizer.recipe import Recipe, override

    return override(Recipe(), eval=options.data, preprocess=options.preprocess, classes=options.classes)


def _decibels(text: str) -> float:
    found = re.fullmatch(r"\s*(-?\d+(?:\.\d*)?)\s*(?:dB)?\s*", text, re.IGNORECASE)
    if found is None:
        raise UsageError(f"--at takes a number of dB such as 30dB, not '{text}'")
    return float(found[1])
