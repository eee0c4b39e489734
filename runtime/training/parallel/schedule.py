"""One worker of a pipeline: its stage, run micro-batch by micro-batch in the order of a schedule of
torch.distributed.pipelining.

    gpipe   all micro-batches forward, then all backward (Huang et al., "GPipe", NeurIPS 2019)
    1f1b    one forward, one backward, so that a stage keeps activations of few micro-batches (Narayanan et al., "PipeDream", SOSP 2019)

Of S stages and m micro-batches each worker is idle for (S - 1) / (m + S - 1) of the time at least.
"""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.pipelining import PipelineStage, Schedule1F1B, ScheduleGPipe

from onnx_lathe.errors import PassError
from onnx_lathe.runtime.torch_bridge import GraphModule
from onnx_lathe.runtime.training.loop.lesson import Feeds, Lesson, Outputs
from onnx_lathe.runtime.training.memory.budget import measure
from onnx_lathe.runtime.training.parallel.cuts import cuts
from onnx_lathe.runtime.training.parallel.gradients import Traffic
from onnx_lathe.runtime.training.parallel.stages import Reading, Sent, Stage, keyword, owners

BACKWARD = 2.0
"""Time of a backward pass by that of the forward pass: for each product of a layer there are two."""


@dataclass(frozen=True)
class Place:
    """Where a worker stands: `stage` of `stages`, in a pipeline whose workers are `group`; `data` workers
    with the same stage are `replicas`. `most`: the largest of numbers over all workers.
    """

    stage: int
    stages: int
    group: Any
    data: int
    replicas: Any
    device: torch.device
    most: Callable[..., list[float]]

    @property
    def is_last(self) -> bool:
        return self.stage == self.stages - 1

    def sent(self, thing: Any, stage: int) -> Any:
        """What the worker of that stage gives; all workers of the pipeline call it."""
        box = [thing]
        dist.broadcast_object_list(
            box, dist.get_global_rank(self.group, stage), group=self.group, device=self.device
        )
        return box[0]


@dataclass
class _Clock:
    """How long a worker computes, of the time that its steps take."""

    device: torch.device
    busy: float = 0.0
    total: float = 0.0

    def now(self) -> float:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
        return time.perf_counter()

    @contextmanager
    def computing(self) -> Iterator[None]:
        began = self.now()
        yield
        self.busy += self.now() - began


class _TimedStage(PipelineStage):
    clock: _Clock

    def forward_one_chunk(self, *args: Any, **kwargs: Any) -> Any:
        with self.clock.computing():
            return super().forward_one_chunk(*args, **kwargs)

    def backward_one_chunk(self, *args: Any, **kwargs: Any) -> Any:
        with self.clock.computing():
            return super().backward_one_chunk(*args, **kwargs)


@dataclass
class _Batch:
    """What the last stage compares its outputs with, by micro-batch, and the losses that it finds."""

    labels: Sequence[Tensor | None] = ()
    taught: Sequence[Outputs | None] = ()
    sizes: Mapping[int, Tensor] = field(default_factory=dict)
    weight: float = 1.0
    losses: dict[int, Tensor] = field(default_factory=dict)


@dataclass(frozen=True)
class _Runner:
    """A schedule for batches of `number` micro-batches of one size, and what its stage knows of their shapes."""

    schedule: Any
    number: int
    given: Mapping[int, Any]


