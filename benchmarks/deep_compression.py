"""The smallest file for a given accuracy: each network's `smallest.toml`, by several seeds, packed, against the original ONNX file.

    python benchmarks/deep_compression.py [lenet300-mnist lenet5-mnist resnet20-cifar10] [--seeds 0,1,2] [--data-dir DIR]

Trains on the whole training set and reports the 10,000 test images. Settings were chosen with `--holdout 6000 --model MODEL`: the last
6,000 training images judge, the test set is not read, and MODEL is an original that has not seen them either (`train.py --holdout 6000`).
"""

import argparse
import json
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "models")]
import datasets

from optimizer.recipe import Recipe, load_recipe
from passes.registry import find

SCALES = {"mnist": "scale=1/255", "cifar10": "mean=125.3,123.0,113.9 std=63.0,62.1,66.7"}
FLOORS = {
    "lenet300-mnist": "at least 110x, error at most 1.60 %",
    "lenet5-mnist": "at least 200x, error at most 0.80 %",
    "resnet20-cifar10": "at least 20x, error at most 0.50 points more",
}
GATE_FAILED = 3


@dataclass(frozen=True)
class Result:
    """Of one seed: bytes of the original .onnx and of the packed file, errors in percent, and seconds of the whole command."""

    original_bytes: int
    packed_bytes: int
    original_error: float
    error: float
    seconds: float

    @property
    def ratio(self) -> float:
        return self.original_bytes / self.packed_bytes


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("networks", nargs="*", default=list(FLOORS), choices=[[], *FLOORS], metavar="NETWORK", help=", ".join(FLOORS))
    parser.add_argument("--seeds", default="0,1,2", type=lambda text: [int(seed) for seed in text.split(",")])
    parser.add_argument("--data-dir", help="directory with the data sets' files (default: download the public originals)")
    parser.add_argument("--holdout", type=int, default=0, help="judge on the last N training images, which are then not trained on")
    parser.add_argument("--model", type=Path, help="another original (default: the network's model.onnx)")
    parser.add_argument("--recipe", type=Path, help="another recipe (default: the network's smallest.toml)")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "deep_compression", help="folder for data and results")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    rows = []
    for network in options.networks:
        data = _data(network.split("-")[1], options)
        recipe = load_recipe(options.recipe or ROOT / "models" / network / "smallest.toml")
        model = options.model or ROOT / "models" / network / "model.onnx"
        results = [_run(model, recipe, data, seed, options.out / f"{network}-{seed}") for seed in options.seeds]
        rows.append(_row(network, results))
    print("| network | original | error | packed, mean | ratio, mean | error, mean | best seed | longest run | floor |")
    print("|---|---|---|---|---|---|---|---|---|")
    print("\n".join(rows))


def _data(name: str, options: argparse.Namespace) -> Path:
    """An .npz with parts `train` and `eval`, images uint8 [N, C, H, W], written once."""
    path = Path(options.out / f"{name}-{options.holdout}.npz")
    if path.exists():
        return path
    images, labels = datasets.load(name, "train", options.data_dir)
    if options.holdout:
        held, held_labels = images[-options.holdout :], labels[-options.holdout :]
        images, labels = images[: -options.holdout], labels[: -options.holdout]
    else:
        held, held_labels = datasets.load(name, "test", options.data_dir)
    arrays = {"train/image": _planes(images), "train/labels": labels, "eval/image": _planes(held), "eval/labels": held_labels}
    np.savez(path, **arrays)
    return path


def _planes(images: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(images[:, None] if images.ndim == 3 else images.transpose(0, 3, 1, 2))


def _run(model: Path, recipe: Recipe, data: Path, seed: int, out: Path) -> Result:
    """One `optimize` command; every step that takes a seed gets this one."""
    steps = [
        replace(step, options={**step.options, "seed": seed}) if hasattr(find(step.name).Config, "seed") else step for step in recipe.steps
    ]
    command = [sys.executable, "-m", "optimizer", str(model), "--passes", ", ".join(map(str, steps)), "--target", "onnx,pack"]
    command += ["--train", f"{data}:train", "--eval", f"{data}:eval", "--preprocess", SCALES[data.stem.split("-")[0]]]
    for gate in recipe.gates:
        command += ["--gate", gate]
    started = time.perf_counter()
    run = subprocess.run([*command, "--no-latency", "--json", "--out", str(out)], cwd=ROOT, stdout=subprocess.PIPE, check=False)
    if run.returncode not in (0, GATE_FAILED):
        raise SystemExit(f"{out.name}: optimize ended with exit code {run.returncode}")
    record = json.loads(run.stdout)
    last = out / record["steps"][-1]["file"]
    packed = out / "packed.lathe"
    subprocess.run([sys.executable, "-m", "optimizer", "pack", str(last), "-o", str(packed)], cwd=ROOT, check=True)
    first, final = record["baseline"], record["steps"][-1]["quality"]
    result = Result(
        model.stat().st_size, packed.stat().st_size, 100 - 100 * first["top1"], 100 - 100 * final["top1"], time.perf_counter() - started
    )
    print(f"{out.name}: {result.packed_bytes:,} bytes, {result.ratio:.0f}x, error {result.error:.2f} %, {result.seconds:.0f} s", flush=True)
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
