"""LeNet-5 and ResNet-20 retrained by two workers, by each way of sharing the training, against one process.

    python benchmarks/parallel_retrained.py [--models lenet5 resnet20] [--ways data=2 height=2 ...] [--seeds 0,1,2] [--data-dir DIR]

Channels go, a third of LeNet-5's and a twentieth of ResNet-20's, and the rest is retrained for two epochs on 4,000 images by
the command that users give; top-1 is over the whole test set of 10,000. All ways take the same steps: `batch` is 64 in all. Floor: the mean over the
seeds within 0.2 points of one process. Ends with 1 if it is missed.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "models")]

import datasets

FLOOR_POINTS = 0.2
BATCH, IMAGES = 64, 4000
MODELS = {
    "lenet5": ("lenet5-mnist", "mnist", "scale=1/255", "prune_channels(sparsity=0.33)", ""),
    "resnet20": (
        "resnet20-cifar10",
        "cifar10",
        "mean=125.3,123.0,113.9 std=63.0,62.1,66.7",
        "prune_channels(sparsity=0.05)",
        ", rate=0.0005",
    ),
}
"""(folder, data set, preprocessing, what is taken away, options of the training)."""
WAYS = ("data=2", "height=2", "width=2", "filter=2", "channel=2", "pipeline=2,micro=4", "auto")


def stored(name: str, folder: Path, directory: str | None, held_out: slice | None = None) -> Path:
    """A file of images as the network reads them; they are judged by the test set, or by these training images."""
    _, kind, *_ = MODELS[name]
    arrays: dict[str, Any] = {}
    for split, part in (("train", "train"), ("train" if held_out else "test", "eval")):
        images, labels = datasets.load(kind, split, directory)
        if split == "train":
            taken = slice(IMAGES) if part == "train" else held_out
            images, labels = images[taken], labels[taken]
        if kind == "mnist":
            images = images[:, None]
        arrays |= {f"{part}/image": images, f"{part}/labels": labels}
    np.savez(folder / f"{name}.npz", **arrays)
    return folder / f"{name}.npz"


def top1(name: str, data: Path, way: str, seed: int) -> tuple[float, float, float]:
    """In percent: of the original, without channels, and after the training by this way; "" is one process."""
    folder, _, preprocess, taken, more = MODELS[name]
    each = (
        BATCH // 2 if way in ("data=2", "auto") else BATCH
    )  # the batch of a worker there, of the group elsewhere
    passes = f"{taken}, retrain(epochs=2, batch={each}, seed={seed}{more})"
    with tempfile.TemporaryDirectory() as out:
        command = [
            sys.executable,
            "-m",
            "onnx_lathe",
            f"{ROOT}/models/{folder}/model.onnx",
            "--passes",
            passes,
        ]
        command += ["--train", f"{data}:train", "--eval", f"{data}:eval", "--preprocess", preprocess]
        command += ["--target", "onnx", "--json", "--quiet", "--out", out]
        if way:
            command += ["--launch", "--nproc-per-node=2", "--parallel", way]
        threads = {"OMP_NUM_THREADS": "1"}
        run = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, check=True, env=os.environ | threads)
    record = json.loads(run.stdout)
    found = [record["baseline"], *(step["quality"] for step in record["steps"])]
    before, pruned, after = (100 * float(quality["top1"]) for quality in found)
    return before, pruned, after


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--ways", nargs="+", default=list(WAYS))
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--data-dir")
    options = parser.parse_args()
    seeds = [int(seed) for seed in options.seeds.split(",")]
    missed = []
    print(
        f"| network | way | {' | '.join(f'seed {seed}' for seed in seeds)} | mean | points from one process |"
    )
    print("|---" * (4 + len(seeds)) + "|", flush=True)
    with tempfile.TemporaryDirectory() as scratch:
        for name in options.models:
            data = stored(name, Path(scratch), options.data_dir)
            alone = 0.0
            for way in ("", *options.ways):
                runs = [top1(name, data, way, seed) for seed in seeds]
                found = [after for *_, after in runs]
                if not way:
                    print(
                        f"| {name} | original; without channels | {runs[0][0]:.2f}; {runs[0][1]:.2f}"
                        + " |" * (2 + len(seeds))
                    )
                mean = statistics.mean(found)
                alone = alone if way else mean
                if abs(mean - alone) > FLOOR_POINTS:
                    missed.append(f"{name} by {way}")
                row = " | ".join(f"{one:.2f}" for one in found)
                print(
                    f"| {name} | {way or 'one process'} | {row} | {mean:.2f} | {mean - alone:+.2f} |",
                    flush=True,
                )
    print(f"\nfloor of {FLOOR_POINTS} points missed by: {', '.join(missed) or 'none'}")
    return bool(missed)


if __name__ == "__main__":
    sys.exit(main())
