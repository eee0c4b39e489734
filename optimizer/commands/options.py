"""What the commands share: the parser that refuses in one line, and the options about data."""

import argparse
import json
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

from onnx_lathe.errors import UsageError, nearest
from onnx_lathe.optimizer.commands.examples import shown
from onnx_lathe.optimizer.report.record import plain


class _Found(BaseException):
    """Carries the parser of a command to whoever asks for it."""

    def __init__(self, parser: "Parser") -> None:
        super().__init__()
        self.parser = parser


class Parser(argparse.ArgumentParser):
    """Wrong use is a UsageError of one line, with the nearest right word. `--help` ends with the command's examples."""

    asked_for = False
    """Whether a command that parses is to hand its parser over, in place of running."""

    def __init__(self, *, prog: str, description: str, epilog: str = "", **more: Any) -> None:
        texts = [text for text in (shown(prog), epilog) if text]
        super().__init__(
            prog=prog,
            description=textwrap.fill(description, 78),
            epilog="\n\n".join(texts),
            formatter_class=argparse.RawDescriptionHelpFormatter,
            **more,
        )

    def parse_args(self, args: Any = None, namespace: Any = None) -> Any:
        if Parser.asked_for:
            raise _Found(self)
        return super().parse_args(args, namespace)

    def error(self, message: str) -> NoReturn:
        unknown = message.removeprefix("unrecognized arguments: ")
        if unknown != message:
            word = unknown.split()[0]
            message = f"unknown argument '{word}'{nearest(word, self._option_string_actions)}"
        raise UsageError(f"{message}; see: {self.prog} --help")


class Joined(argparse.Action):
    """An option that may be repeated, with the same meaning as its values with a comma between."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: Any = None) -> None:
        before = getattr(namespace, self.dest)
        setattr(namespace, self.dest, values if before is None else f"{before},{values}")


def parser_of(command: Callable[[list[str]], int]) -> Parser:
    """The parser that a command makes: every command makes it and parses before it does anything else."""
    Parser.asked_for = True
    try:
        command([])
    except _Found as found:
        return found.parser
    finally:
        Parser.asked_for = False
    raise TypeError(f"{command.__name__} parses no arguments")


def add_output_options(parser: argparse.ArgumentParser, what: str) -> None:
    """`what`: what --json prints in place of text."""
    parser.add_argument("--json", action="store_true", help=f"print {what} as JSON, one document")
    parser.add_argument("--quiet", action="store_true", help="no progress")


def add_threads(
    parser: argparse.ArgumentParser,
    help: str = "threads of each process: sessions, training, children (default: one per core)",
) -> None:
    """Read in cli.py, before any library counts the cores."""
    parser.add_argument("--threads", type=int, metavar="N", help=help)


def add_target(parser: argparse.ArgumentParser, help: str, required: bool = False) -> None:
    """--target, which may be repeated."""
    parser.add_argument("--target", action=Joined, required=required, metavar="T", help=help)


def add_out(parser: argparse.ArgumentParser, default: str, what: str, kind: str = "DIR") -> None:
    """--out. `what` goes there; `kind`: DIR or FILE."""
    parser.add_argument(
        "--out", type=Path, default=Path(default), metavar=kind, help=f"{what} (default {default})"
    )


def add_fixed(parser: argparse.ArgumentParser) -> None:
    """--fix-input, which may be repeated."""
    parser.add_argument(
        "--fix-input",
        action="append",
        metavar="NAME=VALUE",
        help="make an input of the model a constant: sr=16000, flag=true, sizes=[640,480]; may be repeated",
    )


def print_json(value: Any) -> None:
    """One JSON document on standard output."""
    print(json.dumps(plain(value), indent=1, allow_nan=False))


def check_file(file: Path | None, ending: str, read: Sequence[Path]) -> None:
    """Before anything runs: an ending that says what is written, a folder that is there, and none of the models that
    are read. Raises UsageError.
    """
    if file is None:
        return
    if file.suffix.lower() != ending:
        raise UsageError(f"{file}: is written as {ending}; give a name that ends so")
    if any(file.exists() and one.exists() and file.samefile(one) for one in read):
        raise UsageError(f"{file}: is one of the models; write to another file")
    if not file.parent.is_dir():
        raise UsageError(f"{file}: {file.parent} is no folder; make it first")


def add_data_options(parser: argparse.ArgumentParser) -> None:
    data = parser.add_argument_group(
        "data",
        "an .npz whose arrays are named as the model's inputs, plus `labels` (FILE.npz:PART for arrays PART/...; "
        "[samples, *shape] for inputs without a batch axis); "
        "a folder of images; or FILE.py:FUNCTION yielding batches",
    )  # fmt: skip
    data.add_argument("--data", metavar="D", help="is split into training, calibration and evaluation data")
    _add_roles(data)
    add_reading_of_data(data)


def _add_roles(data: Any) -> None:
    data.add_argument("--train", metavar="D", help="training data")
    data.add_argument(
        "--calibration",
        metavar="D",
        help="calibration data (default: part of the training data), or `synthetic`: samples made up, for want of real ones",
    )
    data.add_argument("--eval", metavar="D", help="evaluation data; never trained on")


def add_reading_of_data(data: Any) -> None:
    """Options of how data is read, to a parser or a group of one."""
    data.add_argument(
        "--preprocess",
        metavar="TEXT",
        help='for uint8 images: "scale=1/255" or "mean=125,123,114 std=63,62,67"; and for folders of images '
        '"resize=256, crop=224" (default: stretched to the model\'s input)',
    )
    data.add_argument(
        "--classes",
        metavar="FILE",
        help="the order of class folders: one name a line (default: by number if all names are numbers, else by text)",
    )


def add_judging_options(parser: argparse.ArgumentParser) -> None:
    judging = parser.add_argument_group("judging")
    judging.add_argument(
        "--metric",
        action="append",
        metavar="NAME=FILE.py:FUNCTION",
        help="a metric of your own: function(answers, labels) -> a number, or one per sample",
    )
    judging.add_argument(
        "--postprocess",
        metavar="FILE.py:FUNCTION",
        help="function(outputs) -> a list of one answer per sample, for metrics of boxes, pixels, texts and your own",
    )
    judging.add_argument(
        "--symbols",
        metavar="FILE",
        help="for wer and cer: what the scores of a model that reads are of, one symbol a line",
    )
    judging.add_argument(
        "--confidence", metavar="C", help="judge by the worse end of this interval, such as 95%%"
    )
    judging.add_argument(
        "--tolerance",
        action="append",
        metavar="T",
        help="by how much a gate may be missed, as kernels of other processors round otherwise: 0.1%%, sqnr=0.5dB, or "
        "size=0.1x for gates on a ratio",
    )


def judging_options(options: argparse.Namespace) -> dict[str, Any]:
    """As fields of a Recipe; None for what is not given."""
    from onnx_lathe.optimizer.judging.asking import parse_metrics
    from onnx_lathe.optimizer.judging.evidence import parse_confidence, parse_tolerances

    return {
        "metrics": parse_metrics(options.metric),
        "postprocess": options.postprocess,
        "symbols": options.symbols,
        "confidence": None if options.confidence is None else parse_confidence(options.confidence),
        "tolerances": None if options.tolerance is None else parse_tolerances(options.tolerance),
    }


def data_options(options: argparse.Namespace) -> dict[str, str | None]:
    return {
        name: getattr(options, name)
        for name in ("data", "train", "calibration", "eval", "preprocess", "classes")
    }
