"""What a search per layer finds beyond the best uniform setting; floors beside each figure.

    python benchmarks/search.py [packed nearest vgg] [--budget 20m] [--jobs 2] [--data-dir DIR] [--out DIR]

packed   ResNet-20, no retraining: the smallest packed file that loses at most one point of top-1, by shared values that
         make up for what others change (rounding=hessian); uniform settings also by nearest values
nearest  the same search by nearest shared values, after pruning
vgg      VGG-style network, no retraining: the fastest in ONNX Runtime that loses at most one point of top-1; beside the
         best of one setting for all layers, and the best that svd(macs=) shares out over them by itself

Uniform settings are searched by a fine grid, by the same samples, the same gate and the same margin as the search:
5,000 training images choose (of the VGG-style network those that were kept out of its training), and the 10,000 test
images only give figures.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from sets import ROOT, SCALES, data_file, parser_of, points_lost, run_sections
from vgg_cifar10 import HELD_OUT, trained

from onnx_lathe.optimizer.recipe import Recipe, parse_calls
from onnx_lathe.optimizer.search.bench import Bench, Outcome
from onnx_lathe.optimizer.search.clock import Clock
from onnx_lathe.optimizer.search.request import SearchRequest, open_search
from onnx_lathe.optimizer.search.space import Space
from onnx_lathe.runtime.running import ort

RESNET = ROOT / "models" / "resnet20-cifar10" / "model.onnx"
GATE = "top1 drop <= 1%"
SPARSITIES = [round(0.05 * step, 2) for step in range(20)]
COUNTS = (4, 5, 6, 7, 8, 10, 12, 14, 16, 20, 24, 28, 32, 48, 64, 128)
MACS = [round(0.3 + 0.05 * step, 2) for step in range(14)]
ENERGIES = (0.8, 0.85, 0.9, 0.93, 0.95, 0.97, 0.98, 0.99)
RANKS = (8, 12, 16, 24, 32, 48, 64)
PRICED = (0.0, 0.006, 0.012, 0.02, 0.03, 0.045)
"""Tradeoffs of codebook, which make its code shorter; of the grid that has them, few others."""
ROUNDED = "mantissa=7, biases=8"
"""Options of codebook that are the same in all layers: shared values and biases as bfloat16."""
COMPENSATED = f"rounding=hessian, {ROUNDED}"
"""Shared values by what layers answer; its tradeoffs, which are of another error, and numbers of values."""
COMPENSATED_PRICES, COMPENSATED_COUNTS = (
    (0.0, 0.01, 0.02, 0.03, 0.04, 0.05, 0.065, 0.08, 0.1),
    (8, 12, 16, 24, 32),
)
FEWER_SPARSITIES, FEWER_COUNTS = (0.0, 0.1, 0.2, 0.3, 0.4), (12, 16, 20, 24, 32, 64)
SMALLER, FASTER = 0.25, 0.20
EPOCHS = 12
"""Of the VGG-style network: half of what it needs to learn all it can, and as good for choosing settings."""


def main() -> None:
    sections = {"packed": packed, "nearest": nearest, "vgg": vgg}
    parser = parser_of(__doc__, sections, "search")
    parser.add_argument("--budget", default="20m", help="of each search (default 20m)")
    parser.add_argument("--jobs", default="2", help="processes of each search (default 2)")
    run_sections(parser, sections)


def packed(options: argparse.Namespace) -> None:
    data = data_file("cifar10", options.out, options.data_dir)
    bench = bench_of(RESNET, "fold, prune, codebook", data, "packed")
    plain = [f"fold, prune(sparsity={s}), codebook(centroids={k})" for s in SPARSITIES for k in COUNTS]
    priced = [
        f"fold, prune(sparsity={s}), codebook(centroids={k}, tradeoff={t}, {ROUNDED})"
        for s in FEWER_SPARSITIES for k in FEWER_COUNTS for t in PRICED
    ]  # fmt: skip
    compensated = [
        f"fold, codebook(centroids={k}, tradeoff={t}, {COMPENSATED})"
        for k in COMPENSATED_COUNTS for t in COMPENSATED_PRICES
    ]  # fmt: skip
    rows = {}
    for grid in (plain, priced, compensated):
        uniform = best_uniform(bench, grid)
        folder = options.out / f"packed-uniform{len(rows)}"
        rows[f"`{uniform}`"] = final(RESNET, uniform, data, folder, "pack", gate="packed ratio >= 1")
    found = searched(RESNET, f"fold, codebook({COMPENSATED})", data, options, "packed", "packed-search")
    rows["search"] = rerun(
        RESNET, Path(found["recipe"]), options.out / "packed-again", gate="packed ratio >= 1"
    )
    print_packed(rows)
    told(found)


def nearest(options: argparse.Namespace) -> None:
    data = data_file("cifar10", options.out, options.data_dir)
    passes = f"fold, prune, codebook({ROUNDED})"
    found = searched(RESNET, passes, data, options, "packed", "nearest-search")
    again = rerun(RESNET, Path(found["recipe"]), options.out / "nearest-again", gate="packed ratio >= 1")
    print_packed({"search, nearest values": again})
    told(found)


def print_packed(rows: dict[str, dict[str, Any]]) -> None:
    print("| ResNet-20, at most 1 point | packed bytes | top-1 | points lost | bytes less | floor |")
    print("|---|---|---|---|---|---|")
    least = next(iter(rows.values()))["steps"][-1]["quality"]["packed"]
    for name, record in rows.items():
        before, after = record["baseline"], record["steps"][-1]["quality"]
        print(
            f"| {name} | {after['packed']:,.0f} | {100 * after['top1']:.2f} % | {points_lost(before, after):.2f} "
            f"| {100 * (1 - after['packed'] / least):.1f} % "
            f"| {f'at least {100 * SMALLER:.0f} %' if name == 'search' else ''} |",
            flush=True,
        )


def vgg(options: argparse.Namespace) -> None:
    network = trained(options.out, options.data_dir, EPOCHS)
    held = held_out(options)
    bench = bench_of(network, "fold, svd", held, "latency")
    grids = {
        "one setting": [f"fold, svd(energy={share})" for share in ENERGIES]
        + [f"fold, svd(rank={rank})" for rank in RANKS],
        "shared out by the pass": [f"fold, svd(macs={share:.3g})" for share in MACS],
    }
    records, folders, passes = list[dict[str, Any]](), list[Path](), list[str]()
    for number, grid in enumerate(grids.values()):
        passes.append(best_uniform(bench, grid))
        folders.append(options.out / f"vgg-uniform{number}")
        records.append(final(network, passes[-1], held, folders[-1], "onnx"))
    found = searched(network, "fold, svd", held, options, "latency", "vgg-search")
    folders.append(options.out / "vgg-again")
    records.append(rerun(network, Path(found["recipe"]), folders[-1]))
    names = [f"{kind}: `{one}`" for kind, one in zip(grids, passes, strict=True)]
    print_times([*names, "search"], records, times_of(folders))
    told(found)


def times_of(folders: list[Path]) -> np.ndarray:
    """Median milliseconds of the models, in turn, one image on one thread."""
    sessions = [ort.session(folder / "model.onnx", threads=1) for folder in folders]
    feeds = ort.random_feeds(sessions[0], 1)
    return np.asarray(np.median(ort.times(sessions, feeds, budget_s=20.0, most=4000), axis=0))


def print_times(names: list[str], records: list[dict[str, Any]], ms: np.ndarray) -> None:
    print(
        "| VGG-style, at most 1 point | top-1 | points lost | ms | the search is so many times as fast | floor |"
    )
    print("|---|---|---|---|---|---|")
    for name, record, own in zip(names, records, ms, strict=True):
        before, after = record["baseline"], record["steps"][-1]["quality"]
        gain = "" if name == "search" else f"{own / ms[-1]:.3f}"
        floor = f"at least {1 + FASTER:.2f}" if name.startswith("one setting") else ""
        print(
            f"| {name} | {100 * after['top1']:.2f} % | {points_lost(before, after):.2f} "
            f"| {own:.3f} | {gain} | {floor} |",
            flush=True,
        )


def held_out(options: argparse.Namespace) -> Path:
    """As data_file, but `train` is the 5,000 images that the network was not trained on, and `eval` the test set."""
    path = options.out / "cifar10-held.npz"
    if not path.exists():
        kept = np.load(data_file("cifar10", options.out, options.data_dir, HELD_OUT))
        whole = np.load(data_file("cifar10", options.out, options.data_dir))
        arrays = {"train/image": kept["eval/image"], "train/labels": kept["eval/labels"]}
        arrays |= {name: whole[name] for name in ("eval/image", "eval/labels")}
        np.savez(path, **arrays)
    return path


def recipe_of(passes: str, data: Path) -> Recipe:
    return Recipe(
        parse_calls(passes, "passes"),
        (GATE,),
        train=f"{data}:train",
        eval=f"{data}:eval",
        preprocess=SCALES["cifar10"],
    )


def bench_of(model: Path, passes: str, data: Path, minimize: str) -> Bench:
    """What the search itself measures with."""
    request = SearchRequest(model, recipe_of(passes, data), Path("unused"), minimize)
    return open_search(request, Clock(time.time() + 1e6), lambda text: None, 1).bench


def best_uniform(bench: Bench, grid: list[str]) -> str:
    """The passes of the smallest outcome that passes, as the search decides it: on all samples, exactly."""
    bench.best = float("inf")
    tried = sorted(outcomes(bench, grid), key=lambda item: item[1].ratio)
    for passes, outcome in tried:
        if outcome.passed and outcome.final and of(bench, passes).exact({})[1].passed:
            return passes
    raise SystemExit("no uniform setting passes")


def outcomes(bench: Bench, grid: list[str]) -> Iterator[tuple[str, Outcome]]:
    for number, passes in enumerate(grid, 1):
        outcome = of(bench, passes).try_out({})
        if outcome.passed and outcome.final:
            bench.best = min(bench.best, outcome.ratio)
        print(
            f"  {number} of {len(grid)}: {passes}: {outcome.ratio:.4f} {outcome.stopped or outcome.passed}",
            file=sys.stderr,
        )
        yield passes, outcome


def of(bench: Bench, passes: str) -> Bench:
    """The bench with nothing to choose in these passes."""
    steps = parse_calls(passes, "passes")
    return replace(bench, space=Space(steps, ()), composer=None, known={})


def command(*arguments: str) -> dict[str, Any]:
    """The JSON that `optimize` prints; ends the benchmark if it fails, but not if a gate does."""
    run = subprocess.run([sys.executable, "-m", "onnx_lathe", *arguments, "--json"], cwd=ROOT, stdout=subprocess.PIPE, check=False)  # fmt: skip
    if run.returncode not in (0, 3):
        raise SystemExit(f"optimize ended with exit code {run.returncode}")
    found: dict[str, Any] = json.loads(run.stdout)
    return found


def final(model: Path, passes: str, data: Path, out: Path, target: str, gate: str = "") -> dict[str, Any]:
    more = ["--gate", gate] if gate else []
    return command(
        str(model), "--passes", passes, "--train", f"{data}:train", "--eval", f"{data}:eval", "--preprocess", SCALES["cifar10"],
        "--target", target, "--no-latency", "--force", "--out", str(out), *more,
    )  # fmt: skip


def rerun(model: Path, recipe: Path, out: Path, gate: str = "") -> dict[str, Any]:
    """The recipe that the search wrote, by the command that it prints."""
    more = ["--gate", gate] if gate else []
    return command(str(model), "--recipe", str(recipe), "--no-latency", "--force", "--out", str(out), *more)


def searched(
    model: Path, passes: str, data: Path, options: argparse.Namespace, minimize: str, name: str
) -> dict[str, Any]:
    found = command(
        "search", str(model), "--passes", passes, "--minimize", minimize, "--gate", GATE, "--train", f"{data}:train",
        "--eval", f"{data}:eval", "--preprocess", SCALES["cifar10"], "--budget", options.budget, "--jobs", options.jobs,
        "--force", "--out", str(options.out / name),
    )  # fmt: skip
    if not found["recipe"]:
        raise SystemExit("the search found nothing that passes")
    return found


def told(found: dict[str, Any]) -> None:
    print(
        f"{len(found['trials'])} trials, {sum(bool(one['stopped']) for one in found['trials'])} stopped early, "
        f"{found['seconds']:.0f} s of {found['budget_s']:.0f} s\n"
    )


if __name__ == "__main__":
    main()