class Pipelined:
    """The module's trained weights, each held by one worker of a pipeline; `micro` pieces of a batch of
    `batch` samples pass through it.

    Raises PassError for a module that no pipeline can run, or that has too few places to cut. Every worker
    calls what is called here.
    """

    def __init__(
        self, module: GraphModule, lesson: Lesson, place: Place, batch: int, micro: int, order: str
    ) -> None:
        if module.per_call or module.fixed_batch is not None:
            size = (
                "one call for each sample" if module.per_call else f"{module.fixed_batch} samples at a time"
            )
            raise PassError(
                f"--parallel pipeline: the graph works for {size} only, as its own shapes say, and micro-batches have "
                "other sizes; export it with an open batch, or train without a pipeline"
            )
        self.module, self.lesson, self.place, self.order = module, lesson, place, order
        self.micro, self.largest = micro, max(1, batch // micro)
        reading = Reading(module)
        self.weights = reading.weights()
        self.bounds = self._bounds(reading)
        self.owners = owners(self.weights, self.bounds)
        first, end = self.bounds[place.stage : place.stage + 2]
        mine = [
            weight for weight, owner in zip(self.weights, self.owners, strict=True) if owner == place.stage
        ]
        self.stage = Stage(reading, first, end, mine, lesson.precision.autocast)
        self.mine = [weight.parameter for weight in mine]
        self.traffic, self.clock = Traffic(place.data), _Clock(place.device)
        self.runners: dict[tuple[int, int], _Runner] = {}
        self.batch = _Batch()
        self.steps = 0
        self.crossing_bytes = 0.0
        # Every worker's scaler has to have scaled something before it takes a step.
        lesson.precision.scaled(torch.zeros((), device=place.device))
        for number, cut in enumerate(self.bounds[1:-1], 1):
            lesson.progress(f"stage {number + 1} of {place.stages} begins with node '{self._node(cut)}'")

    def _node(self, number: int) -> str:
        node = self.module.plan.steps[number].node
        return node.name or node.output[0]

    def _bounds(self, reading: Reading) -> list[int]:
        """0, the first steps of the other stages, and the number of steps."""
        count, stages, marked = len(reading.steps), self.place.stages, set[int]()
        for weight in self.weights:
            marked.add(weight.first)
        if len(marked) < stages:
            raise PassError(
                f"--parallel pipeline={stages}: each stage needs a layer with weights to train, and the model has "
                f"{len(marked)}; give pipeline={len(marked)} or less"
            )
        layers = [number in marked for number in range(count)]
        tied = [(weight.first, weight.last) for weight in self.weights if weight.first < weight.last]
        seconds, crossing, after = self._measured(reading)
        found = cuts(seconds, crossing, layers, stages, tied, after)
        if found is None:
            widest = max(self.weights, key=lambda weight: weight.last - weight.first)
            raise PassError(
                f"--parallel pipeline={stages}: weight '{widest.name}' is read from node '{self._node(widest.first)}' to node "
                f"'{self._node(widest.last)}', and one stage has to hold it; give fewer stages"
            )
        return [0, *found, count]

    def _measured(self, reading: Reading) -> tuple[list[float], list[float], float]:
        """(seconds and bytes by step, seconds of the original model in units of a forward and a backward
        pass), of one micro-batch, the same at all workers.
        """
        lesson = self.lesson
        feeds, labels = lesson.sample(self.largest)
        taught, taking = None, 0.0
        if lesson.taught is not None:
            taught = lesson.taught(feeds)
            began = self.clock_now()
            lesson.taught(feeds)
            taking = (self.clock_now() - began) / (1 + BACKWARD)

        def run() -> Tensor:
            with lesson.precision.autocast():
                outputs = self.module(**feeds)
            return lesson.objective(outputs if isinstance(outputs, tuple) else (outputs,), taught, labels)

        profile = measure(self.module.train(), run)
        times = reading.times(profile)
        numbers = self.place.most(*times, *map(float, reading.crossing(profile)), taking)
        return numbers[: len(times)], numbers[len(times) : -1], numbers[-1]

    def clock_now(self) -> float:
        return _Clock(self.place.device).now()

    # ---- a step

    def step(self, feeds: Feeds, labels: Tensor | None, weight: float) -> Tensor:
        """The backward pass of a batch: afterwards the stage's weights have the gradients of the loss times
        `weight`, their mean over the replicas. The mean of the results over all workers is the loss.

        A batch that is not of `batch` samples passes in as many micro-batches as it takes for them to be
        alike, and not larger than those of others.
        """
        count = len(next(iter(feeds.values())))
        size = next(size for size in range(min(self.largest, count), 0, -1) if count % size == 0)
        runner = self._runner(size, count // size, feeds)
        began, measured = self.clock.now(), (self.clock.busy, self.clock.total)
        if self.place.is_last:
            self.batch = self._compared(feeds, labels, weight, runner.number)
        samples = {
            keyword(slot): feeds[name]
            for name in self.module.inputs
            if keyword(slot := self.module.plan.slots[name]) in self.stage.feeds
        }
        self.stage.given = runner.given
        targets = {"target": torch.arange(runner.number)} if self.place.is_last else {}
        try:
            runner.schedule.step(**samples, **targets, return_outputs=False)
        except RuntimeError as error:
            # What a stage raised is the cause of one that describes its tensors.
            if error.__cause__ is None:
                raise
            raise error.__cause__ from None
        self.clock.total += self.clock.now() - began
        self.steps += 1
        if self.steps == 1:  # the first one is slower
            self.clock.busy, self.clock.total = measured
        self._reduce()
        if not self.place.is_last:
            return torch.zeros((), dtype=torch.float64, device=self.place.device)
        losses = [self.batch.losses[number] for number in range(runner.number)]
        return torch.stack(losses).double().mean() * self.place.stages

    def _compared(self, feeds: Feeds, labels: Tensor | None, weight: float, number: int) -> _Batch:
        lesson = self.lesson
        pieces: Sequence[Tensor | None] = [None] * number if labels is None else labels.chunk(number)
        if lesson.taught is None:
            return _Batch(pieces, [None] * number, {}, weight)
        with self.clock.computing():
            parts = {name: tensor.chunk(number) for name, tensor in feeds.items()}
            taught = [
                lesson.taught({name: part[index] for name, part in parts.items()}) for index in range(number)
            ]
            whole = [torch.stack(outputs) for outputs in zip(*taught, strict=True)]
        return _Batch(
            pieces, taught, lesson.objective.sizes(whole, lambda value: self._mean(weight * value)), weight
        )

    def _mean(self, value: Tensor) -> Tensor:
        """Over the replicas of this stage."""
        if self.place.data == 1:
            return value
        value = value / self.place.data
        dist.all_reduce(value, group=self.place.replicas)
        return value

    def _loss(self, outputs: Any, target: Tensor) -> Tensor:
        with self.clock.computing():
            number, batch = int(target), self.batch
            loss = batch.weight * self.lesson.objective.loss(
                outputs if isinstance(outputs, tuple) else (outputs,),
                batch.taught[number],
                batch.labels[number],
                batch.sizes,
            )
            batch.losses[number] = loss.detach()
            return self.lesson.precision.scaled(loss)

    def _reduce(self) -> None:
        gradients = [parameter.grad for parameter in self.mine if parameter.grad is not None]
        if self.place.data > 1:
            # DistributedDataParallel around a stage fails as soon as it divides its buckets anew.
            flat = self._mean(torch.cat([gradient.flatten() for gradient in gradients]))
            for gradient, mean in zip(
                gradients, flat.split([gradient.numel() for gradient in gradients]), strict=True
            ):
                gradient.copy_(mean.view(gradient.shape))
            self.traffic.reduced(flat.numel() * flat.element_size())
        if self.lesson.precision.name == "float16":
            # All stages have to leave out the step that one of them leaves out.
            finite = all(bool(gradient.isfinite().all()) for gradient in gradients)
            if self.place.most(float(not finite))[0]:
                gradients[0].fill_(torch.inf)

    def norm(self, own: Tensor) -> Tensor:
        """Of all stages' gradients, from that of the stage's own."""
        square = own.square()
        dist.all_reduce(square, group=self.place.group)
        return square.sqrt()

    def _runner(self, size: int, number: int, feeds: Feeds) -> _Runner:
        if (size, number) not in self.runners:
            first = {keyword(self.module.plan.slots[name]): feeds[name][:size] for name in self.module.inputs}
            before = mine = sent = Sent()
            for number_there in range(self.place.stages):
                here = number_there == self.place.stage
                if here:
                    before, self.stage.given = sent, sent.numbers
                    mine = self.stage.describe(before.made(self.place.device), first)
                sent = self.place.sent(mine if here else None, number_there)
            if not self.runners:
                self.crossing_bytes = float(number * sum(mine.sizes_bytes))
            stage = _TimedStage(
                self.stage,
                self.place.stage,
                self.place.stages,
                self.place.device,
                input_args=before.made(self.place.device),
                output_args=mine.made(self.place.device),
                group=self.place.group,
            )
            stage.clock = self.clock
            # 1F1B fills the pipeline first; a last batch may be too small for that.
            kind = Schedule1F1B if self.order == "1f1b" and number >= self.place.stages else ScheduleGPipe
            self.runners[size, number] = _Runner(
                kind(stage, number, loss_fn=self._loss), number, before.numbers
            )
        return self.runners[size, number]

    # ---- the whole module

    def gather(self) -> None:
        """Every worker's module gets the weights of all stages, on the device."""
        for weight, owner in zip(self.weights, self.owners, strict=True):
            parameter = weight.parameter
            parameter.data = parameter.data.to(self.place.device)
            value = parameter.data.contiguous()
            dist.broadcast(value, dist.get_global_rank(self.place.group, owner), group=self.place.group)
            parameter.data.copy_(value)

    def shed(self) -> None:
        """Weights of the other stages go to the processor's memory."""
        for weight, owner in zip(self.weights, self.owners, strict=True):
            if owner != self.place.stage:
                weight.parameter.data = weight.parameter.data.cpu()

    def forget(self, optimizer: torch.optim.Optimizer) -> None:
        """The optimizer keeps nothing of the other stages' weights."""
        own = set(map(id, self.mine))
        for parameter in [parameter for parameter in optimizer.state if id(parameter) not in own]:
            del optimizer.state[parameter]

    def metrics(self) -> dict[str, float]:
        """stages; idle_share: of the workers' time, first step left out, and the least there can be;
        weight_bytes of each stage; crossing_bytes by the node before which a cut is: per step, both ways,
        without the gradients' mean over replicas.
        """
        stages, number = self.place.stages, self.micro
        idle = [0.0] * stages
        idle[self.place.stage] = 1 - self.clock.busy / max(self.clock.total, 1e-9)
        crossed = [0.0] * stages
        crossed[self.place.stage] = self.crossing_bytes
        found = self.place.most(*idle, *crossed)
        metrics = {
            "stages": float(stages),
            "idle_share": sum(found[:stages]) / stages,
            "idle_share_least": (stages - 1) / (number + stages - 1),
        }
        for stage in range(stages):
            metrics[f"weight_bytes[stage {stage + 1}]"] = float(
                sum(
                    weight.parameter.nbytes
                    for weight, owner in zip(self.weights, self.owners, strict=True)
                    if owner == stage
                )
            )
        for cut, size in zip(self.bounds[1:-1], found[stages:-1], strict=True):
            metrics[f"crossing_bytes[{self._node(cut)}]"] = size
        return metrics
