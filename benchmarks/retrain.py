"""Retraining: the bridge's speed, and what accuracy it brings back; floors are printed beside each figure.

    python benchmarks/retrain.py [step prune unlabelled strom dsd] [--data-dir DIR] [--out DIR]

step        one training step of ResNet-20, the bridge against the same network written by hand in PyTorch, in turn in one process
prune       ResNet-20, 80 % zeros of all weights in 15 epochs; then 16 shared values per layer, trained for 4 epochs
unlabelled  LeNet-5, 95 % zeros, retrained on images without labels
strom       LeNet-5, 90 % zeros, retrained by two workers that send each other whole gradients, or signs beyond a threshold
dsd         ResNet-20, dense-sparse-dense by its recipe, three seeds

Trained on the complete training sets; errors are of the 10,000 test images, which chose no setting.
"""

import argparse
import statistics
import time
from collections.abc import Callable

import numpy as np
import onnx
import torch
import torch.nn.functional as F
from sets import ROOT, data_file, optimize, parser_of, percent, points_lost, run_sections, seeded
from torch import nn

from onnx_lathe.optimizer.recipe import load_recipe
from onnx_lathe.runtime.torch_bridge import GraphModule

RESNET = ROOT / "models" / "resnet20-cifar10"
LENET = ROOT / "models" / "lenet5-mnist" / "model.onnx"
CIFAR = "batch: 128, shift: 4, flip: true, precision: bfloat16, clip: 0.0"
STEPS, BATCH = 40, 128


def main() -> None:
    sections = {"step": step, "prune": prune, "unlabelled": unlabelled, "strom": strom, "dsd": dsd}
    parser = parser_of(__doc__, sections, "retrain")
    run_sections(parser, sections)


def step(options: argparse.Namespace) -> None:
    """Both eager, float32, channels last, SGD with momentum."""
    graph = onnx.load(RESNET / "model.onnx")
    written, bridge = _by_hand(graph).to(memory_format=torch.channels_last), GraphModule(graph)
    for parameter in bridge.parameters():
        if parameter.dim() == 4:
            parameter.data = parameter.data.to(memory_format=torch.channels_last)
    images = torch.randn(BATCH, 3, 32, 32).to(memory_format=torch.channels_last)
    labels = torch.randint(10, (BATCH,))
    largest = (written(images) - bridge(images)).abs().max().item()
    runs = [_stepper(network, images, labels) for network in (written, bridge)]
    times: list[list[float]] = [[], []]
    for number in range(STEPS + 3):
        for run, taken in zip(runs, times, strict=True):
            started = time.perf_counter()
            run()
            if number >= 3:
                taken.append(time.perf_counter() - started)
    ratio = statistics.median(b / a for a, b in zip(*times, strict=True))
    by_hand, ours = (1000 * statistics.median(taken) for taken in times)
    print("| ResNet-20, batch 128 | by hand | bridge | ratio | floor | largest difference of the outputs |")
    print("|---|---|---|---|---|---|")
    print(
        f"| one training step | {by_hand:.0f} ms | {ours:.0f} ms | {ratio:.2f} | at most 1.15 | {largest:.1e} |",
        flush=True,
    )


