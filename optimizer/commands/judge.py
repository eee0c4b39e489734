"""`optimize gate`: judges one model against another."""

import contextlib
import sys
from pathlib import Path

from onnx_lathe.errors import ExitCode, UsageError
from onnx_lathe.optimizer.commands.options import (
    Parser,
    add_data_options,
    add_fixed,
    add_judging_options,
    add_output_options,
    add_threads,
    data_options,
    judging_options,
    print_json,
)

EPILOG = """\
metrics with labels: top1 top5, f1 f1_binary, map map50 (boxes), miou (pixels), wer cer (texts), or your own (--metric);
against the base model without labels: agreement, cosine, sqnr (all also of one output: "sqnr[boxes] >= 30");
of the models: size, packed, weights, parameters, macs, sparsity, latency, memory

exit code 3 if a gate failed; docs/gates.md shows gates in CI"""
READ = ("data", "train", "calibration", "eval", "classes", "symbols", "postprocess")
"""Options whose files are read."""


def _gate_parser() -> Parser:
    parser = Parser(
        prog="optimize gate",
        description="Judge a candidate against a base model: files, packed files, networks of ncnn, engines.",
        epilog=EPILOG,
        allow_abbrev=False,
    )
    parser.add_argument("base", type=Path)
    parser.add_argument("candidate", type=Path)
    parser.add_argument(
        "--gate",
        action="append",
        required=True,
        metavar="G",
        help='such as "top1 drop <= 0.5%%"; may be repeated',
    )
    add_fixed(parser)
    add_data_options(parser)
    add_judging_options(parser)
    parser.add_argument("--junit", type=Path, metavar="FILE", help="also write the verdicts as JUnit's XML")
    parser.add_argument(
        "--markdown",
        type=Path,
        metavar="FILE",
        help="also write them as Markdown, for a pull request; what $GITHUB_STEP_SUMMARY names is added to",
    )
    add_threads(parser)
    add_output_options(parser, "the verdicts")
    return parser


def gate(arguments: list[str]) -> int:
    options = _gate_parser().parse_args(arguments)

    from onnx_lathe.optimizer import compare
    from onnx_lathe.optimizer.fixed_inputs import parse_fixed
    from onnx_lathe.optimizer.judging.junit import write_junit
    from onnx_lathe.optimizer.judging.markdown import write_markdown
    from onnx_lathe.optimizer.judging.writing import check_text, same_file
    from onnx_lathe.optimizer.recipe import Recipe, override
    from onnx_lathe.optimizer.ui import Ui

    given = vars(options)
    read = [options.base, options.candidate, *(given[name] for name in READ if given[name] is not None)]
    read += [text.partition("=")[2] for text in options.metric or ()]
    for path in (options.junit, options.markdown):
        if path is not None:
            check_text(path, [str(one) for one in read])
    if None not in (options.junit, options.markdown) and same_file(options.junit, options.markdown):
        raise UsageError(f"{options.junit}: --junit and --markdown each need a file of their own")
    recipe = override(
        Recipe(),
        gates=tuple(options.gate),
        fix_inputs=parse_fixed(options.fix_input),
        **data_options(options),
        **judging_options(options),
    )
    with contextlib.redirect_stdout(sys.stderr):  # what a loader prints is no verdict
        judgement = compare.compare(options.base, options.candidate, recipe, Ui(quiet=options.quiet))
    if options.junit is not None:
        write_junit(judgement, options.junit)
    if options.markdown is not None:
        write_markdown(judgement, options.markdown)
    if options.json:
        print_json(judgement.as_json())
    else:
        for verdict in judgement:
            print(f"gate {'passed' if verdict.passed else 'FAILED'}  {verdict.message}")
    return ExitCode.DONE if judgement.passed else ExitCode.GATE_FAILED
