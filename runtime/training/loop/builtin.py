"""The built-in hook: a few epochs of AdamW or SGD under a schedule, by labels and by distillation."""

import json
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from onnx_lathe.errors import DataError, PassError
from onnx_lathe.runtime.data import Batch, DataSource
from onnx_lathe.runtime.data.source import drawn
from onnx_lathe.runtime.torch_bridge import GraphModule
from onnx_lathe.runtime.torch_bridge.arrays import to_torch
from onnx_lathe.runtime.training.job import RetrainJob
from onnx_lathe.runtime.training.loop import schedule
from onnx_lathe.runtime.training.loop.augment import Augmentation
from onnx_lathe.runtime.training.loop.lesson import Lesson
from onnx_lathe.runtime.training.loop.objective import Objective
from onnx_lathe.runtime.training.loop.precision import Precision
from onnx_lathe.runtime.training.loop.settings import Settings
from onnx_lathe.runtime.training.memory import budget

if TYPE_CHECKING:
    from onnx_lathe.runtime.training.parallel.client import Client

BETA = 0.999
"""AdamW's second beta."""

LOOK_EVERY = 20
"""Steps between two looks at the loss: reading it waits for the device."""

AUGMENTATION = 1
"""Beside the seed: random numbers of the augmentation are others than those that order the data."""

NO_MEMORY = ("can't allocate memory", "not enough memory")
"""What PyTorch's allocator for CPUs says, in a plain RuntimeError."""

Network = Callable[..., Any]
"""A GraphModule, or what several workers run in its place."""

Score = tuple[int, float]
"""Correct answers (0 without labels) and negative loss on the validation data: larger is better."""


