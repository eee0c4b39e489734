"""Fewer multiply-accumulates (MACs): what svd, tensor_train and prune_channels keep of the
accuracy; floors beside each figure.

    python benchmarks/smaller_layers.py [split vgg channels tensor_train full] [--held-out] [--data-dir DIR] [--out DIR]

split         VGG-style network at half the MACs without retraining: plain SVD of the weights against the layers' responses
vgg           VGG-style network at half and at a third of the MACs, 5 epochs of retraining; latency in ONNX Runtime
channels      ResNet-20 at half the MACs by removing channels, 15 epochs of retraining
tensor_train  tensor train in the first layer of LeNet-300-100
full          splitting at full rank, which should change nothing, on every model here

The VGG-style network is trained first, unless it is in --out. --held-out judges it by training images that
were kept out of all training in place of the test set: settings were chosen so.
"""

import argparse
from pathlib import Path
from typing import Any

import numpy as np
from sets import ROOT, data_file, optimize, parser_of, percent, points_lost, run_sections, scaled
from vgg_cifar10 import HELD_OUT, trained

from onnx_lathe.runtime.running import ort

RESNET = ROOT / "models" / "resnet20-cifar10" / "model.onnx"
LENET300 = ROOT / "models" / "lenet300-mnist" / "model.onnx"
LENET5 = ROOT / "models" / "lenet5-mnist" / "model.onnx"
CIFAR = "batch=128, shift=4, flip=true, precision=bfloat16"
TWICE = f"svd(macs=0.5, multiple=4), retrain(epochs=5, rate=0.0007, distill=1.0, {CIFAR})"
THRICE = f"svd(macs=0.3333), retrain(epochs=5, rate=0.001, {CIFAR})"


def main() -> None:
    sections = {"split": split, "vgg": vgg, "channels": channels, "tensor_train": tensor_train, "full": full}
    parser = parser_of(__doc__, sections, "smaller_layers")
    parser.add_argument(
        "--held-out", action="store_true", help="judge the VGG-style network by held-out training images"
    )
    run_sections(parser, sections)


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
        print(
            f"| {name} | {_ratio(before, after, 'macs'):.3f} | {percent(after)} | {points_lost(before, after):.2f} |",
            flush=True,
        )


def vgg(options: argparse.Namespace) -> None:
    print(
        "| VGG-style | fewer MACs | top-1 before | split or pruned | retrained | points lost | floor | times faster | floor |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    for name, passes, most, faster in (("half", TWICE, 0.5, 1.5), ("third", THRICE, 1.5, 2.0)):
        record = on_vgg(options, f"fold, {passes}", name)
        before, changed, after = (
            record["baseline"],
            record["steps"][-2]["quality"],
            record["steps"][-1]["quality"],
        )
        shrunk = passes.partition(", retrain")[0]
        gain = speedup(options.out / "vgg.onnx", options.out / name / "model.onnx")
        print(
            f"| `{shrunk}` | {1 / _ratio(before, after, 'macs'):.2f} | {percent(before)} | {percent(changed)} | {percent(after)} "
            f"| {points_lost(before, after):.2f} | at most {most} | {gain} | at least {faster} |",
            flush=True,
        )


def speedup(base: Path, candidate: Path) -> str:
    """Median ratio of latencies in ONNX Runtime, one thread, in turn; for one image and for 16."""
    sessions = [ort.session(path, threads=1) for path in (base, candidate)]
    found = []
    for batch in (1, 16):
        slow, fast = ort.latency_pair(
            sessions[0], sessions[1], ort.random_feeds(sessions[0], batch), budget_s=10.0, most=1000
        )
        found.append(f"{slow / fast:.2f} (batch {batch})")
    return ", ".join(found)


def channels(options: argparse.Namespace) -> None:
    data = data_file("cifar10", options.out, options.data_dir)
    passes = f"fold, prune_channels(importance=activation, macs=0.5), retrain(epochs=15, rate=0.001, {CIFAR})"
    record = optimize(RESNET, passes, data, options.out / "channels")
    before, pruned, after = record["baseline"], record["steps"][-2]["quality"], record["steps"][-1]["quality"]
    print(
        "| ResNet-20, whole channels | MACs left | top-1 before | pruned | retrained | points lost | floor |"
    )
    print("|---|---|---|---|---|---|---|")
    row = " | ".join(map(percent, (before, pruned, after)))
    print(
        f"| | {_ratio(before, after, 'macs'):.3f} | {row} | {points_lost(before, after):.2f} | at most 1.50 |",
        flush=True,
    )


def tensor_train(options: argparse.Namespace) -> None:
    """784 x 300 as a TT-matrix; the report's parameters are the cores', the bias is not among them."""
    data = data_file("mnist", options.out, options.data_dir)
    passes = "fold, tensor_train(layers={'*': 0, node_linear: 9}, factors={node_linear: '28x28:20x15'}), "
    passes += "retrain(epochs=20, rate=0.003, batch=128, shift=1)"
    record = optimize(LENET300, passes, data, options.out / "tensor_train")
    before, split_up, after = record["baseline"], record["steps"][-2], record["steps"][-1]["quality"]
    print("| LeNet-300-100, first layer | top-1 before | as a train | retrained | points lost | floor |")
    print("|---|---|---|---|---|---|")
    row = " | ".join(map(percent, (before, split_up["quality"], after)))
    print(
        f"| {split_up['edits'][0]['what']} | {row} | {points_lost(before, after):.2f} | at most 0.30 |",
        flush=True,
    )


def full(options: argparse.Namespace) -> None:
    print(
        "| full rank | layers split | largest change of an output, relative to the largest output | floor |"
    )
    print("|---|---|---|---|")
    networks = {
        LENET5: "mnist",
        LENET300: "mnist",
        RESNET: "cifar10",
        trained(options.out, options.data_dir): "cifar10",
    }
    for path, name in networks.items():
        data = data_file(name, options.out, options.data_dir)
        title = "VGG-style" if path.stem == "vgg" else path.parent.name
        folder = options.out / f"full-{title}"
        record = optimize(path, "svd(rank=100000, always=true)", data, folder)
        with np.load(data) as arrays:
            images = arrays["eval/image"][:500]
        feeds = {"image": scaled(images, name)}
        before, after = (
            ort.run(ort.session(file), feeds)["logits"] for file in (path, folder / "model.onnx")
        )
        change = np.abs(before - after).max() / np.abs(before).max()
        print(f"| {title} | {len(record['steps'][-1]['edits'])} | {change:.1e} | below 1e-4 |", flush=True)


def _ratio(before: dict[str, float], after: dict[str, float], key: str) -> float:
    return after[key] / before[key]


if __name__ == "__main__":
    main()
