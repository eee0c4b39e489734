"""The command `optimize`: arguments, exit codes, printing; no logic.

Exit codes: 0 done and gates passed, 1 a defect of Lathe, 2 wrong use or bad input, 3 a gate failed, 4 a
target is not available or its build failed, 130 interrupted.
"""

import argparse
import contextlib
import json
import os
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NoReturn

from rich.console import Console

from onnx_lathe.errors import LatheError, UsageError, nearest
from onnx_lathe.version import VERSION

COMPILE_EPILOG = """\
other commands: optimize inspect MODEL | gate BASE CANDIDATE | build MODEL --target T
                | check MODEL --target T | pack FILE | unpack FILE | passes [NAME] | targets
exit codes: 0 done and gates passed, 1 a defect of Lathe, 2 wrong use or bad input, 3 a gate failed, 4 a target failed, 130 interrupted"""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        unknown = message.removeprefix("unrecognized arguments: ")
        if unknown != message:
            word = unknown.split()[0]
            message = f"unknown argument '{word}'{nearest(word, self._option_string_actions)}"
        raise UsageError(f"{message}; see: {self.prog} --help")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns the exit code. Every mistake of the user is one line on standard error."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        return _dispatch(arguments)
    except LatheError as error:
        _complain(str(error))
        return error.exit_code
    except KeyboardInterrupt:
        compiling = not arguments or arguments[0] not in COMMANDS
        _complain(
            "interrupted"
            + (
                "; finished steps and epochs are kept, the same command with --resume continues"
                if compiling
                else ""
            )
        )
        return 130
    except BrokenPipeError:  # `optimize ... | head`
        sys.stderr.close()
        return 0
    except Exception as error:  # noqa: BLE001 - the last resort: a defect of ours is told from a mistake
        traceback.print_exc()
        _complain(
            f"this is a defect of Lathe {VERSION} ({type(error).__name__}); please report it with the lines above"
        )
        return 1


def _complain(message: str) -> None:
    Console(stderr=True, highlight=False, emoji=False, soft_wrap=True).print(
        f"optimize: {message}", markup=False
    )


def _dispatch(arguments: list[str]) -> int:
    command = COMMANDS.get(arguments[0]) if arguments else None
    if command is not None:
        return command(arguments[1:])
    first = arguments[0] if arguments else "-"
    if not first.startswith("-") and not Path(first).exists() and (hint := nearest(first, COMMANDS)):
        raise UsageError(f"{first}: there is no such file or command{hint}")
    return _compile(arguments)


def _compile(arguments: list[str]) -> int:
    parser = _Parser(prog="optimize", description="Compile an ONNX model for a device.", epilog=COMPILE_EPILOG, allow_abbrev=False,
                     formatter_class=argparse.RawDescriptionHelpFormatter)  # fmt: skip
    parser.add_argument("model", type=Path, help="the ONNX file")
    parser.add_argument(
        "--passes", metavar="P", help='what to do, in order: "fold,prune(sparsity=0.9),retrain,int8"'
    )
    parser.add_argument(
        "--recipe",
        type=Path,
        metavar="FILE",
        help="TOML file with passes, data, gates and targets; options override it",
    )
    _add_data_options(parser)
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
        "--gate",
        action="append",
        metavar="G",
        help='such as "top1 drop <= 0.5%%" or "size ratio >= 10"; may be repeated',
    )
    parser.add_argument(
        "--target",
        metavar="T",
        help="what to build, such as onnx,tensorrt-rtx (default onnx); see: optimize targets",
    )
    parser.add_argument(
        "--out", type=Path, default=Path("build"), metavar="DIR", help="folder for results (default build)"
    )
    parser.add_argument("--resume", action="store_true", help="continue an interrupted run in the same --out")
    parser.add_argument("--seed", type=int, help="of the split of --data (default 0)")
    parser.add_argument("--no-latency", action="store_true", help="do not time the models")
    parser.add_argument("--json", action="store_true", help="print the run record as JSON instead of tables")
    parser.add_argument("--quiet", action="store_true", help="no progress")
    parser.add_argument("--version", action="version", version=f"optimize {VERSION}")
    options = parser.parse_args(_attached(arguments, "--launch"))

    from onnx_lathe.optimizer import pipeline
    from onnx_lathe.optimizer.recipe import Recipe, load_recipe, override, parse_calls
    from onnx_lathe.optimizer.report import terminal
    from onnx_lathe.optimizer.sizes import parse_bytes
    from onnx_lathe.optimizer.ui import Ui

    recipe = load_recipe(options.recipe) if options.recipe else Recipe()
    recipe = override(
        recipe,
        steps=None if options.passes is None else parse_calls(options.passes, "--passes"),
        gates=None if options.gate is None else tuple(options.gate),
        targets=None if options.target is None else parse_calls(options.target, "--target"),
        retrain=options.retrain,
        launch=options.launch,
        memory=None if options.memory is None else parse_bytes(options.memory, "--memory"),
        seed=options.seed,
        **_data_options(options),
    )
    if options.passes is None and options.recipe is None:
        raise UsageError(
            "nothing to do; name passes with --passes, or a --recipe (optimize passes lists them)"
        )
    request = pipeline.Request(options.model, recipe, options.out, options.resume, not options.no_latency)
    with contextlib.redirect_stdout(sys.stderr):  # a hook's or a loader's print must not get into the report
        record = pipeline.run(request, Ui(quiet=options.quiet))
    record.write(options.out / "report.json")
    try:
        if options.json:
            print(json.dumps(record.as_json(), indent=1))
        else:
            terminal.show(record, Console(highlight=False, emoji=False, soft_wrap=True))
        sys.stdout.flush()
    except (BrokenPipeError, SystemExit):
        # `optimize ... | head`: rich exits with 1 there, but the gate's verdict is what counts
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 - for the interpreter's own flush at exit
    return record.exit_code


