"""A server of weights: workers send gradients when they have them, each computed from the weights that it got last, and
get the newest ones back. Nobody waits for the slowest, and gradients may be of older weights.

| algorithm | gradients of an update | late ones |
|---|---|---|
| asynchronous SGD: Dean et al., "Large Scale Distributed Deep Networks", NeurIPS 2012 (Downpour) | 1 | count |
| n-softsync: Zhang, Gupta, Lian and Liu, "Staleness-aware async-SGD", IJCAI 2016 | n | count, with a smaller rate if asked for |
| backup workers: Chen et al., "Revisiting Distributed Synchronous SGD", ICLR workshop 2016 | N of N + b | are dropped |

The staleness of a gradient is the number of updates since the weights that it was computed from. With late=drop a
worker whose gradient was taken waits for the update; one whose gradient came late goes on at once.
"""

import json
import threading
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch._C._distributed_c10d import Store

from onnx_lathe.errors import PassError
from onnx_lathe.runtime.data import Batch
from onnx_lathe.runtime.data.source import Place
from onnx_lathe.runtime.torch_bridge import GraphModule
from onnx_lathe.runtime.training.parallel.grid import Server as Policy
from onnx_lathe.runtime.training.parallel.messages import Coding, Line, Vector

_NOT_SAID = "ended without a word"

WORD_S = 10.0
"""How long whoever started a worker may take to say what became of it, and whether another one comes."""


@dataclass(frozen=True)
class Pushed:
    """A worker's gradients: the mean over `samples`, and their loss; of the weights of update `version`. The weights at
    the places `unreached` have none.
    """

    version: int
    samples: int
    loss: float
    gradients: Tensor
    unreached: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Published:
    """What workers get after an update: weights, and of the `generation` of stand-ins these, as bytes."""

    version: int
    weights: Tensor
    generation: int
    stand_ins: Tensor


