"""Fewer multiply-accumulates (MACs): what svd, tensor_train and prune(pattern=channels) keep of the accuracy; floors beside each figure.

    python benchmarks/smaller_layers.py [split vgg channels train full] [--held-out] [--data-dir DIR] [--out DIR]

split     VGG-style network at half the MACs without retraining: plain SVD of the weights against the layers' responses
vgg       VGG-style network at half and at a third of the MACs, 5 epochs of retraining; latency in ONNX Runtime
channels  ResNet-20 at half the MACs by removing channels, 15 epochs of retraining
train     tensor train in the first layer of LeNet-300-100
full      splitting at full rank, which should change nothing, on every model here

The VGG-style network is trained first, unless it is in --out. --held-out judges it by training images that were kept out of all training
in place of the test set: settings were chosen so.
"""

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np
from sets import ROOT, SCALES, data_file, optimize
from vgg_cifar10 import HELD_OUT, trained

from runtime import ort, preprocess

RESNET = ROOT / "models" / "resnet20-cifar10" / "model.onnx"
LENET300 = ROOT / "models" / "lenet300-mnist" / "model.onnx"
LENET5 = ROOT / "models" / "lenet5-mnist" / "model.onnx"
CIFAR = "batch=128, shift=4, flip=true, precision=bfloat16"
TWICE = f"svd(macs=0.5, multiple=4), retrain(epochs=5, rate=0.0007, distill=1.0, {CIFAR})"
THRICE = f"svd(macs=0.3333), retrain(epochs=5, rate=0.001, {CIFAR})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    sections = {"split": split, "vgg": vgg, "channels": channels, "train": train, "full": full}
    parser.add_argument("sections", nargs="*", default=list(sections), choices=[[], *sections], metavar="SECTION")
    parser.add_argument("--data-dir", help="directory with the data sets' files (default: download the public originals)")
    parser.add_argument("--held-out", action="store_true", help="judge the VGG-style network by held-out training images")
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "smaller_layers", help="folder for data, network and results")
    options = parser.parse_args()
    for name in options.sections:
        started = time.perf_counter()
        sections[name](options)
        print(f"{name}: {time.perf_counter() - started:.0f} s\n", flush=True)


def on_vgg(options: argparse.Namespace, passes: str, name: str) -> dict[str, Any]:
    """Trained on 45,000 images; judged by the test set, or by the 5,000 that are held out."""
    network = trained(options.out, options.data_dir)
    data = data_file("cifar10", options.out, options.data_dir, HELD_OUT)
    judge = data if options.held_out else data_file("cifar10", options.out, options.data_dir)
    return optimize(network, passes, data, options.out / name, judge=judge)


def split(options: argparse.Namespace) -> None:
    settings = {
        "weight": "method=weight",
        "response, symmetric": "asymmetric=false",
        "response, asymmetric": "asymmetric=true",
    }
    print("| VGG-style, half the MACs, not retrained | MACs left | top-1 | points lost |")
    print("|---|---|---|---|")
    for name, setting in settings.items():
        record = on_vgg(options, f"fold, svd(macs=0.5, {setting})", f"split-{len(name)}")
        before, after = record["baseline"], record["steps"][-1]["quality"]
        print(f"| {name} | {_ratio(before, after, 'macs'):.3f} | {_percent(after)} | {_lost(before, after):.2f} |", flush=True)


def vgg(options: argparse.Namespace) -> None:
    print("| VGG-style | fewer MACs | top-1 before | split or pruned | retrained | points lost | floor | times faster | floor |")
    print("|---|---|---|---|---|---|---|---|---|")
    for name, passes, most, faster in (("half", TWICE, 0.5, 1.5), ("third", THRICE, 1.5, 2.0)):
        record = on_vgg(options, f"fold, {passes}", name)
        before, changed, after = record["baseline"], record["steps"][-2]["quality"], record["steps"][-1]["quality"]
        shrunk = passes.partition(", retrain")[0]
        gain = speedup(options.out / "vgg.onnx", options.out / name / "model.onnx")
        print(
            f"| `{shrunk}` | {1 / _ratio(before, after, 'macs'):.2f} | {_percent(before)} | {_percent(changed)} | {_percent(after)} "
            f"| {_lost(before, after):.2f} | at most {most} | {gain} | at least {faster} |",
            flush=True,
        )