def _attached(arguments: Sequence[str], name: str) -> list[str]:
    """The arguments with `name VALUE` as `name=VALUE`: argparse would take a value that begins with - for
    an option.
    """
    words = list(arguments)
    while name in words[:-1]:
        at = words.index(name)
        words[at : at + 2] = [f"{name}={words[at + 1]}"]
    return words


def _add_data_options(parser: argparse.ArgumentParser) -> None:
    data = parser.add_argument_group(
        "data",
        "an .npz whose arrays are named as the model's inputs, plus `labels` (FILE.npz:PART for arrays PART/...); "
        "a folder of images; or FILE.py:FUNCTION yielding batches",
    )  # fmt: skip
    data.add_argument("--data", metavar="D", help="is split into training, calibration and evaluation data")
    data.add_argument("--train", metavar="D", help="training data")
    data.add_argument(
        "--calibration", metavar="D", help="calibration data (default: part of the training data)"
    )
    data.add_argument("--eval", metavar="D", help="evaluation data; never trained on")
    data.add_argument(
        "--preprocess",
        metavar="TEXT",
        help='for uint8 images: "scale=1/255" or "mean=125,123,114 std=63,62,67"',
    )


def _data_options(options: argparse.Namespace) -> dict[str, str | None]:
    return {name: getattr(options, name) for name in ("data", "train", "calibration", "eval", "preprocess")}


def _passes(arguments: list[str]) -> int:
    parser = _Parser(
        prog="optimize passes", description="List the passes, or every option of one.", allow_abbrev=False
    )
    parser.add_argument("name", nargs="?")
    options = parser.parse_args(arguments)

    from onnx_lathe.optimizer.report import reference

    reference.show_passes(options.name, Console(highlight=False, emoji=False))
    return 0


def _targets(arguments: list[str]) -> int:
    _Parser(
        prog="optimize targets", description="List the targets and whether they are available here."
    ).parse_args(arguments)

    from onnx_lathe.optimizer.report import reference

    reference.show_targets(Console(highlight=False, emoji=False))
    return 0


def _inspect(arguments: list[str]) -> int:
    parser = _Parser(prog="optimize inspect", description="Per-layer table of a model.", allow_abbrev=False)
    parser.add_argument("model", type=Path)
    options = parser.parse_args(arguments)

    from onnx_lathe.optimizer.report import reference
    from onnx_lathe.runtime.files import model_file

    reference.show_layers(model_file.load(options.model), Console(highlight=False, emoji=False))
    return 0


def _build(arguments: list[str]) -> int:
    parser = _Parser(
        prog="optimize build", description="Build a finished model for targets.", allow_abbrev=False
    )
    parser.add_argument("model", type=Path)
    parser.add_argument("--target", required=True, metavar="T")
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("build/targets"),
        metavar="DIR",
        help="folder for results (default build/targets)",
    )
    options = parser.parse_args(arguments)
    return _compile(
        [
            str(options.model),
            "--passes",
            "",
            "--target",
            options.target,
            "--out",
            str(options.out),
            "--no-latency",
        ]
    )


