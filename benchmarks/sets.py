"""What benchmarks share: the data sets as files, and one `optimize` command run on them."""

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT), str(ROOT / "models")]
import datasets

from optimizer.recipe import Recipe

SCALES = {"mnist": "scale=1/255", "cifar10": "mean=125.3,123.0,113.9 std=63.0,62.1,66.7"}
GATE_FAILED = 3


def data_file(name: str, out: Path, directory: str | None = None, holdout: int = 0, labelled: bool = True) -> Path:
    """An .npz with parts `train` and `eval`, images uint8 [N, C, H, W], written once.

    With `holdout`, the last so many training images are `eval` in place of the test set; without `labelled`, `train` has no labels.
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
    steps = [
        replace(step, options={**step.options, "seed": seed}) if step.name == "retrain" or "epochs" in step.options else step
        for step in recipe.steps
    ]
    return ", ".join(map(str, steps))


def optimize(
    model: Path, passes: str, data: Path, out: Path, *more: str, gates: tuple[str, ...] = (), judge: Path | None = None
) -> dict[str, Any]:
    """The run record of one command on the parts of `data`; ends the benchmark if it fails, but not if a gate does.

    `judge`: the file whose part `eval` judges, if it is another one.
    """
    command = [sys.executable, "-m", "optimizer", str(model), "--passes", passes]
    command += ["--train", f"{data}:train", "--eval", f"{judge or data}:eval"]
    command += ["--preprocess", SCALES[data.stem.split("-")[0]], "--no-latency", "--json", "--out", str(out), *more]
    for gate in gates:
        command += ["--gate", gate]
    run = subprocess.run(command, cwd=ROOT, stdout=subprocess.PIPE, check=False)
    if run.returncode not in (0, GATE_FAILED):
        raise SystemExit(f"{out.name}: optimize ended with exit code {run.returncode}")
    record: dict[str, Any] = json.loads(run.stdout)
    return record


def _planes(images: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(images[:, None] if images.ndim == 3 else images.transpose(0, 3, 1, 2))
