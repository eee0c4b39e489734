"""`optimize run`: what a finished model computes, how good that is, and how long it takes."""

import contextlib
import sys
from pathlib import Path

from onnx_lathe.errors import ExitCode
from onnx_lathe.optimizer.commands.options import (
    Parser,
    add_fixed,
    add_output_options,
    add_reading_of_data,
    add_threads,
    print_json,
)
from onnx_lathe.optimizer.report.printing import Printer


def run(arguments: list[str]) -> int:
    parser = Parser(
        prog="optimize run",
        description="Run a finished model on data: an ONNX file, packed or not, an .ort file, a .tflite, ncnn's .param, a TensorRT .engine, or QNN's context file.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "model",
        type=Path,
        help="what belongs to ncnn's .param lies beside it, the .bin and the .json; to an .engine its .engine.json; to model_ctx.onnx its .bin and .json",
    )
    parser.add_argument(
        "--data",
        metavar="D",
        help="an .npz (FILE.npz:PART), a folder of images or FILE.py:FUNCTION (default: random values)",
    )
    add_reading_of_data(parser)
    add_fixed(parser)
    parser.add_argument(
        "--against",
        type=Path,
        metavar="MODEL",
        help="another model, such as the original ONNX file: agreement, signal to noise, and times in turn with it",
    )
    parser.add_argument("--save", type=Path, metavar="FILE.npz", help="write all outputs")
    add_threads(parser, "threads that the model runs on (default: one)")
    add_output_options(parser, "what was observed")
    options = parser.parse_args(arguments)

    from onnx_lathe.optimizer import observing
    from onnx_lathe.optimizer.fixed_inputs import parse_fixed
    from onnx_lathe.optimizer.recipe import Recipe, override
    from onnx_lathe.optimizer.report.observation import show_observation
    from onnx_lathe.optimizer.ui import Ui

    recipe = override(
        Recipe(),
        eval=options.data,
        preprocess=options.preprocess,
        classes=options.classes,
        fix_inputs=parse_fixed(options.fix_input),
    )
    with contextlib.redirect_stdout(sys.stderr):  # what a loader prints is no result
        ui = Ui(quiet=options.quiet)
        found = observing.observe(options.model, recipe, ui, options.against, options.save)
    if options.json:
        print_json(found.as_json())
    else:
        show_observation(found, Printer(highlight=False, emoji=False, soft_wrap=True))
    return ExitCode.DONE
