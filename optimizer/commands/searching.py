"""`optimize sensitivity`, `optimize search` and `optimize auto`."""

import argparse
import contextlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from onnx_lathe.errors import ExitCode, UsageError
from onnx_lathe.optimizer.commands.options import (
    Joined,
    Parser,
    add_data_options,
    add_fixed,
    add_out,
    add_output_options,
    add_target,
    add_threads,
    data_options,
    print_json,
)
from onnx_lathe.optimizer.report.printing import Printer
from onnx_lathe.optimizer.ui import Ui

if TYPE_CHECKING:
    from onnx_lathe.optimizer.recipe import Recipe


def sensitivity(arguments: list[str]) -> int:
    parser = Parser(
        prog="optimize sensitivity",
        description="Measure what a pass costs in each layer alone, by how strong it is set; the others stay as they are.",
        allow_abbrev=False,
    )
    parser.add_argument("model", type=Path, help="the ONNX file")
    parser.add_argument(
        "--pass", dest="step", required=True, metavar="P", help="prune, prune_channels, codebook, svd, tucker, int4 or int8, perhaps with options: svd(method=weight)",
    )  # fmt: skip
    parser.add_argument(
        "--strengths", metavar="A,B,...", help="instead of the usual ones, such as 0.5,0.7,0.9"
    )
    parser.add_argument(
        "--subset", type=int, default=None, metavar="N", help="samples to measure on (default 500)"
    )
    parser.add_argument("--html", type=Path, metavar="FILE", help="also write a page with curves")
    parser.add_argument(
        "--cache", type=Path, default=Path("build/sensitivity.jsonl"), metavar="FILE",
        help="keeps what is measured, so that an interrupted profile goes on (default build/sensitivity.jsonl)",
    )  # fmt: skip
    parser.add_argument("--seed", type=int, default=0, help="of the split of --data (default 0)")
    add_fixed(parser)
    add_data_options(parser)
    add_threads(parser)
    add_output_options(parser, "the profile")
    options = parser.parse_args(arguments)

    from onnx_lathe.optimizer.fixed_inputs import parse_fixed
    from onnx_lathe.optimizer.recipe import Recipe, override, parse_calls
    from onnx_lathe.optimizer.report.profile import page, show_profile
    from onnx_lathe.optimizer.search import profiling
    from onnx_lathe.runtime.files.writing import replacing

    calls = parse_calls(options.step, "--pass")
    if len(calls) != 1:
        raise UsageError(f"--pass '{options.step}': name one pass")
    fixed = parse_fixed(options.fix_input)
    recipe = override(Recipe(seed=options.seed), fix_inputs=fixed, **data_options(options))
    asked = profiling.Asked(
        options.model,
        calls[0],
        recipe,
        profiling.parse_strengths(options.strengths),
        profiling.SUBSET if options.subset is None else options.subset,
        options.cache,
    )
    found = profiling.run(asked, Ui(quiet=options.quiet))
    if options.html is not None:
        with replacing(options.html) as file:
            file.write(page(found).encode())
    if options.json:
        print_json(found.as_json())
    else:
        show_profile(found, Printer(highlight=False, emoji=False, soft_wrap=True))
    return ExitCode.DONE if found.complete else ExitCode.INTERRUPTED


def search(arguments: list[str]) -> int:
    parser = Parser(
        prog="optimize search",
        description="Find the settings of a recipe's passes, layer by layer, that make the model smallest or fastest under the gates.",
        allow_abbrev=False,
    )
    parser.add_argument("model", type=Path, help="the ONNX file")
    parser.add_argument(
        "--passes", action=Joined, metavar="P", help='whose settings are searched: "fold,prune,codebook"'
    )
    parser.add_argument(
        "--recipe", type=Path, metavar="FILE", help="a TOML file with passes, data, gates and targets"
    )
    parser.add_argument(
        "--minimize", default="packed", metavar="M", help="size, latency, macs or packed (default packed)"
    )
    parser.add_argument(
        "--search", action="append", default=[], metavar="S",
        help='what to choose, in place of every layer\'s strength: "retrain.rate=1e-4..1e-1, codebook.bits=3..8, prune.layers[conv*]=0.5..0.95"',
    )  # fmt: skip
    _add_search_options(parser)
    options = parser.parse_args(arguments)

    from onnx_lathe.optimizer.recipe import Recipe, load_recipe, override, parse_calls

    if options.passes is None and options.recipe is None:
        raise UsageError("nothing to search; name passes with --passes, or a --recipe")
    recipe = override(
        load_recipe(options.recipe) if options.recipe else Recipe(),
        steps=None if options.passes is None else parse_calls(options.passes, "--passes"),
        **_asked(options),
    )
    return _search(options, recipe, options.minimize, options.search, ["search", *arguments])


