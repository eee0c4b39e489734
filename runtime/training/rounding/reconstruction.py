"""Block reconstruction: levels, scales, biases and float weights of a block trained until it answers as the float one did.

    weight = clip(round(v)) * step * (1 + c)      v: levels, trained straight through from those that it begins with
    loss   = |block(x) - target|^2 / |target - mean|^2

Of each quantized activation, half the elements stay as they were, drawn anew at every step, so that the weights suit the
float values and the quantized ones, and not the noise of a few samples (QDrop). What is compared in the end is quantized
whole. At first levels stay, and scales, biases and float weights alone are trained; then a level moves when v has gone half a
step. Samples that are kept apart tell which of the two to take, if any.
Sources: Li et al., "BRECQ: Pushing the Limit of Post-Training Quantization by Block Reconstruction", ICLR 2021, section 3;
Wei et al., "QDrop: Randomly Dropping Quantization for Extremely Low-bit Post-Training Quantization", ICLR 2022, section 4;
straight through instead of their sigmoid, which takes thousands of steps to decide: Hubara et al., "Accurate Post Training
Quantization With Small Calibration Sets", ICML 2021, section 3.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from onnx_lathe.protocols import BlockTask, FittedBlock, Levels
from onnx_lathe.runtime.torch_bridge import GraphModule

LEVEL_RATE = 2e-2
"""Of Adam, in levels."""
SHARE_RATE = 5e-3
"""Of Adam for scales, biases and float weights, in shares of their size."""
SHARES_ALONE = 1 / 3
"""Of the steps, those in which levels stay."""
DROPPED = 0.5
"""Of the elements of an activation, those that a step does not quantize."""
POSITIONS = 1024
"""Of the block's answer in a batch, about; at least one sample."""
MOST_SAMPLES = 16


def reconstruct(task: BlockTask, steps: int, seed: int, progress: Callable[[str], None]) -> FittedBlock:
    """See Fitter of passes/core/services.py."""
    block = _Block(task)
    held = torch.from_numpy(np.flatnonzero(task.held))
    before = block.error(held)
    generator = torch.Generator().manual_seed(seed)
    batches = _batches(torch.from_numpy(np.flatnonzero(~task.held)), block.batch, generator)
    first = max(round(SHARES_ALONE * steps), 1)
    found = FittedBlock(before, before, {}, {})
    done = 0
    for groups, count in ((block.shares(), first), (block.shares() + block.levels(), steps - first)):
        optimizer = torch.optim.Adam(groups)
        for step in range(count):
            for group, rate in zip(optimizer.param_groups, groups, strict=True):
                group["lr"] = rate["lr"] * 0.5 * (1 + math.cos(math.pi * step / count))
            loss = block.loss(next(batches), generator)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            done += 1
            if done % 50 == 0:
                progress(f"fitting the block up to {block.module.outputs[0]}: step {done} of {steps}")
        after = block.error(held) if count else found.after
        if after < found.after:
            found = FittedBlock(before, after, block.stored(), block.values())
    return found


