"""Steps of a training, timed before it begins: on copies, so that nothing is left of them."""

import copy
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from onnx_lathe.runtime.data import Batch, DataSource
from onnx_lathe.runtime.torch_bridge import GraphModule
from onnx_lathe.runtime.torch_bridge.arrays import to_torch
from onnx_lathe.runtime.training.loop.precision import Precision
from onnx_lathe.runtime.training.parallel import link
from onnx_lathe.runtime.training.parallel.grid import Grid
from onnx_lathe.runtime.training.parallel.grid_parallel import GridParallel
from onnx_lathe.runtime.training.parallel.rules.table import Choose
from onnx_lathe.runtime.training.parallel.workers import LaunchedGroup

STEPS, WARM_UP = 10, 2
"""Timed, and before them not: DistributedDataParallel divides its buckets anew after the first."""


class Larger(DataSource):
    """A group's samples: B of each of its workers."""

    def __init__(self, whole: DataSource, workers: int) -> None:
        self.whole, self.workers = whole, workers
        self.labelled, self.count = whole.labelled, whole.count
        self.fingerprint, self.description = whole.fingerprint, whole.description

    @property
    def total(self) -> int | None:
        return self.whole.total

    def batches(self, size: int, shuffle_seed: int | None = None) -> Iterator[Batch]:
        return self.whole.batches(size * self.workers, shuffle_seed)


@dataclass(frozen=True)
class Job:
    """What is to be trained, as Strategy.place is told."""

    module: GraphModule
    teacher: GraphModule | None
    data: DataSource
    shaped: bool
    progress: Callable[[str], None]


class Trial:
    """Steps of the job by a grid of the workers. The loss is the outputs' mean square, and the rate 0.

    Raises TypeError for a module that cannot be copied.
    """

    def __init__(
        self, job: Job, group: LaunchedGroup, settings: Any, grid: Grid, chooses: Sequence[Choose]
    ) -> None:
        self.device = group.place
        workers = GridParallel(group, settings, grid)
        module, self.teacher = copy.deepcopy(job.module), copy.deepcopy(job.teacher)
        if grid.parts > 1:
            workers.chooses = chooses
            workers.place(module, job.data, job.shaped, lambda message: None, self.teacher)
        if self.teacher is not None:
            self.teacher.to(self.device)
        self.network = workers.parallel(module.to(self.device).train())
        self.precision = Precision(settings["precision"], self.device)
        trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
        self.optimizer = (
            torch.optim.SGD(trained, lr=0.0, momentum=0.9)
            if settings["optimizer"] == "sgd"
            else torch.optim.AdamW(trained, lr=0.0, fused=True)
        )
        size = settings["batch"] * grid.parts
        batch = next(iter(workers.share(job.data).batches(size)))
        self.feeds = {name: to_torch(array).to(self.device) for name, array in batch.inputs.items()}

    def step(self) -> None:
        self.optimizer.zero_grad()
        with self.precision.autocast():
            if self.teacher is not None:
                with torch.no_grad():
                    self.teacher(**self.feeds)
            outputs = self.network(**self.feeds)
            loss = sum((_square(one) for one in _listed(outputs)), torch.zeros((), device=self.device))
        self.precision.backward(loss)
        self.optimizer.step()
        link.finish(self.device)


def timed(trials: Sequence[Trial], most: link.Most) -> list[float]:
    """Median seconds of a step of each, of the slowest worker; the trials take turns. All workers have to call it."""
    found: list[list[float]] = [[] for _ in trials]
    for number in range(WARM_UP + STEPS):
        for trial, seconds in zip(trials, found, strict=True):
            most(0.0)  # all begin together
            begin = time.perf_counter()
            trial.step()
            if number >= WARM_UP:
                seconds.append(time.perf_counter() - begin)
    return most(*(statistics.median(seconds) for seconds in found))


def _listed(outputs: Any) -> Sequence[Tensor]:
    return outputs if isinstance(outputs, tuple) else (outputs,)


def _square(output: Tensor) -> Tensor:
    return output.float().square().mean() if output.is_floating_point() else output.new_zeros(())
