"""What benchmarks share: their command line, the data sets as files, and one `optimize` command run on
them.
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "models")]
import datasets

from onnx_lathe.optimizer.recipe import Recipe
from onnx_lathe.runtime.data import preprocess

SCALES = {"mnist": "scale=1/255", "cifar10": "mean=125.3,123.0,113.9 std=63.0,62.1,66.7"}
GATE_FAILED = 3


Section = Callable[[argparse.Namespace], None]


def parser_of(description: str | None, sections: Mapping[str, Section], name: str) -> argparse.ArgumentParser:
    """A command line for a benchmark in sections, of which all are run if none is named. `name`: its folder
    in build/.
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("sections", nargs="*", choices=[[], *sections], metavar="SECTION")
    parser.add_argument(
        "--data-dir", help="directory with the data sets' files (default: download the public originals)"
    )
    parser.add_argument("--out", type=Path, default=ROOT / "build" / name, help="folder for data and results")
    return parser


def run_sections(parser: argparse.ArgumentParser, sections: Mapping[str, Section]) -> None:
    options = parser.parse_args()
    for name in options.sections or sections:
        started = time.perf_counter()
        sections[name](options)
        print(f"{name}: {time.perf_counter() - started:.0f} s\n", flush=True)


def percent(quality: Mapping[str, float]) -> str:
    return f"{100 * quality['top1']:.2f} %"


def points_lost(before: Mapping[str, float], after: Mapping[str, float]) -> float:
    return 100 * (before["top1"] - after["top1"])


def scaled(images: np.ndarray, name: str) -> np.ndarray:
    """uint8 [N, C, H, W] of a data set -> float32, as its networks take them."""
    scaling = preprocess.parse(SCALES[name])
    mean, std = (np.reshape(np.float32(values), (-1, 1, 1)) for values in (scaling.mean, scaling.std))
    result: np.ndarray = (images.astype(np.float32) - mean) / std
    return result


def data_file(
    name: str, out: Path, directory: str | None = None, holdout: int = 0, labelled: bool = True
) -> Path:
    """An .npz with parts `train` and `eval`, images uint8 [N, C, H, W], written once.

    With `holdout`, the last so many training images are `eval` in place of the test set; without
    `labelled`, `train` has no labels.
    """
    path = out / f"{name}-{holdout}{'' if labelled else '-unlabelled'}.npz"
    if path.exists():
        return path
    images, labels = datasets.load(name, "train", directory)
    if holdout:
        held, held_labels = images[-holdout:], labels[-holdout:]
        images, labels = images[:-holdout], labels[:-holdout]
    else:
        held, held_labels = datasets.load(name, "test", directory)
    arrays = {"train/image": _planes(images), "eval/image": _planes(held), "eval/labels": held_labels}
    out.mkdir(parents=True, exist_ok=True)
    np.savez(path, **arrays, **({"train/labels": labels} if labelled else {}))
    return path


def seeded(recipe: Recipe, seed: int) -> str:
    """Its passes, every one that trains with this seed."""
    steps = []
    for step in recipe.steps:
        options = dict(step.options)
        if step.name == "retrain":
            options["seed"] = seed
        elif "training" in options:
            options["training"] = {**options["training"], "seed": seed}
        steps.append(replace(step, options=options))
    return ", ".join(map(str, steps))


def optimize(
    model: Path,
    passes: str,
    data: Path,
    out: Path,
    *more: str,
    gates: tuple[str, ...] = (),
    judge: Path | None = None,
) -> dict[str, Any]:
    """The run record of one command on the parts of `data`; ends the benchmark if it fails, but not if a
    gate does.

    `judge`: the file whose part `eval` judges, if it is another one.
    """
    command = [sys.executable, "-m", "onnx_lathe", str(model), "--passes", passes]
    command += ["--train", f"{data}:train", "--eval", f"{judge or data}:eval"]
    command += [
        "--preprocess",
        SCALES[data.stem.split("-")[0]],
        "--no-latency",
        "--json",
        "--out",
        str(out),
        *more,
    ]
    for gate in gates:
        command += ["--gate", gate]
    run = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, check=False)
    if run.returncode not in (0, GATE_FAILED):
        raise SystemExit(f"{out.name}: optimize ended with exit code {run.returncode}")
    record: dict[str, Any] = json.loads(run.stdout)
    return record


def _planes(images: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(images[:, None] if images.ndim == 3 else images.transpose(0, 3, 1, 2))
