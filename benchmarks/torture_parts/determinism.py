"""The same command again, with other threads and another order of hashes: every file bit for bit, but for named exceptions.

What passes: every model, checkpoint and artifact of the first run again; an exception that is documented (docs/determinism.md)
passes as such, and fails where it is none any more.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from torture_parts import Outcome, Request, failed, passed

ROOT = Path(__file__).parents[2]
LENET5, LENET300 = (str(ROOT / "models" / name / "model.onnx") for name in ("lenet5-mnist", "lenet300-mnist"))
RESNET20 = str(ROOT / "models" / "resnet20-cifar10" / "model.onnx")
LIMIT_S = 900.0
"""Of one command."""
WAYS = {
    "again": (1, {"PYTHONHASHSEED": "1"}),
    "two threads": (2, {"PYTHONHASHSEED": "2", "OMP_NUM_THREADS": "2"}),
}
"""What is different: --threads, and the environment. The first run has one thread and hash seed 0."""
WITHOUT_DATA = {
    "fold": "fold",
    "prune": "fold, prune(sparsity=0.8)",
    "prune-global": "fold, prune(sparsity=0.8, scope=global, score=lamp)",
    "prune-nm": "fold, prune_nm",
    "codebook": "fold, codebook(bits=4)",
    "codebook-small": "fold, codebook(bits=3, tradeoff=0.02), codebook(biases=3, mantissa=5)",
    "svd-weight": "fold, svd(method=weight, macs=0.6)",
    "tensor-train": "fold, tensor_train",
    "tucker": "fold, tucker(energy=0.9, multiple=1)",
    "int4": "fold, int4",
    "float16": "fold, float16",
    "equalize": "fold, equalize(min_scale=1)",
    "int8-weights": "fold, int8(activations=false)",
    "prune-channels": "fold, prune_channels(sparsity=0.3)",
    "winograd": "fold, winograd",
}
WITH_DATA = {
    "int8": "fold, int8",
    "int8-entropy": "fold, int8(method=entropy)",
    "int8-adaptive": "fold, int8(rounding=adaptive)",
    "int8-hessian": "fold, int8(rounding=hessian)",
    "int8-blocks": "fold, int8(rounding=blocks, block_steps=40)",
    "int4-hessian": "fold, int4(rounding=hessian)",
    "obs": "fold, prune(score=obs, sparsity=0.6, scope=global)",
    "nm-obs": "fold, prune_nm(score=obs)",
    "channels-obs": "fold, prune_channels(importance=obs, sparsity=0.3)",
    "codebook-hessian": "fold, codebook(bits=4, rounding=hessian, sequential=true)",
    "svd": "fold, svd(rank=auto, macs=0.6)",
    "tucker-data": "fold, tucker(macs=0.6, multiple=1)",
    "equalize-activations": "fold, equalize(activations=true, min_scale=1, absorb=true)",
    "refit": "fold, prune(sparsity=0.7), codebook(bits=3), refit",
    "float16-ranges": "fold, float16(ranges=data)",
}
TRAINED = {
    "channels-taylor": "fold, prune_channels(importance=taylor, sparsity=0.3)",
    "retrain": "fold, prune(sparsity=0.8), retrain(epochs=2, batch=50)",
    "retrain-sgd": "fold, retrain(epochs=2, batch=50, optimizer=sgd, shift=2, flip=true)",
    "retrain-bfloat16": "fold, retrain(epochs=2, batch=50, precision=bfloat16)",
    "retrain-int8": "fold, int8, retrain(epochs=2, batch=50, learn_scales=true)",
    "gradual": "fold, prune(sparsity=0.9, training={epochs: 2, batch: 50}, rounds=5)",
    "clustered": "fold, codebook(bits=3, training={epochs: 2, batch: 50}, every=2)",
}
RECIPES = ("no-data", "no-training-data", "jetson-int8", "deep-compression", "dsd", "phone", "small-download")
TARGETS = ("onnx", "ort", "pack", "ncnn", "litert", "coreml", "jetson")
GRADIENTS = "sums of gradients in PyTorch"
CHOICE = "which of two weights, nearly alike, goes first"
PRODUCTS = "sums of float64 in OpenBLAS"
EXCEPTIONS: Mapping[tuple[str, str], str] = {
    (name, "two threads"): why
    for name, why in {
        "nm-obs": CHOICE,
        "codebook-hessian": PRODUCTS,
        "retrain": GRADIENTS,
        "retrain-sgd": GRADIENTS,
        "retrain-bfloat16": GRADIENTS,
        "retrain-int8": GRADIENTS,
        "gradual": GRADIENTS,
        "clustered": GRADIENTS,
        "recipe-phone": GRADIENTS,
        "recipe-deep-compression": GRADIENTS,
        "recipe-dsd": GRADIENTS,
    }.items()
}
"""Case and way -> what differs, as docs/determinism.md has it."""


def cases(folder: Path) -> dict[str, list[str]]:
    """The arguments of every case by name; its data goes into the folder."""
    data = _data(folder)
    model = ["--preprocess", "scale=1/255"]
    found = {name: [LENET5, "--passes", passes] for name, passes in WITHOUT_DATA.items()}
    found |= {
        name: [LENET5, "--passes", passes, "--calibration", f"{data}:train", *model]
        for name, passes in WITH_DATA.items()
    }
    training = ["--train", f"{data}:train", "--eval", f"{data}:test", *model]
    found |= {name: [LENET5, "--passes", passes, *training] for name, passes in TRAINED.items()}
    found |= {f"recipe-{name}": [LENET300, "--recipe", name, *training] for name in RECIPES}
    for target in TARGETS:
        arguments = [LENET5, "--passes", "fold, prune(sparsity=0.8), codebook(bits=4), int8", *training]
        found[f"target-{target}"] = [*arguments, "--target", target]
    found["resnet20"] = [RESNET20, "--passes", "fold, prune(sparsity=0.5), codebook, int8(activations=false)"]
    return found


CASES = len(WITHOUT_DATA) + len(WITH_DATA) + len(TRAINED) + len(RECIPES) + len(TARGETS) + 1
LIMITS = (
    "The first run has one thread; the second another PYTHONHASHSEED, the third two threads and a third one."
)


def _data(folder: Path) -> Path:
    path = folder / "data.npz"
    with np.load(ROOT / "models" / "mnist.npz") as arrays:
        keys = ("image", "labels")
        parts = {f"{part}/{key}": arrays[f"{part}/{key}"][:300] for part in ("train", "test") for key in keys}
    np.savez(path, **parts)
    return path


def run(request: Request) -> Iterator[Outcome]:
    every = cases(request.folder)
    names = [name for number, name in enumerate(every) if number in request.numbers]
    wanted = {name: every[name] for name in names}
    folders = {way: request.folder / way.replace(" ", "-") for way in ("first", *WAYS)}
    ways = {"first": (1, {"PYTHONHASHSEED": "0"}), **WAYS}
    running = {way: written(wanted, folders[way], *ways[way]) for way in ways}
    for name in names:
        found = {way: next(each) for way, each in running.items()}
        yield judged(name, found)


def written(
    wanted: Mapping[str, list[str]], folder: Path, threads: int, extra: Mapping[str, str]
) -> Iterator[tuple[int, dict[str, str], str]]:
    """Of each command in turn: exit code, files with their hashes, and last words."""
    given = os.environ | {"OMP_NUM_THREADS": "1"} | extra
    process = subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("_alike.py")), str(folder), str(threads)],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, env=given, text=True,
    )  # fmt: skip
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdin.write(json.dumps(wanted))
        process.stdin.close()
        for name in wanted:
            line = process.stdout.readline()
            assert line, f"{name}: the process that runs it ended"
            said = json.loads(line)
            assert said[0] == name
            yield said[1], said[2], said[3]
    finally:
        process.kill()
        process.wait()


def judged(name: str, found: Mapping[str, tuple[int, dict[str, str], str]]) -> Outcome:
    """Whether all ways have written the same."""
    code, first, said = found["first"]
    if code not in (0, 3) or not first:
        return failed(name, f"exit code {code}: {said}")
    excepted = []
    for way in WAYS:
        other = found[way][1]
        differing = sorted(file for file in first.keys() | other.keys() if first.get(file) != other.get(file))
        expected = EXCEPTIONS.get((name, way))
        if differing and expected is None:
            return failed(name, f"{way}: {', '.join(differing)} differ")
        if expected and not differing:
            return failed(name, f"{way}: is documented as an exception ({expected}), and is the same")
        excepted += [f"{way}: {expected}"] if expected else []
    return passed(name, "; ".join(excepted) or "the same bits")
