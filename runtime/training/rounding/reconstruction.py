"""Adaptive rounding of one layer's weight: a variable per weight says how far it is on its way from the
level below to that above.

    weight = (low + (high - low) * h) * step,     h = clip(1.2 sigmoid(v) - 0.1, 0, 1),     at first as the weight is
    loss = |layer(x, weight) - target|^2 / noise + PRICE * mean(1 - |2 h - 1|^beta)

noise is the error that rounding to nearest adds to the layer, so that the price of an undecided weight is
right at any scale and number of levels. The price begins to count after WARM_UP of the steps; beta falls,
so that h is free to move at first and decided in the end.
Source: Nagel et al., "Up or Down? Adaptive Rounding for Post-Training Quantization", ICML 2020, sections
3.3 to 3.5.
"""

import math
from collections.abc import Callable, Iterator, Mapping
from typing import NamedTuple

import numpy as np
import onnx
import torch
from torch import Tensor

from onnx_lathe.runtime.torch_bridge import GraphModule

ZETA, GAMMA = 1.1, -0.1
PRICE = 5.0
WARM_UP = 0.2
BETA = (20.0, 2.0)
"""At the end of the warm-up, and at the end."""
RATE = 2e-2
POSITIONS = 2048
"""Outputs of one channel in a batch, about."""
HELD_OUT = 8
"""Of so many samples one is not trained on, and judges."""


class Reconstruction(NamedTuple):
    """One layer: its model, the weight's name, what it may become, and sampled inputs and targets; see
    Rounder of passes/core/services.py.
    """

    layer: onnx.ModelProto
    weight: str
    exact: np.ndarray
    low: np.ndarray
    high: np.ndarray
    step: np.ndarray
    inputs: Mapping[str, np.ndarray]
    target: np.ndarray


def reconstruct(
    task: Reconstruction, steps: int, seed: int, progress: Callable[[str], None]
) -> tuple[np.ndarray | None, float, float]:
    """(INT8 levels, or None if the nearest are as good; signal to noise in dB with the nearest and with
    these, on held-out samples).
    """
    layer = _Layer(task)
    exact, low, room = (layer.tensor(array) for array in (task.exact, task.low, task.high - task.low))
    nearest = (torch.round(exact) > low).float() * room + low
    order = torch.randperm(len(task.target), generator=torch.Generator().manual_seed(seed))
    held = order[: max(len(order) // HELD_OUT, 1)]
    trained = order[len(held) :] if len(order) > len(held) else held
    before, signal = layer.error(nearest, held), layer.signal(held)
    noise = layer.error(nearest, trained, reference=exact)
    if noise == 0:
        return None, _decibels(signal, before), _decibels(signal, before)
    variable = _inverse((exact - low).clamp(0, 1)).requires_grad_(True)
    optimizer = torch.optim.Adam([variable], lr=RATE)
    free = room > 0
    batches = _batches(trained, layer.batch, seed)
    for step in range(steps):
        rows = next(batches)
        share = _rectified(variable)
        loss = (layer(low + room * share, rows) - layer.target(rows)).square().mean() / noise
        if step >= WARM_UP * steps:
            done = (step / steps - WARM_UP) / (1 - WARM_UP)
            beta = BETA[1] + 0.5 * (BETA[0] - BETA[1]) * (1 + math.cos(math.pi * done))
            loss = loss + PRICE * (1 - (2 * share[free] - 1).abs().pow(beta)).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 100 == 99:
            progress(f"rounding {task.weight}: step {step + 1} of {steps}")
    found = low + room * (_rectified(variable.detach()) >= 0.5)
    after = layer.error(found, held)
    levels = found.cpu().numpy().astype(np.int8) if after < before else None
    return levels, _decibels(signal, before), _decibels(signal, after)


class _Layer:
    """The layer on its samples; weights are given in steps, rows are numbers of samples."""

    def __init__(self, task: Reconstruction) -> None:
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.module = GraphModule(task.layer).eval().requires_grad_(False).to(self.device)
        self.weight, self.step = task.weight, self.tensor(task.step)
        self.inputs = {name: torch.from_numpy(array) for name, array in task.inputs.items()}
        self.targets = torch.from_numpy(task.target)
        self.batch = max(POSITIONS // math.prod(task.target.shape[2:]), 1)

    def tensor(self, array: np.ndarray) -> Tensor:
        return torch.from_numpy(array.astype(np.float32)).to(self.device)

    def __call__(self, levels: Tensor, rows: Tensor) -> Tensor:
        feeds = {name: values[rows].to(self.device) for name, values in self.inputs.items()}
        computed: Tensor = self.module(**feeds, **{self.weight: levels * self.step})
        return computed

    def target(self, rows: Tensor) -> Tensor:
        return self.targets[rows].to(self.device)

    @torch.no_grad()
    def error(self, levels: Tensor, rows: Tensor, reference: Tensor | None = None) -> float:
        """Mean square of the difference from the target, or from what the layer computes with other levels."""
        return self._mean(
            lambda part: (
                self(levels, part) - (self.target(part) if reference is None else self(reference, part))
            ),
            rows,
        )

    def signal(self, rows: Tensor) -> float:
        """Mean square of the target."""
        return self._mean(self.target, rows)

    def _mean(self, values: Callable[[Tensor], Tensor], rows: Tensor) -> float:
        return sum(
            float(values(part).double().square().mean()) * len(part) for part in rows.split(self.batch)
        ) / len(rows)


def _batches(rows: Tensor, size: int, seed: int) -> Iterator[Tensor]:
    """All rows in an order that changes each time, over and over, `size` at a time."""
    generator = torch.Generator().manual_seed(seed)
    while True:
        shuffled = rows[torch.randperm(len(rows), generator=generator)]
        yield from shuffled.split(min(size, len(rows)))


def _rectified(variable: Tensor) -> Tensor:
    return (torch.sigmoid(variable) * (ZETA - GAMMA) + GAMMA).clamp(0, 1)


def _inverse(share: Tensor) -> Tensor:
    return -torch.log((ZETA - GAMMA) / (share - GAMMA) - 1)


def _decibels(signal: float, error: float) -> float:
    return math.inf if error == 0 else 10 * math.log10(signal / error) if signal else -math.inf
