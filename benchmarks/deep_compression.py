"""The smallest file for a given accuracy: each network's `smallest.toml`, by several seeds, packed, against
the original ONNX file.

    python benchmarks/deep_compression.py [lenet300-mnist lenet5-mnist resnet20-cifar10] [--seeds 0,1,2] [--data-dir DIR]

Trains on the whole training set and reports the 10,000 test images. Settings were chosen with `--holdout
6000 --model MODEL`: the last 6,000 training images judge, the test set is not read, and MODEL is an
original that has not seen them either (`train.py --holdout 6000`).
"""

import argparse
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from sets import ROOT, data_file, optimize, seeded

from onnx_lathe.optimizer.recipe import Recipe, load_recipe

FLOORS = {
    "lenet300-mnist": "at least 110x, error at most 1.60 %",
    "lenet5-mnist": "at least 200x, error at most 0.80 %",
    "resnet20-cifar10": "at least 20x, error at most 0.50 points more",
}


@dataclass(frozen=True)
class Result:
    """Of one seed: bytes of the original .onnx and of the packed file, errors in percent, and seconds of
    the whole command.
    """

    original_bytes: int
    packed_bytes: int
    original_error: float
    error: float
    seconds: float

    @property
    def ratio(self) -> float:
        return self.original_bytes / self.packed_bytes


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "networks",
        nargs="*",
        default=list(FLOORS),
        choices=[[], *FLOORS],
        metavar="NETWORK",
        help=", ".join(FLOORS),
    )
    parser.add_argument("--seeds", default="0,1,2", type=lambda text: [int(seed) for seed in text.split(",")])
    parser.add_argument(
        "--data-dir", help="directory with the data sets' files (default: download the public originals)"
    )
    parser.add_argument(
        "--holdout",
        type=int,
        default=0,
        help="judge on the last N training images, which are then not trained on",
    )
    parser.add_argument("--model", type=Path, help="another original (default: the network's model.onnx)")
    parser.add_argument("--recipe", type=Path, help="another recipe (default: the network's smallest.toml)")
    parser.add_argument(
        "--out", type=Path, default=ROOT / "build" / "deep_compression", help="folder for data and results"
    )
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    rows = []
    for network in options.networks:
        data = data_file(network.split("-")[1], options.out, options.data_dir, options.holdout)
        recipe = load_recipe(options.recipe or ROOT / "models" / network / "smallest.toml")
        model = options.model or ROOT / "models" / network / "model.onnx"
        results = [
            _run(model, recipe, data, seed, options.out / f"{network}-{seed}") for seed in options.seeds
        ]
        rows.append(_row(network, results))
    print(
        "| network | original | error | packed, mean | ratio, mean | error, mean | best seed | longest run | floor |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    print("\n".join(rows))


def _run(model: Path, recipe: Recipe, data: Path, seed: int, out: Path) -> Result:
    """One `optimize` command; every step that takes a seed gets this one."""
    started = time.perf_counter()
    record = optimize(model, seeded(recipe, seed), data, out, "--target", "onnx,pack", gates=recipe.gates)
    last = out / record["steps"][-1]["file"]
    packed = out / "packed.lathe"
    subprocess.run(
        [sys.executable, "-m", "onnx_lathe", "pack", str(last), "-o", str(packed)], cwd=ROOT, check=True
    )
    first, final = record["baseline"], record["steps"][-1]["quality"]
    result = Result(
        model.stat().st_size,
        packed.stat().st_size,
        100 - 100 * first["top1"],
        100 - 100 * final["top1"],
        time.perf_counter() - started,
    )
    print(
        f"{out.name}: {result.packed_bytes:,} bytes, {result.ratio:.0f}x, error {result.error:.2f} %, {result.seconds:.0f} s",
        flush=True,
    )
    return result


def _row(network: str, results: list[Result]) -> str:
    first, best = results[0], max(results, key=lambda result: result.ratio)
    size, error = np.mean([(result.packed_bytes, result.error) for result in results], axis=0)
    return (
        f"| {network} | {first.original_bytes:,} | {first.original_error:.2f} % | {size:,.0f} | {first.original_bytes / size:.0f}x "
        f"| {error:.2f} % | {best.ratio:.0f}x at {best.error:.2f} % "
        f"| {max(result.seconds for result in results) / 60:.0f} min | {FLOORS[network]} |"
    )


if __name__ == "__main__":
    main()