class _Block:
    """The block on its samples; rows are numbers of samples."""

    def __init__(self, task: BlockTask) -> None:
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.module = GraphModule(task.model).eval().requires_grad_(False).to(self.device)
        self.task = task
        self.x, self.target = torch.from_numpy(task.x), torch.from_numpy(task.target)
        self.weights = {name: _Weight(levels, self.device) for name, levels in task.levels.items()}
        self.others = {name: _Value(values, self.device) for name, values in task.values.items()}
        self.batch = task.batch or min(max(POSITIONS // math.prod(task.target.shape[2:]), 1), MOST_SAMPLES)
        self.spread = float(np.var(task.target, dtype=np.float64)) or 1.0
        self.ranks = self._ranks()

    def shares(self) -> list[dict[str, Any]]:
        changes = [one.change for one in self._trained().values()]
        return [{"params": changes, "lr": SHARE_RATE}]

    def levels(self) -> list[dict[str, Any]]:
        return [{"params": [one.levels for one in self.weights.values()], "lr": LEVEL_RATE}]

    def _trained(self) -> "dict[str, _Weight | _Value]":
        return {**self.weights, **self.others}

    def loss(self, rows: Tensor, generator: torch.Generator) -> Tensor:
        masks = {
            name: (torch.rand((len(rows), *shape), generator=generator) >= DROPPED).to(self.device)
            for name, shape in self.ranks.items()
        }
        found: Tensor = (self._answer(rows, masks) - self.target[rows].to(self.device)).square().mean()
        return found / self.spread

    @torch.no_grad()
    def error(self, rows: Tensor) -> float:
        """Mean square of the difference from the target, over the target's variance, quantized whole."""
        masks = {
            name: torch.ones([1] * (1 + len(shape)), dtype=torch.bool) for name, shape in self.ranks.items()
        }
        masks = {name: mask.to(self.device) for name, mask in masks.items()}
        total = 0.0
        for part in rows.split(self.batch):
            off = self._answer(part, masks) - self.target[part].to(self.device)
            total += float(off.double().square().mean()) * len(part)
        return total / len(rows) / self.spread

    def stored(self) -> Mapping[str, tuple[np.ndarray, np.ndarray]]:
        return {name: one.stored() for name, one in self.weights.items()}

    def values(self) -> Mapping[str, np.ndarray]:
        return {name: one().detach().cpu().numpy().copy() for name, one in self.others.items()}

    def _answer(self, rows: Tensor, masks: Mapping[str, Tensor]) -> Tensor:
        feeds = {self.task.source: self.x[rows].to(self.device), **masks}
        feeds |= {name: one() for name, one in self._trained().items()}
        found: Tensor = self.module(**feeds)
        return found

    @torch.no_grad()
    def _ranks(self) -> dict[str, tuple[int, ...]]:
        """By mask, the shape of a sample of what it is for."""
        shapes = {self.task.source: tuple(self.x.shape[1:])}
        feeds = {self.task.source: self.x[: self.batch].to(self.device)}
        feeds |= {mask: torch.ones((), dtype=torch.bool, device=self.device) for mask in self.task.masks}
        feeds |= {name: one() for name, one in self._trained().items()}
        for _, name, value in self.module.trace(**feeds):
            shapes[name] = tuple(value.shape[1:])
        return {mask: shapes[tensor] for mask, tensor in self.task.masks.items()}


class _Weight:
    def __init__(self, levels: Levels, device: torch.device) -> None:
        self.step = torch.from_numpy(levels.step.astype(np.float32)).to(device)
        self.largest = levels.largest
        self.free = torch.from_numpy(levels.free).to(device)
        self.start = torch.from_numpy(levels.start.astype(np.float32)).to(device)
        self.levels = self.start.clone().requires_grad_(True)
        self.change = torch.zeros_like(self.step, requires_grad=True)

    def __call__(self) -> Tensor:
        levels = self.levels.clamp(-self.largest, self.largest)
        levels = torch.where(self.free, levels, self.start)
        rounded = levels + (levels.detach().round() - levels.detach())
        found: Tensor = rounded * (self.step * (1 + self.change))
        return found

    def stored(self) -> tuple[np.ndarray, np.ndarray]:
        with torch.no_grad():
            levels = self.levels.clamp(-self.largest, self.largest).round()
            levels = torch.where(self.free, levels, self.start)
            step = self.step * (1 + self.change)
        return levels.cpu().numpy().astype(np.int8), step.cpu().numpy()


class _Value:
    """A bias or a float weight, trained in shares of its size; zeros of one that is sparse stay."""

    def __init__(self, values: np.ndarray, device: torch.device) -> None:
        self.start = torch.from_numpy(values.astype(np.float32)).to(device)
        self.size = float(np.sqrt(np.square(values, dtype=np.float64).mean())) or 1.0
        self.change = torch.zeros_like(self.start, requires_grad=True)

    def __call__(self) -> Tensor:
        return self.start + self.size * self.change


def _batches(rows: Tensor, size: int, generator: torch.Generator) -> Iterator[Tensor]:
    """All rows in an order that changes each time, over and over, `size` at a time."""
    while True:
        shuffled = rows[torch.randperm(len(rows), generator=generator)]
        yield from (
            part for part in shuffled.split(min(size, len(rows))) if len(part) == min(size, len(rows))
        )