def _gate(arguments: list[str]) -> int:
    parser = _Parser(
        prog="optimize gate", description="Judge a candidate against a base model.", allow_abbrev=False
    )
    parser.add_argument("base", type=Path)
    parser.add_argument("candidate", type=Path)
    parser.add_argument("--gate", action="append", required=True, metavar="G")
    _add_data_options(parser)
    options = parser.parse_args(arguments)

    from onnx_lathe.optimizer import compare
    from onnx_lathe.optimizer.recipe import Recipe, override
    from onnx_lathe.optimizer.ui import Ui

    recipe = override(Recipe(), gates=tuple(options.gate), **_data_options(options))
    verdicts = compare.compare(options.base, options.candidate, recipe, Ui())
    for verdict in verdicts:
        print(f"gate {'passed' if verdict.passed else 'FAILED'}  {verdict.message}")
    return 0 if all(verdict.passed for verdict in verdicts) else 3


def _check(arguments: list[str]) -> int:
    parser = _Parser(prog="optimize check", description="Which layers really run in INT8 on a target, and why the others do not.",
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
    from onnx_lathe.optimizer.report import reference

    calls = parse_calls(options.target, "--target")
    if not calls:
        raise UsageError("--target names no target; see: optimize targets")
    found = check.check(options.model, calls)
    if options.json:
        print(json.dumps([one.as_json() for one in found], indent=1))
    else:
        reference.show_checks(found, Console(highlight=False, emoji=False))
    return 0


def _pack(arguments: list[str]) -> int:
    parser = _Parser(prog="optimize pack", description="Compress a model file without loss; every command takes the result as MODEL.",
                     allow_abbrev=False)  # fmt: skip
    parser.add_argument("file", type=Path, help="the ONNX file; external data is packed with it")
    parser.add_argument(
        "-o", "--out", type=Path, metavar="OUT", help="the packed file (default FILE with the ending .lathe)"
    )
    options = parser.parse_args(arguments)

    from onnx_lathe.runtime.pack import files

    files.require(options.file, packed=False)
    out = _beside(options.file, options.out, files.SUFFIX)
    sizes = files.pack_file(options.file, out)
    print(f"{options.file} {sizes.onnx:,} bytes -> {out} {sizes.packed:,} bytes, {sizes.ratio:.4g}x smaller")
    return 0


def _unpack(arguments: list[str]) -> int:
    parser = _Parser(
        prog="optimize unpack", description="Restore the model file that was packed.", allow_abbrev=False
    )
    parser.add_argument("file", type=Path, help="the packed file")
    parser.add_argument(
        "-o", "--out", type=Path, metavar="OUT", help="the ONNX file (default FILE with the ending .onnx)"
    )
    parser.add_argument("--limit", type=float, metavar="GB", help="largest model to unpack (default 4)")
    options = parser.parse_args(arguments)
    if options.limit is not None and not 0 < options.limit < 1e9:
        raise UsageError(
            f"--limit {options.limit:g}: give the largest model to unpack in GB, such as --limit 16"
        )

    from onnx_lathe.runtime.pack import LIMIT_BYTES, files

    files.require(options.file, packed=True)
    out = _beside(options.file, options.out, ".onnx")
    sizes = files.unpack_file(
        options.file, out, LIMIT_BYTES if options.limit is None else int(options.limit * 1e9)
    )
    print(f"{options.file} {sizes.packed:,} bytes -> {out} {sizes.onnx:,} bytes")
    return 0


def _beside(source: Path, out: Path | None, suffix: str) -> Path:
    """Where to write: `out`, or `source` with another ending. Raises UsageError for the input itself, or a
    file that nobody named.
    """
    target = source.with_suffix(suffix) if out is None else out
    if target.exists() and source.exists() and target.samefile(source):
        raise UsageError(f"{target}: is the input itself; name another file with -o")
    if out is None and target.exists():
        raise UsageError(f"{target}: is there already; name the result with -o")
    return target


COMMANDS: dict[str, Callable[[list[str]], int]] = {
    "passes": _passes,
    "targets": _targets,
    "inspect": _inspect,
    "build": _build,
    "gate": _gate,
    "check": _check,
    "pack": _pack,
    "unpack": _unpack,
}

if __name__ == "__main__":
    sys.exit(main())
