"""Activation checkpointing on ResNet-20 at batch 512: peak activation memory and time per step, without and
with a memory budget.

    python benchmarks/checkpointing.py [--steps 8] [--batch 512] [--share 0.5]

Floor: at least 2x less memory for at most 1.4x the time. Inputs are random. The steps of both trainings
alternate; the ratio of times is the median over the pairs.
"""

import argparse
import statistics
import time
from pathlib import Path

import onnx
import torch
import torch.nn.functional as F

from onnx_lathe.runtime.torch_bridge import GraphModule
from onnx_lathe.runtime.training.memory import budget

MODEL = Path(__file__).resolve().parents[1] / "models/resnet20-cifar10/model.onnx"
MIB = 2**20


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--batch", type=int, default=512)
    parser.add_argument(
        "--share", type=float, default=0.5, help="of the peak without a budget, as the budget"
    )
    options = parser.parse_args()
    torch.manual_seed(0)
    images = torch.randn(options.batch, 3, 32, 32).to(memory_format=torch.channels_last)
    labels = torch.randint(10, (options.batch,))
    model = onnx.load(MODEL)
    whole, fitted = _Training(model, images, labels), _Training(model, images, labels)
    before = budget.fit(whole.module, whole.loss, None)
    after = budget.fit(fitted.module, fitted.loss, round(options.share * before["activation_peak_bytes"]))
    times = [(whole.step(), fitted.step()) for _ in range(options.steps + 1)][1:]
    equal = all(map(torch.equal, whole.module.parameters(), fitted.module.parameters()))

    print("| training | peak of activations | computed again | time per step |")
    print("|---|---|---|---|")
    for name, metrics, seconds in zip(
        ("everything kept", "fitted"), (before, after), zip(*times, strict=True), strict=True
    ):
        size = f"{metrics['activation_peak_bytes'] / MIB:.0f} MiB"
        print(
            f"| {name} | {size} | {100 * metrics['recomputed']:.0f} % | {1e3 * statistics.median(seconds):.0f} ms |"
        )
    less = before["activation_peak_bytes"] / after["activation_peak_bytes"]
    longer = statistics.median(second / first for first, second in times)
    print(
        f"\n{less:.2f}x less memory (floor: 2x) for {longer:.2f}x the time (floor: at most 1.4x); weights bit-equal: {equal}"
    )


class _Training:
    def __init__(self, model: onnx.ModelProto, images: torch.Tensor, labels: torch.Tensor) -> None:
        self.module, self.images, self.labels = GraphModule(model), images, labels
        for weight in self.module.parameters():
            if weight.dim() == 4:
                weight.data = weight.data.to(memory_format=torch.channels_last)
        self.optimizer = torch.optim.SGD(self.module.parameters(), lr=1e-4, momentum=0.9)

    def loss(self) -> torch.Tensor:
        return F.cross_entropy(self.module(self.images), self.labels)

    def step(self) -> float:
        """Seconds."""
        started = time.perf_counter()
        self.optimizer.zero_grad()
        self.loss().backward()
        self.optimizer.step()
        return time.perf_counter() - started


if __name__ == "__main__":
    main()
