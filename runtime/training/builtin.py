"""The built-in hook: a few epochs of AdamW or SGD under a cosine schedule, by labels and by distillation."""

import math
import time
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from lathe import DataError, PassError
from runtime.data import Batch, DataSource
from runtime.torch_bridge import GraphModule
from runtime.torch_bridge.arrays import to_torch
from runtime.training.augment import Augmentation
from runtime.training.job import RetrainJob
from runtime.training.objective import Objective
from runtime.training.settings import Settings

LOOK_EVERY = 20
"""Steps between two looks at the loss: reading it waits for the device."""

AUGMENTATION = 1
"""Beside the seed: random numbers of the augmentation are others than those that order the data."""

NO_MEMORY = ("can't allocate memory", "not enough memory")
"""What PyTorch's allocator for CPUs says, in a plain RuntimeError."""

Score = tuple[int, float]
"""Correct answers (0 without labels) and negative loss on the validation data: larger is better."""


def retrain(module: GraphModule, job: RetrainJob) -> None:
    """Trains the module in place. Keeps the last epoch's weights, or with validation data the best epoch's (0 is: before training).

    A job that is `shaped` keeps the last epoch's in any case. Images are augmented alike for the module and its teacher.

    Puts first_loss, last_loss (means over a twentieth of the steps), samples and, with validation data, best_epoch into `job.metrics`.
    Raises PassError if the loss is no longer finite, if there is nothing to train or to learn from, or if memory is short; DataError for
    a label that the model has no class for.
    """
    settings = Settings.read(job.settings)
    try:
        _Loop(module, job, settings).run()
    except RuntimeError as error:
        if not _no_memory(error):
            raise
        raise PassError(f"not enough memory to train {settings.batch} samples at once; give a smaller batch=") from error


def _no_memory(error: RuntimeError) -> bool:
    return isinstance(error, torch.OutOfMemoryError) or any(words in str(error) for words in NO_MEMORY)