def speedup(base: Path, candidate: Path) -> str:
    """Median ratio of latencies in ONNX Runtime, one thread, in turn; for one image and for 16."""
    sessions = [ort.session(path, threads=1) for path in (base, candidate)]
    found = []
    for batch in (1, 16):
        slow, fast = ort.latency_pair(sessions[0], sessions[1], ort.random_feeds(sessions[0], batch), budget_s=10.0, most=1000)
        found.append(f"{slow / fast:.2f} (batch {batch})")
    return ", ".join(found)


def channels(options: argparse.Namespace) -> None:
    data = data_file("cifar10", options.out, options.data_dir)
    passes = f"fold, prune(pattern=channels, importance=activation, macs=0.5), retrain(epochs=15, rate=0.001, {CIFAR})"
    record = optimize(RESNET, passes, data, options.out / "channels")
    before, pruned, after = record["baseline"], record["steps"][-2]["quality"], record["steps"][-1]["quality"]
    print("| ResNet-20, whole channels | MACs left | top-1 before | pruned | retrained | points lost | floor |")
    print("|---|---|---|---|---|---|---|")
    row = " | ".join(map(_percent, (before, pruned, after)))
    print(f"| | {_ratio(before, after, 'macs'):.3f} | {row} | {_lost(before, after):.2f} | at most 1.50 |", flush=True)


def train(options: argparse.Namespace) -> None:
    """784 x 300 as a TT-matrix; the report's parameters are the cores', the bias is not among them."""
    data = data_file("mnist", options.out, options.data_dir)
    passes = "fold, tensor_train(layers={'*': 0, node_linear: 9}, factors={node_linear: '28x28:20x15'}), "
    passes += "retrain(epochs=20, rate=0.003, batch=128, shift=1)"
    record = optimize(LENET300, passes, data, options.out / "train")
    before, split_up, after = record["baseline"], record["steps"][-2], record["steps"][-1]["quality"]
    print("| LeNet-300-100, first layer | top-1 before | as a train | retrained | points lost | floor |")
    print("|---|---|---|---|---|---|")
    row = " | ".join(map(_percent, (before, split_up["quality"], after)))
    print(f"| {split_up['edits'][0]['what']} | {row} | {_lost(before, after):.2f} | at most 0.30 |", flush=True)


def full(options: argparse.Namespace) -> None:
    print("| full rank | layers split | largest change of an output, relative to the largest output | floor |")
    print("|---|---|---|---|")
    networks = {LENET5: "mnist", LENET300: "mnist", RESNET: "cifar10", trained(options.out, options.data_dir): "cifar10"}
    for path, name in networks.items():
        data = data_file(name, options.out, options.data_dir)
        folder = options.out / f"full-{path.parent.name}"
        record = optimize(path, "svd(rank=100000, always=true)", data, folder)
        with np.load(data) as arrays:
            images = arrays["eval/image"][:500]
        scaling = preprocess.parse(SCALES[name])
        feeds = {"image": ((images - np.reshape(scaling.mean, (-1, 1, 1))) / np.reshape(scaling.std, (-1, 1, 1))).astype(np.float32)}
        before, after = (ort.run(ort.session(file), feeds)["logits"] for file in (path, folder / "model.onnx"))
        change = np.abs(before - after).max() / np.abs(before).max()
        print(f"| {path.parent.name} | {len(record['steps'][-1]['edits'])} | {change:.1e} | below 1e-4 |", flush=True)


def _ratio(before: dict[str, float], after: dict[str, float], key: str) -> float:
    return after[key] / before[key]


def _percent(quality: dict[str, float]) -> str:
    return f"{100 * quality['top1']:.2f} %"


def _lost(before: dict[str, float], after: dict[str, float]) -> float:
    return 100 * (before["top1"] - after["top1"])


if __name__ == "__main__":
    main()