def auto(arguments: list[str]) -> int:
    parser = Parser(
        prog="optimize auto",
        description="Choose passes for a target, search their settings under the gates, and build the winner.",
        allow_abbrev=False,
    )
    parser.add_argument("model", type=Path, help="the ONNX file")
    parser.add_argument(
        "--minimize",
        metavar="M",
        help="macs or latency, by thinner layers (default: the size that suits the target)",
    )
    _add_search_options(parser)
    options = parser.parse_args(arguments)
    if options.target is None:
        raise UsageError(
            "auto chooses passes for a target; name one with --target, such as ort, tensorrt-rtx, ncnn or pack"
        )

    from onnx_lathe.optimizer.recipe import Recipe, override
    from onnx_lathe.optimizer.search.automatic import plan

    recipe = override(Recipe(), **_asked(options))
    chosen = plan(recipe, options.minimize)
    Ui(quiet=options.quiet).note(chosen.note)
    return _search(options, chosen.recipe, chosen.minimize, chosen.search, ["auto", *arguments])


def _add_search_options(parser: Parser) -> None:
    parser.add_argument(
        "--gate", action="append", metavar="G", help='such as "top1 drop <= 0.5%%"; may be repeated'
    )
    add_target(parser, "what the winner is built for, such as ort,pack (default onnx)")
    parser.add_argument(
        "--budget", default="10m", metavar="TIME", help="for all of it, such as 30m or 2h (default 10m)"
    )
    parser.add_argument("--trials", type=int, default=0, metavar="N", help="at most so many")
    parser.add_argument(
        "--jobs", type=int, default=1, metavar="N", help="processes that search together (default 1)"
    )
    parser.add_argument(
        "--storage", default="", metavar="S",
        help="a study that several machines share: journal:FILE or a URL such as postgresql://... (default: a journal in --out)",
    )  # fmt: skip
    parser.add_argument(
        "--subset",
        type=int,
        default=1000,
        metavar="N",
        help="samples of a trial's second look (default 1000)",
    )
    parser.add_argument(
        "--validation",
        type=int,
        default=5000,
        metavar="N",
        help="samples that settings are chosen on, at most (default 5000)",
    )
    parser.add_argument(
        "--margin", type=float, default=1.0, metavar="E",
        help="standard errors by which accuracy must pass there (default 1; 0 takes the estimate)",
    )  # fmt: skip
    add_out(parser, "build/search", "folder for results")
    parser.add_argument("--resume", action="store_true", help="go on with the search in --out")
    parser.add_argument("--force", action="store_true", help="erase the search that --out holds")
    parser.add_argument(
        "--retrain", metavar="FILE.py:FUNCTION", help="your own training code for passes that train"
    )
    parser.add_argument("--seed", type=int, help="of the split of data and of the search (default 0)")
    add_fixed(parser)
    add_data_options(parser)
    add_threads(parser, "threads of each process (default: the cores, divided among --jobs)")
    add_output_options(parser, "the search's record")


def _asked(options: argparse.Namespace) -> dict[str, Any]:
    from onnx_lathe.optimizer.fixed_inputs import parse_fixed
    from onnx_lathe.optimizer.recipe import parse_calls

    return {
        "gates": None if options.gate is None else tuple(options.gate),
        "targets": None if options.target is None else parse_calls(options.target, "--target"),
        "retrain": options.retrain,
        "seed": options.seed,
        "fix_inputs": parse_fixed(options.fix_input),
        **data_options(options),
    }


def _search(
    options: argparse.Namespace, recipe: "Recipe", minimize: str, entries: Sequence[str], command: list[str]
) -> int:
    from onnx_lathe.optimizer.report.searching import show_search
    from onnx_lathe.optimizer.search.clock import parse_budget
    from onnx_lathe.optimizer.search.request import SearchRequest
    from onnx_lathe.optimizer.search.search import search as run_search

    request = SearchRequest(
        options.model,
        recipe,
        options.out,
        minimize,
        entries,
        parse_budget(options.budget),
        options.storage,
        options.jobs,
        options.subset,
        options.validation,
        options.margin,
        options.resume,
        options.force,
        options.threads or 0,
        options.trials,
        command=command,
    )
    # a hook's or a loader's print must not get into the report
    with contextlib.redirect_stdout(sys.stderr):
        record = run_search(request, Ui(quiet=options.quiet))
    if options.json:
        print_json(record.as_json())
    else:
        show_search(record, Printer(highlight=False, emoji=False, soft_wrap=True))
    return record.exit_code