class _Loop:
    def __init__(self, module: GraphModule, job: RetrainJob, settings: Settings) -> None:
        self.module, self.job, self.settings = module, job, settings
        self.parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
        if not self.parameters:
            raise PassError("there is nothing to train: no weight of the model is a float initializer")
        # Convolution and pooling on a CPU are faster so, by a fifth for ResNet-20; numbers are the same.
        for network in (module, job.teacher):
            for weight in () if network is None else network.parameters():
                if weight.dim() == 4:
                    weight.data = weight.data.to(memory_format=torch.channels_last)
        first = next(iter(job.data.batches(2)), None)
        if first is None:
            raise DataError("the training data has no samples")
        with torch.no_grad():
            sample = self._sample(first)
        self.augment = Augmentation(settings.shift, settings.flip, np.random.default_rng((job.seed, AUGMENTATION)))
        self.augment.check(first)
        self.objective = Objective(module.output_ops, sample, job.data.labelled, job.teacher is not None, settings)
        self.teacher = job.teacher if self.objective.distill > 0 else None
        self.optimizer = _optimizer(self.parameters, settings)
        self.samples = _count(job.data, settings.batch)
        self.losses: list[float] = []

    def _sample(self, batch: Batch) -> tuple[Tensor, ...]:
        """Raises PassError for an operator that PyTorch refuses in bfloat16, such as one that wants all its inputs of one type."""
        feeds = self._feeds(batch)
        try:
            return self._run(self.module, feeds)
        except RuntimeError as error:
            if self.settings.precision == "float32" or _no_memory(error):
                raise
            raise PassError(f"PyTorch cannot run the model in {self.settings.precision}; leave precision out: {error}") from error

    def run(self) -> None:
        job, started = self.job, time.perf_counter()
        best, score = None, None if job.shaped else self._score()
        if score is not None:
            best, job.metrics["best_epoch"] = self._copy(), 0.0
        for epoch in range(job.epochs):
            self._epoch(epoch, started)
            fresh = None if score is None else self._score()
            if score is not None and fresh is not None and fresh > score:
                score, best, job.metrics["best_epoch"] = fresh, self._copy(), epoch + 1.0
        if best is not None:
            with torch.no_grad():
                for parameter, value in zip(self.parameters, best, strict=True):
                    parameter.copy_(value)
        part = max(1, len(self.losses) // 20)
        job.metrics["first_loss"] = sum(self.losses[:part]) / part
        job.metrics["last_loss"] = sum(self.losses[-part:]) / part
        job.metrics["samples"] = float(self.samples)

    def _epoch(self, epoch: int, started: float) -> None:
        total, seen = self.job.epochs * self.samples, epoch * self.samples
        pending: list[Tensor] = []
        for batch in self.job.data.batches(self.settings.batch, shuffle_seed=self.job.seed + epoch):
            rate = self.settings.peak_rate * schedule((seen + batch.count / 2) / total, self.settings.warmup)
            for group in self.optimizer.param_groups:
                group["lr"] = rate
            self.job.shape(min(seen / total, 1.0))
            pending.append(self._step(batch))
            seen += batch.count
            if len(pending) == LOOK_EVERY or seen >= (epoch + 1) * self.samples:
                self._look(pending, epoch, seen / total, started)
        if pending:
            self._look(pending, epoch, seen / total, started)

    def _step(self, batch: Batch) -> Tensor:
        taught, feeds = None, self._feeds(self.augment(batch))
        if self.teacher is not None:
            with torch.no_grad():
                taught = self._run(self.teacher, feeds)
        loss = self.objective(self._run(self.module, feeds), taught, self._labels(batch))
        self.optimizer.zero_grad()
        loss.backward()
        if self.settings.clip > 0:
            nn.utils.clip_grad_norm_(self.parameters, self.settings.clip)
        self.optimizer.step()
        return loss.detach()

    def _look(self, pending: list[Tensor], epoch: int, done: float, started: float) -> None:
        fresh = torch.stack(pending).tolist()
        pending.clear()
        self.losses += fresh
        mean = sum(fresh) / len(fresh)
        if not math.isfinite(mean):
            raise PassError(
                f"the loss became {mean} in epoch {epoch + 1}; the model is left as it was; give a smaller rate= "
                f"(it was {self.settings.peak_rate:g})"
            )
        left = (time.perf_counter() - started) * (1 / min(done, 1.0) - 1)
        self.job.progress(f"epoch {epoch + 1}/{self.job.epochs}: loss {mean:.4g}, {_clock(left)} left")

    def _score(self) -> Score | None:
        if self.job.validation is None:
            return None
        correct, loss = 0, 0.0
        with torch.no_grad():
            for batch in self.job.validation.batches(self.settings.batch):
                feeds, labels = self._feeds(batch), self._labels(batch)
                student = self._run(self.module, feeds)
                taught = None if self.teacher is None else self._run(self.teacher, feeds)
                loss += batch.count * float(self.objective(student, taught, labels))
                if labels is not None:
                    correct += self.objective.correct(student, labels)
        return correct, -loss

    def _feeds(self, batch: Batch) -> dict[str, Tensor]:
        feeds = {name: to_torch(array).to(self.job.device) for name, array in batch.inputs.items()}
        return {name: feed.to(memory_format=torch.channels_last) if feed.dim() == 4 else feed for name, feed in feeds.items()}

    def _run(self, network: GraphModule, feeds: dict[str, Tensor]) -> tuple[Tensor, ...]:
        """Outputs in the types that the graph declares, whatever the precision inside."""
        with torch.autocast(self.job.device.type, torch.bfloat16, enabled=self.settings.precision == "bfloat16"):
            outputs = network(**feeds)
        return outputs if isinstance(outputs, tuple) else (outputs,)

    def _labels(self, batch: Batch) -> Tensor | None:
        if batch.labels is None or self.objective.labelled is None:
            return None
        if batch.count and not 0 <= batch.labels.min() <= batch.labels.max() < self.objective.classes:
            wrong = next(label for label in batch.labels if not 0 <= label < self.objective.classes)
            raise DataError(f"label {wrong} in the data, but the model has classes 0 to {self.objective.classes - 1}")
        return torch.from_numpy(batch.labels).to(self.job.device)

    def _copy(self) -> list[Tensor]:
        return [parameter.detach().clone() for parameter in self.parameters]


def schedule(progress: float, warmup: float) -> float:
    """Share of the peak rate at `progress` (0 to 1) of all samples: a linear rise during `warmup` of them, then half a cosine to 0."""
    if progress < warmup:
        return progress / warmup
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (progress - warmup) / (1 - warmup))))


def _optimizer(parameters: Sequence[nn.Parameter], settings: Settings) -> torch.optim.Optimizer:
    """Weight decay is for matrices and kernels; it would pull biases, normalization and the centroids of a codebook to 0."""
    groups = [
        {"params": [parameter for parameter in parameters if parameter.dim() > 1], "weight_decay": settings.weight_decay},
        {"params": [parameter for parameter in parameters if parameter.dim() <= 1], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if settings.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=settings.peak_rate, momentum=settings.momentum, nesterov=settings.momentum > 0)
    return torch.optim.AdamW(groups, lr=settings.peak_rate, betas=(settings.momentum, 0.999), fused=True)


def _count(data: DataSource, size: int) -> int:
    """Samples of the data; read through once if it does not know."""
    return data.count if data.count is not None else sum(batch.count for batch in data.batches(size))


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