class Server:
    """Holds the weights of `module`. One thread for each worker waits for what it sends; the training's own thread
    takes the steps: `gradients`, which publishes first, then `updated`. `expected`: the workers that will come, number ->
    rank; one that takes the place of another has the same rank and another number.
    """

    def __init__(
        self,
        module: GraphModule,
        vector: Vector,
        coding: Coding,
        policy: Policy,
        expected: Mapping[int, int],
    ) -> None:
        self.module, self.vector, self.coding, self.policy = module, vector, coding, policy
        self.changed = threading.Condition()
        self.present = dict(expected)
        """Number -> rank of workers that an update may wait for: those of the start, and others once they speak."""
        self.coming: dict[int, int] = {}
        """Number -> rank of those that were started in the place of others and have not spoken."""
        self.returning: set[int] = set()
        """Ranks in whose place another will be started."""
        self.unsaid: dict[int, float] = {}
        """Number of a worker that is lost -> until when it may be said whether another will be started."""
        self.lost: dict[int, tuple[int, str]] = {}
        """Number -> (rank, why)."""
        self.returned: Counter[int] = Counter()
        """How often one came in the place of another, by rank."""
        self.closed, self.updating = False, False
        """`updating`: an update has its gradients, and its weights are not published yet."""
        self.failure = ""
        self.version, self.count, self.samples, self.share = 0, 0, 0.0, 0.0
        self.sum = torch.zeros(len(vector), dtype=vector.dtype)
        self.loss = 0.0
        self.unreached = frozenset[int]()
        """Places of the weights that none of the next update's gradients reaches."""
        self.figures: dict[str, float] = {}
        """What worker 1 has for the report."""
        self.epoch = 0
        """The one that the training begins, or goes on with."""
        self.ages: Counter[int] = Counter()
        """Staleness of the gradients that the next update has, and in `staleness` of those of all updates."""
        self.staleness: Counter[int] = Counter()
        self.received, self.dropped = 0, 0
        self.sent_bytes = 0
        self.times = [0.0, 0.0]
        """Of the first update and of the newest."""
        self.published: Published | None = None
        self._known: dict[str, Any] = {}

    # ---- the training's thread

    def batches(self, samples: int, size: int) -> list[Batch]:
        """A batch without data for each update of an epoch, which takes `size` samples from each of `wait` workers."""
        step = self.policy.wait * size
        return [
            Batch({}, place=Place(0, 0, min(step, samples - start), 1)) for start in range(0, samples, step)
        ]

    def gradients(self, optimizer: torch.optim.Optimizer) -> Tensor:
        """Gives workers the weights and stand-ins as they are now, waits until an update has its gradients, and puts
        their mean into the module; with `aware` the optimizer's rate is divided by their staleness. Returns the mean
        loss. Raises PassError if no worker is left, and none will come.
        """
        self.publish()
        with self.changed:
            while not (self.full or self.failure) and (left := self._patience()) != 0:
                self.changed.wait(left)
            if self.failure:
                raise PassError(self.failure)
            if not self.full:
                who = "; ".join(f"worker {rank}, {why}" for rank, why in self.lost.values())
                raise PassError(f"all workers were lost ({who}); the model is left as it was")
            self.updating = True
            self.vector.put_gradients(self.sum / self.share, self.unreached)
            # A mean weighted by 1 / staleness, with the mean of these as a factor of the rate, is Zhang's sum; but the
            # length that `clip` compares is not that of gradients which are divided already.
            for group in optimizer.param_groups:
                group["lr"] *= self.share / self.samples
            return torch.tensor(self.loss / self.samples)

    def _patience(self) -> float | None:
        """Seconds for which a worker may be hoped for; None: for ever."""
        if self.present or self.coming or self.returning:
            return None
        return max(0.0, max(self.unsaid.values(), default=0.0) - time.monotonic())

    def updated(self) -> None:
        """The update has been made. Workers get its weights with what a pass imposes on them for the next one, which is
        not known yet.
        """
        with self.changed:
            self.version += 1
            self.count, self.samples, self.share, self.loss = 0, 0.0, 0.0, 0.0
            self.sum.zero_()
            self.staleness += self.ages
            self.ages.clear()
            self.times = [self.times[0] or time.perf_counter(), time.perf_counter()]

    def publish(self) -> None:
        """Gives workers the weights and stand-ins that the module has now, unless they have them."""
        with self.changed:
            if self.published is None or self.published.version < self.version:
                self._publish()
                self.updating = False

    def _publish(self) -> None:
        with self.changed:
            generation = 0 if self.published is None else self.published.generation
            stand_ins = (
                torch.empty(0, dtype=torch.uint8) if self.published is None else self.published.stand_ins
            )
            given = self.module.imposed()
            if not _is_same(given, self._known):
                generation, stand_ins = generation + 1, packed(given)
                self._known = given
            self.published = Published(self.version, self.vector.weights(), generation, stand_ins)
            self.changed.notify_all()

    def close(self) -> None:
        """From now on workers are told to end."""
        with self.changed:
            self.closed = True
            self.changed.notify_all()

    # ---- the workers' threads

    @property
    def full(self) -> bool:
        """Whether an update has its gradients: `wait` of them, or one of each worker that is left."""
        return 0 < self.count >= min(self.policy.wait, len(self.present))

    def join(self, number: int, rank: int) -> None:
        """A worker comes, at any time."""
        with self.changed:
            self.returning.discard(rank)
            if number not in self.present:
                self.returned[rank] += 1
                self.coming[number] = rank

    def arrive(self, number: int) -> None:
        """A worker spoke: from now on updates wait for it, who did not while it was starting."""
        with self.changed:
            if number in self.coming:
                self.present[number] = self.coming.pop(number)
                self.changed.notify_all()

    def lose(self, number: int, why: str = _NOT_SAID, again: bool = False) -> None:
        """A worker is gone. Whoever knows why may come second, and whether another will be started (`again`)."""
        with self.changed:
            if not self.closed and (number in self.present or number in self.coming):
                rank = self.present.pop(number, 0) or self.coming.pop(number)
                self.lost[number] = rank, why
                self.unsaid[number] = time.monotonic() + WORD_S
            elif number in self.lost and why != _NOT_SAID:
                self.lost[number] = self.lost[number][0], why
            if number in self.lost and why != _NOT_SAID:
                self.unsaid.pop(number, None)
                if again:
                    self.returning.add(self.lost[number][0])
            self.changed.notify_all()

    def lose_machine(self, first: int, workers: int, why: str) -> None:
        """The workers of these ranks are gone."""
        there = range(first, first + workers)
        with self.changed:
            for number, rank in (self.present | self.coming).items():
                if rank in there:
                    self.lose(number, why)
            for number, (rank, _) in self.lost.items():
                if rank in there:
                    self.unsaid.pop(number, None)
            self.returning.difference_update(there)
            self.changed.notify_all()

    def fail(self, why: str) -> None:
        """A worker met a mistake that all others would meet, too."""
        with self.changed:
            self.failure = why
            self.changed.notify_all()

    def serve(self, store: Store, number: int) -> None:
        """Answers a worker until it is gone, or the training over."""
        try:
            line, unreached = Line(store, line_of(number), 0), frozenset[int]()
            while True:
                (version, samples, loss, generation, _), (content, note) = line.receive()
                self.arrive(number)
                dropped = False
                if len(note):
                    told = json.loads(note.numpy().tobytes())
                    unreached = frozenset(told["unreached"])
                    if self.present.get(number) == 1:
                        self.figures = told["figures"]
                if samples:
                    gradients = self.coding.decode(content)
                    pushed = Pushed(int(version), int(samples), loss, gradients, unreached)
                    dropped = self.take(pushed, number, len(content))
                now = self._answer()
                if now is None:
                    line.send([1.0])
                    return
                newer = [now.stand_ins] if now.generation != generation else []
                line.send([0.0, now.version, now.generation, dropped, self.epoch], now.weights, *newer)
        except RuntimeError:
            self.lose(number)

    def take(self, pushed: Pushed, number: int, size_bytes: int = 0) -> bool:
        """Takes a worker's gradients, or drops them; returns when it may go on, and whether they were dropped."""
        late = self.policy.late
        with self.changed:
            self.changed.wait_for(lambda: not (self.full or self.updating) or self.closed)
            if self.closed:
                return False
            self.sent_bytes += size_bytes
            self.received += 1
            staleness = self.version - pushed.version
            if staleness and late == "drop":
                self.dropped += 1
                return True
            self.used(pushed, number, staleness)
            if self.full:
                self.changed.notify_all()
            if self.full or late == "drop":
                version = self.version
                self.changed.wait_for(lambda: (self.version > version and not self.updating) or self.closed)
            return False

    def used(self, pushed: Pushed, number: int, staleness: int) -> None:
        """Adds gradients to the next update."""
        share = pushed.samples / max(1, staleness) if self.policy.aware else float(pushed.samples)
        self.sum.add_(pushed.gradients, alpha=share)
        self.unreached = pushed.unreached & (self.unreached if self.count else pushed.unreached)
        self.share += share
        self.samples += pushed.samples
        self.loss += pushed.samples * pushed.loss
        self.ages[staleness] += 1
        self.count += 1

    def _answer(self) -> Published | None:
        with self.changed:
            self.changed.wait_for(lambda: self.published is not None or self.closed)
            return None if self.closed else self.published

    # ---- the report

    def metrics(self) -> dict[str, float]:
        """updates, updates_per_second (from the first to the last, the scoring of held-out data among them),
        staleness_mean and how many gradients of updates had which (staleness[0], ...), dropped_gradients, lost_workers and which
        (lost[worker 2]: how often), bytes_per_step that a worker sends, gradient_ratio: uncompressed / sent, and what
        a worker says of its memory.
        """
        used, seconds = sum(self.staleness.values()), self.times[1] - self.times[0]
        found = self.figures | {"updates": float(self.version)}
        if self.version > 1 and seconds > 0:
            found["updates_per_second"] = (self.version - 1) / seconds
        if used:
            found["staleness_mean"] = sum(age * count for age, count in self.staleness.items()) / used
        found |= {f"staleness[{age}]": float(count) for age, count in sorted(self.staleness.items())}
        found |= {"dropped_gradients": float(self.dropped), "lost_workers": float(len(self.lost))}
        found |= {
            f"lost[worker {rank}]": float(times)
            for rank, times in sorted(Counter(rank for rank, _ in self.lost.values()).items())
        }
        if self.sent_bytes:
            each = self.sent_bytes / self.received
            found["bytes_per_step"] = each
            found["gradient_ratio"] = len(self.vector) * self.vector.dtype.itemsize / each
        return found

    def losses(self) -> list[str]:
        """A sentence for each worker that was lost."""
        back, told = Counter(self.returned), []
        for rank, why in self.lost.values():
            came = " and came back" if back[rank] > 0 else ""
            back[rank] -= 1
            told.append(f"lost worker {rank}, which {why}{came}; the others went on without it")
        return told


def line_of(number: int) -> str:
    """The name of the line to worker `number`."""
    return f"line{number}"


def packed(stand_ins: dict[str, np.ndarray]) -> Tensor:
    """Bytes that `unpacked` reads."""
    content = BytesIO()
    torch.save({name: torch.tensor(array) for name, array in stand_ins.items()}, content)
    return torch.frombuffer(bytearray(content.getvalue()), dtype=torch.uint8)


def unpacked(content: Tensor) -> dict[str, np.ndarray]:
    found = torch.load(BytesIO(content.numpy().tobytes()), weights_only=True)
    return {name: tensor.numpy() for name, tensor in found.items()}


def _is_same(given: dict[str, np.ndarray], known: dict[str, np.ndarray]) -> bool:
    """Whether nothing was imposed since; what may be written to may have changed."""
    return given.keys() == known.keys() and all(
        known[name] is array and not array.flags.writeable for name, array in given.items()
    )