def _stepper(network: nn.Module, images: torch.Tensor, labels: torch.Tensor) -> Callable[[], None]:
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-3, momentum=0.9)

    def run() -> None:
        loss = F.cross_entropy(network(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return run


class Block(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.conv2 = (
            nn.Conv2d(inputs, outputs, 3, stride, 1),
            nn.Conv2d(outputs, outputs, 3, 1, 1),
        )
        self.shortcut = nn.Identity() if inputs == outputs else nn.Conv2d(inputs, outputs, 1, stride)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.conv2(torch.relu(self.conv1(x))) + self.shortcut(x))


def _by_hand(graph: onnx.ModelProto) -> nn.Module:
    """ResNet-20 with the exported weights, batch normalization folded as there."""
    sizes = [(16, 16, 1)] * 3 + [(16, 32, 2)] + [(32, 32, 1)] * 2 + [(32, 64, 2)] + [(64, 64, 1)] * 2
    blocks = [Block(*size) for size in sizes]
    network = nn.Sequential(
        nn.Conv2d(3, 16, 3, 1, 1),
        nn.ReLU(),
        *blocks,
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(64, 10),
    )
    arrays = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.graph.initializer}
    stored = [node for node in graph.graph.node if node.op_type in ("Conv", "Gemm")]
    parts = ("conv1", "conv2", "shortcut")
    by_name = {
        f"{index}.{part}": getattr(block, part) for index, block in enumerate(blocks, 3) for part in parts
    }
    first, last = network[0], network[-1]
    for node in stored:
        name = node.input[1].removesuffix(".weight").removesuffix(".0")
        layer = first if node is stored[0] else last if node.op_type == "Gemm" else by_name[name]
        layer.weight.data = torch.from_numpy(np.array(arrays[node.input[1]]))
        layer.bias.data = torch.from_numpy(np.array(arrays[node.input[2]]))
    return network


def prune(options: argparse.Namespace) -> None:
    data = data_file("cifar10", options.out, options.data_dir)
    passes = "fold, prune(sparsity=0.8, scope=global, score=lamp, rounds=200, until=0.5, regrow=false, "
    passes += f"training={{epochs: 15, rate: 0.001, {CIFAR}}}), "
    passes += f"codebook(bits=4, training={{epochs: 4, rate: 0.0005, {CIFAR}}})"
    record = optimize(RESNET / "model.onnx", passes, data, options.out / "prune")
    before, (_, pruned, shared) = record["baseline"], [entry["quality"] for entry in record["steps"]]
    print("| ResNet-20 | top-1 | points lost | floor |")
    print("|---|---|---|---|")
    print(f"| original | {percent(before)} | | |")
    print(f"| 80 % zeros, 15 epochs | {percent(pruned)} | {points_lost(before, pruned):.2f} | at most 0.50 |")
    print(
        f"| then 16 shared values per layer, 4 epochs | {percent(shared)} | {points_lost(pruned, shared):.2f} more | at most 0.50 more |",
        flush=True,
    )


def unlabelled(options: argparse.Namespace) -> None:
    data = data_file("mnist", options.out, options.data_dir, labelled=False)
    record = optimize(
        LENET,
        "fold, prune(sparsity=0.95, scope=global, score=lamp), retrain(epochs=3, batch=128)",
        data,
        options.out / "unlabelled",
    )
    before, (_, pruned, after) = record["baseline"], [entry["quality"] for entry in record["steps"]]
    print("| LeNet-5, 95 % zeros | original | pruned | retrained without labels | points lost | floor |")
    print("|---|---|---|---|---|---|")
    row = " | ".join(map(percent, (before, pruned, after)))
    print(f"| top-1 | {row} | {points_lost(before, after):.2f} | at most 0.30 |", flush=True)


def strom(options: argparse.Namespace) -> None:
    data = data_file("mnist", options.out, options.data_dir)
    print(
        "| LeNet-5, 90 % zeros, two workers | bytes per step | ratio | top-1 | points below whole gradients | floor |"
    )
    print("|---|---|---|---|---|---|")
    whole = None
    for gradients in ("full", "threshold"):
        exchange = f"gradients={gradients}, gradient_threshold=0.03"
        passes = f"fold, prune(sparsity=0.9, scope=global, score=lamp), retrain(epochs=3, batch=64, optimizer=sgd, {exchange})"
        record = optimize(
            LENET, passes, data, options.out / f"strom-{gradients}", "--launch", "--nproc-per-node=2"
        )
        last = record["steps"][-1]
        quality, measured = last["quality"], last["metrics"]
        whole = whole or quality
        floor = "at least 100 times fewer, at most 0.20 points" if gradients == "threshold" else ""
        print(
            f"| {gradients} | {measured['bytes_per_step']:,.0f} | {measured['gradient_ratio']:.0f} | {percent(quality)} "
            f"| {points_lost(whole, quality):.2f} | {floor} |",
            flush=True,
        )


def dsd(options: argparse.Namespace) -> None:
    data = data_file("cifar10", options.out, options.data_dir)
    print("| ResNet-20, dense-sparse-dense | dense | sparse | dense again |")
    print("|---|---|---|---|")
    recipe, ends = load_recipe(RESNET / "dsd.toml"), []
    for seed in range(3):
        record = optimize(RESNET / "model.onnx", seeded(recipe, seed), data, options.out / f"dsd-{seed}")
        before, sparse, after = (
            record["baseline"],
            record["steps"][-2]["quality"],
            record["steps"][-1]["quality"],
        )
        ends.append(100 * after["top1"])
        print(f"| seed {seed} | {percent(before)} | {percent(sparse)} | {percent(after)} |", flush=True)
    print(
        f"| mean | {percent(before)} | | {statistics.mean(ends):.2f} %, floor: at least the first |",
        flush=True,
    )


if __name__ == "__main__":
    main()