def retrain(module: GraphModule, job: RetrainJob) -> None:
    """Trains the module in place. Keeps the last epoch's weights, or with validation data the best epoch's
    (0 is: before training).

    A job that is `shaped` keeps the last epoch's in any case. Images are augmented alike for the module and
    its teacher. After every epoch all that makes the next ones is saved in `job.state`, and training begins
    with what is found there.

    Puts into `job.metrics`: first_loss, last_loss (means over a twentieth of the steps), samples, epochs,
    resumed_after if epochs of an earlier run were taken over, with validation data best_epoch, and what
    precision and memory report. Raises PassError if the loss is no longer finite, if there is nothing to
    train or to learn from, or if memory is short; DataError for a label that the model has no class for.
    """
    settings = Settings.read(job.settings)
    try:
        loop = _Loop(module, job, settings)
        if loop.client is None:
            loop.run()
        else:
            loop.work(loop.client)
    except RuntimeError as error:
        if not _no_memory(error):
            raise
        raise PassError(
            f"not enough memory to train {settings.batch} samples at once; give a smaller batch=, or --memory"
        ) from error


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
        self.precision = Precision(settings.precision, job.device)
        with torch.no_grad():
            sample = self._sample(first)
        self.augment = Augmentation(
            settings.shift, settings.flip, np.random.default_rng((job.seed, AUGMENTATION))
        )
        self.augment.check(first)
        self.objective = Objective(
            module.output_ops, sample, first.count, job.data.labelled, job.teacher is not None, settings
        )
        self.teacher = job.teacher if self.objective.distill > 0 else None
        self.optimizer = _optimizer(self.parameters, settings)
        taught = None if self.teacher is None else self._taught
        lesson = Lesson(self.objective, self.precision, taught, self._some, job.progress)
        self.pipeline = job.workers.pipeline(module, lesson, job.shaped)
        self.server, self.client = job.workers.server(module), job.workers.client(module)
        self.samples = _count(job.data, settings.batch)
        self.losses: list[float] = []
        self.best: dict[str, Tensor] | None = None
        self.score: Score | None = None

    def _some(self, count: int) -> tuple[dict[str, Tensor], Tensor | None]:
        """Inputs and labels of up to so many samples."""
        batch = next(iter(self.job.data.batches(count)))
        return self._feeds(batch), self._labels(batch)

    def _sample(self, batch: Batch) -> tuple[Tensor, ...]:
        """Raises PassError for an operator that PyTorch refuses in bfloat16, such as one that wants all its
        inputs of one type.
        """
        feeds = self._feeds(batch)
        self.module.eval()
        try:
            return self._run(self.module, feeds)
        except RuntimeError as error:
            if self.settings.precision == "float32" or _no_memory(error):
                raise
            raise PassError(
                f"PyTorch cannot run the model in {self.settings.precision}; leave precision out: {error}"
            ) from error

    def run(self) -> None:
        job, started, first = self.job, time.perf_counter(), self._resume()
        if self.server is None:
            job.metrics.update(self._fit())
        else:
            self.server.epoch = first
        self.network = job.workers.parallel(self.module)
        if first == 0 and job.validation is not None and not job.shaped:
            with job.workers.whole():
                self.score, self.best = self._score(job.validation), self._copy()
            job.metrics["best_epoch"] = 0.0
        self.module.train()
        done = first
        while done < job.epochs and not self._is_enough(done):
            self._epoch(done, first, started)
            done += 1
            with job.workers.whole():
                if (
                    self.score is not None
                    and job.validation is not None
                    and (fresh := self._score(job.validation)) > self.score
                ):
                    self.score, self.best, job.metrics["best_epoch"] = fresh, self._copy(), float(done)
                self._save(done)
        job.workers.gather()
        if self.best is not None:
            self.module.load_state_dict(self.best)
        part = max(1, len(self.losses) // 20)
        job.metrics["epochs"] = float(done)
        job.metrics["first_loss"] = sum(self.losses[:part]) / part
        job.metrics["last_loss"] = sum(self.losses[-part:]) / part
        job.metrics["samples"] = float(self.samples)
        job.metrics.update(self.precision.metrics)

    def work(self, client: "Client") -> None:
        """Computes gradients for a server, of samples at random from the whole, until it has enough."""
        client.figures = self._fit()
        self.network = self.module
        if not client.fetch():
            return
        # An epoch that is not the first has other samples than the first had.
        seed = (self.job.seed, client.number, client.epoch)
        self.augment = replace(self.augment, random=np.random.default_rng((*seed, AUGMENTATION)))
        losses: list[float] = []
        for batch in drawn(self.job.data, self.settings.batch, self.samples, np.random.default_rng(seed)):
            self.optimizer.zero_grad()
            loss = self._gradients(batch).detach()
            client.push(loss, batch.count)
            losses.append(float(loss))
            if len(losses) % LOOK_EVERY == 0:
                mean = sum(losses[-LOOK_EVERY:]) / LOOK_EVERY
                self.job.progress(f"worker {self.job.workers.rank}: {len(losses)} gradients, loss {mean:.4g}")
            if not client.fetch():
                break

    def _fit(self) -> dict[str, float]:
        """What the activations take, if `--memory` says how much they may."""
        job = self.job
        if job.memory is None:
            return {}
        whole = next(iter(job.data.batches(self.settings.batch)))
        return budget.fit(
            self.module,
            lambda: self._loss(self.module, self._feeds(whole), whole),
            job.memory,
            job.workers.most,
        )

    def _is_enough(self, done: int) -> bool:
        """Whether `patience` is over."""
        return 0 < self.settings.patience <= done - self.job.metrics.get("best_epoch", 0.0)

    def _resume(self) -> int:
        """Epochs that an earlier run has done; everything is as it was after them."""
        state = None if self.job.state is None else self.job.state.load()
        if state is None:
            return 0
        self.module.load_state_dict(state["module"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.pipeline is not None:
            self.pipeline.forget(self.optimizer)
        self.precision.restore(state["precision"])
        self.augment.random.bit_generator.state = json.loads(state["augment"])
        self.losses, self.best, self.score = state["losses"], state["best"], state["score"]
        self.job.metrics.update(state["metrics"] | {"resumed_after": float(state["epoch"])})
        self.job.progress(f"going on after epoch {state['epoch']}")
        return int(state["epoch"])

    def _save(self, epoch: int) -> None:
        if self.job.state is not None:
            state: dict[str, Any] = {
                "epoch": epoch,
                "losses": self.losses,
                "best": self.best,
                "score": self.score,
            }
            state |= {
                "module": self.module.state_dict(),
                "optimizer": self.job.workers.merged(self.optimizer.state_dict()),
                "precision": self.precision.state(),
            }
            state |= {
                "augment": json.dumps(self.augment.random.bit_generator.state),
                "metrics": dict(self.job.metrics),
            }
            self.job.state.save(state)

    def _epoch(self, epoch: int, first: int, started: float) -> None:
        """`first`: the epoch that this run began with, at the time `started`."""
        settings, total, seen = self.settings, self.job.epochs * self.samples, epoch * self.samples
        pending: list[Tensor] = []
        if self.server is None:
            batches: Iterable[Batch] = self.job.data.batches(
                settings.batch, shuffle_seed=self.job.seed + epoch
            )
        else:
            batches = self.server.batches(self.samples, settings.batch)
        for batch in batches:
            progress = (seen + batch.total / 2) / total
            rate = settings.peak_rate * schedule.rate(settings.decay, progress, settings.warmup)
            momentum = schedule.momentum(settings.decay, progress, settings.warmup, settings.momentum)
            for group in self.optimizer.param_groups:
                group |= {"lr": rate} | (
                    {"momentum": momentum} if settings.optimizer == "sgd" else {"betas": (momentum, BETA)}
                )
            self.job.shape(min(seen / total, 1.0))
            pending.append(self._step(batch))
            seen += batch.total
            if len(pending) == LOOK_EVERY or seen >= (epoch + 1) * self.samples:
                self._look(
                    pending, epoch, (seen - first * self.samples) / (total - first * self.samples), started
                )
        if pending:
            self._look(
                pending, epoch, (seen - first * self.samples) / (total - first * self.samples), started
            )

    def _step(self, batch: Batch) -> Tensor:
        self.optimizer.zero_grad()
        loss = self._gradients(batch) if self.server is None else self.server.gradients(self.optimizer)
        self.precision.step(
            self.optimizer, self.parameters, self.settings.clip, self.job.workers.gradient_norm
        )
        if self.server is not None:
            self.server.updated()
        return loss.detach()

    def _gradients(self, batch: Batch) -> Tensor:
        """The loss, whose gradients the module then has."""
        feeds = self._feeds(self.augment(batch))
        if self.pipeline is not None:
            return self.pipeline.step(feeds, self._labels(batch), batch.weight)
        loss = batch.weight * self._loss(
            self.network, feeds, batch, lambda value: self.job.workers.mean(batch.weight * value)
        )
        self.precision.backward(loss)
        return loss

    def _loss(
        self,
        network: Network,
        feeds: dict[str, Tensor],
        batch: Batch,
        mean: Callable[[Tensor], Tensor] = lambda value: value,
    ) -> Tensor:
        """`mean`: of a mean over this worker's samples, over those of all workers."""
        taught = None if self.teacher is None else self._taught(feeds)
        return self.objective(self._run(network, feeds), taught, self._labels(batch), mean)

    def _taught(self, feeds: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        if self.teacher is None:
            raise PassError("there is no original model to imitate")
        with torch.no_grad():
            return self._run(self.teacher, feeds)

    def _look(self, pending: list[Tensor], epoch: int, done: float, started: float) -> None:
        fresh = self.job.workers.mean(torch.stack(pending)).tolist()
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

    def _score(self, validation: DataSource) -> Score:
        correct, loss, samples = 0.0, 0.0, 0.0
        self.module.eval()
        with torch.no_grad():
            for batch in self.job.workers.judged(validation).batches(self.settings.batch):
                feeds, labels = self._feeds(batch), self._labels(batch)
                student = self._run(self.module, feeds)
                taught = None if self.teacher is None else self._run(self.teacher, feeds)
                loss += batch.mine * float(self.objective(student, taught, labels))
                samples += batch.mine
                if labels is not None and batch.mine:
                    correct += self.objective.correct(student, labels)
        correct, loss, samples = self.job.workers.total(correct, loss, samples)
        self.module.train()
        what = f"loss {loss / max(samples, 1):.4g}"
        if self.objective.labelled is not None:
            what = f"top-1 {100 * correct / max(samples, 1):.2f} %, {what}"
        self.job.progress(f"held-out data: {what}")
        return int(correct), -loss

    def _feeds(self, batch: Batch) -> dict[str, Tensor]:
        feeds = {name: to_torch(array).to(self.job.device) for name, array in batch.inputs.items()}
        return {
            name: feed.to(memory_format=torch.channels_last) if feed.dim() == 4 else feed
            for name, feed in feeds.items()
        }

    def _run(self, network: Network, feeds: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
        """Outputs in the types that the graph declares, whatever the precision inside."""
        with self.precision.autocast():
            outputs = network(**feeds)
        return outputs if isinstance(outputs, tuple) else (outputs,)

    def _labels(self, batch: Batch) -> Tensor | None:
        if batch.labels is None or self.objective.labelled is None:
            return None
        if batch.count and not 0 <= batch.labels.min() <= batch.labels.max() < self.objective.classes:
            wrong = next(label for label in batch.labels if not 0 <= label < self.objective.classes)
            raise DataError(
                f"label {wrong} in the data, but the model has classes 0 to {self.objective.classes - 1}"
            )
        return torch.from_numpy(batch.labels).to(self.job.device)

    def _copy(self) -> dict[str, Tensor]:
        return {name: value.detach().clone() for name, value in self.module.state_dict().items()}


def _optimizer(parameters: Sequence[nn.Parameter], settings: Settings) -> torch.optim.Optimizer:
    """Weight decay is for matrices and kernels; it would pull biases, normalization and the centroids of a
    codebook to 0.
    """
    groups = [
        {
            "params": [parameter for parameter in parameters if parameter.dim() > 1],
            "weight_decay": settings.weight_decay,
        },
        {"params": [parameter for parameter in parameters if parameter.dim() <= 1], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if settings.optimizer == "sgd":
        return torch.optim.SGD(
            groups, lr=settings.peak_rate, momentum=settings.momentum, nesterov=settings.momentum > 0
        )
    return torch.optim.AdamW(groups, lr=settings.peak_rate, betas=(settings.momentum, BETA), fused=True)


def _count(data: DataSource, size: int) -> int:
    """Samples of the data; read through once if it does not know."""
    return data.total if data.total is not None else sum(batch.total for batch in data.batches(size))


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"
