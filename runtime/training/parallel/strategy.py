"""How a training is shared out among its workers, as a hook sees it in `job.workers`.

    network = job.workers.parallel(module)                      gradients become the mean over all workers
    for batch in job.data.batches(64):                          64 for each worker, no sample twice
        loss = ... the mean over the batch ...
        (loss * batch.weight).backward()                        weight differs from 1 where a last batch cannot be divided evenly

Two workers with batches of B then take the steps that one worker with batches of 2B takes. With one worker
all this changes nothing.
"""

import hashlib
import io
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from onnx_lathe.errors import PassError
from onnx_lathe.runtime.data import DataSource
from onnx_lathe.runtime.data.source import Share
from onnx_lathe.runtime.torch_bridge import GraphModule
from onnx_lathe.runtime.training.loop.precision import gradient_norm
from onnx_lathe.runtime.training.parallel.gradients import Traffic, communication_hook
from onnx_lathe.runtime.training.parallel.workers import Group, LaunchedGroup
from onnx_lathe.runtime.training.state import JobState

if TYPE_CHECKING:
    from onnx_lathe.runtime.training.loop.lesson import Lesson
    from onnx_lathe.runtime.training.parallel.client import Client
    from onnx_lathe.runtime.training.parallel.schedule import Pipelined
    from onnx_lathe.runtime.training.parallel.server import Server

DRIFT = 1e-3
"""Largest difference of a weight between workers, relative to the largest of its tensor: two kinds of
processors round differently.
"""


class Strategy:
    """Nothing is shared out: a training without `--launch`."""

    def __init__(self, group: Group | None = None) -> None:
        self.group = Group() if group is None else group

    @property
    def rank(self) -> int:
        """Number of this process among `size`; worker 0 speaks for all."""
        return self.group.rank

    @property
    def size(self) -> int:
        return self.group.size

    def place(
        self,
        module: GraphModule,
        data: DataSource,
        shaped: bool,
        progress: Callable[[str], None],
        teacher: GraphModule | None = None,
        saved: JobState | None = None,
    ) -> None:
        """Has this worker run its share of the module's layers, and of the original's (`teacher`), before the module
        trains or moves to a device, and before `share` and `state`. `shaped` as in RetrainJob; `saved`: what an
        interrupted training would have left.
        """

    def parallel(self, module: nn.Module) -> Callable[..., Any]:
        """What to call in place of `module` so that its gradients are those of all workers, exchanged as
        the option `gradients` says.
        """
        return module

    def share(self, source: DataSource) -> DataSource:
        """This worker's part of every batch. `job.data` is one already."""
        return source

    def judged(self, source: DataSource) -> DataSource:
        """This worker's part of data that all workers score the same whole module on."""
        return self.share(source)

    def pipeline(self, module: GraphModule, lesson: "Lesson", shaped: bool) -> "Pipelined | None":
        """What takes the built-in hook's steps in place of a network; None: the hook does. `shaped`: whether
        a pass acts while training runs.
        """
        return None

    def server(self, module: GraphModule) -> "Server | None":
        """What gives the built-in hook the gradients of its steps in place of data; None: it computes them."""
        return None

    def client(self, module: GraphModule) -> "Client | None":
        """Whom the built-in hook computes gradients for, and takes no step; None: it takes them."""
        return None

    def gather(self) -> None:
        """Brings every weight of the module here, if others train it."""

    def whole(self) -> AbstractContextManager[None]:
        """Within, the module has the newest values of all its weights."""
        return nullcontext()

    def merged(self, optimizer: dict[str, Any]) -> dict[str, Any]:
        """An optimizer's state_dict, with what it is at the workers that train other weights."""
        return optimizer

    def total(self, *values: float) -> list[float]:
        """Each value, such as a count of samples, summed over all workers; every worker has to call it."""
        return self.group.total(*values)

    def most(self, *values: float) -> list[float]:
        """The largest of each value over all workers; every worker has to call it."""
        return self.group.most(*values)

    def mean(self, value: Tensor) -> Tensor:
        """The mean of the workers' values, without gradient; every worker has to call it."""
        return self.group.mean(value)

    def gradient_norm(self, parameters: Iterable[Tensor]) -> Tensor:
        """The length of all gradients, also of those that other workers have; every worker has to call it."""
        return gradient_norm(parameters)

    def metrics(self) -> dict[str, float]:
        """What compression of gradients is measured by; empty for one worker."""
        return {}

    def state(self, state: JobState) -> JobState:
        """The same state, of which one worker's file holds good for all."""
        return state

    def begin(
        self,
        model: onnx.ModelProto,
        settings: Mapping[str, Any],
        samples: int | None,
        weights: Sequence[Tensor],
    ) -> None:
        """Makes sure that all workers start from the same. Raises PassError if they were given different
        jobs.
        """

    def agreed(self, values: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Worker 0's values. Raises PassError if another's differ, at all workers."""
        return dict(values)


class DataParallel(Strategy):
    """Every worker has the whole model and a part of every batch.

    `settings` are the options of a training pass; `gradients` and those beside it count, and `precision`.
    Raises UsageError for options that do not go together.
    """

    group: LaunchedGroup

    def __init__(self, group: LaunchedGroup, settings: Mapping[str, Any]) -> None:
        super().__init__(group)
        self.traffic = Traffic(group.size)
        self.hook = communication_hook(
            settings["gradients"],
            settings["gradient_rank"],
            settings["gradient_threshold"],
            settings["precision"],
            self.traffic,
        )

    def parallel(self, module: nn.Module) -> Callable[..., Any]:
        # A static graph allows weights that the loss does not depend on, and checkpoints. Buffers are
        # constants, or made alike by `agreed`.
        with warnings.catch_warnings():
            # broadcast_buffers gets another name in PyTorch 2.13, which 2.6 does not know
            warnings.simplefilter("ignore", FutureWarning)
            network = DistributedDataParallel(
                module, broadcast_buffers=False, init_sync=False, static_graph=True
            )
        network.register_comm_hook(None, self.hook)
        return network

    def share(self, source: DataSource) -> DataSource:
        return Share(source, self.rank, self.size, self.group.alike)

    def metrics(self) -> dict[str, float]:
        return {"workers": float(self.size)} | self.traffic.metrics()

    def state(self, state: JobState) -> JobState:
        return SharedState(state, self.group)

    def begin(
        self,
        model: onnx.ModelProto,
        settings: Mapping[str, Any],
        samples: int | None,
        weights: Sequence[Tensor],
    ) -> None:
        other = self.group.first_unlike(job_facts(model, settings, samples))
        if other is not None:
            raise PassError(
                f"worker {other} has another model, other options or other data than worker 0; run the same command everywhere"
            )
        for weight in weights:
            self.group.copy_first(weight)

    def agreed(self, values: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        first = {}
        apart = 0.0
        for name, mine in values.items():
            content = self.group.sent(np.ascontiguousarray(mine).tobytes(), 0)
            first[name] = np.frombuffer(content, mine.dtype).reshape(mine.shape).copy()
            apart = max(apart, 0.0 if content == mine.tobytes() else _difference(mine, first[name]))
        if self.most(float(not apart <= DRIFT))[0]:
            raise PassError(
                "the workers ended with different weights, so they did not train together; "
                "in the hook, run job.workers.parallel(module) in place of module"
            )
        return first


class SharedState(JobState):
    """Saved once on each machine; loaded from the first worker that has one, so that all go on from the
    same epoch.
    """

    def __init__(self, own: JobState, group: LaunchedGroup) -> None:
        super().__init__(own.path, own.identity, own.shape)
        self.group = group

    def stored(self) -> dict[str, Any] | None:
        mine = super().stored() if self.group.local == 0 else None
        content = io.BytesIO()
        if mine is not None:
            torch.save(mine, content)
        sizes = self.group.gathered(str(len(content.getbuffer())).encode())
        source = next((rank for rank, size in enumerate(sizes) if int(size)), None)
        if source is None:
            return None
        result: dict[str, Any] = torch.load(
            io.BytesIO(self.group.sent(content.getvalue(), source)), map_location="cpu", weights_only=True
        )
        return result

    def save(self, state: dict[str, Any]) -> None:
        if self.group.local == 0:
            super().save(state)

    def delete(self) -> None:
        if self.group.local == 0:
            super().delete()


def job_facts(model: onnx.ModelProto, settings: Mapping[str, Any], samples: int | None) -> bytes:
    """A hash of what all workers have to be given alike."""
    facts = (_structure(model), sorted(settings.items()), samples)
    return hashlib.blake2b(repr(facts).encode(), digest_size=16).digest()


def _structure(model: onnx.ModelProto) -> str:
    """All of a model but the values of its weights, which may differ in their last bits where machines made
    them.
    """
    nodes = [node.SerializeToString(deterministic=True) for node in model.graph.node]
    weights = [(tensor.name, tensor.data_type, *tensor.dims) for tensor in model.graph.initializer]
    return hashlib.blake2b(repr((nodes, weights)).encode()).hexdigest()


def _difference(mine: np.ndarray, first: np.ndarray) -> float:
    """Largest difference, relative to the largest magnitude; 0 where both are NaN."""
    one, other = mine.astype(np.float64), first.astype(np.float64)
    apart = np.where((one == other) | (np.isnan(one) & np.isnan(other)), 0.0, np.abs(one - other))
    largest = np.abs(other[np.isfinite(other)]).max(initial=0.0)
    return float(apart.max(initial=0.0) / max(largest, 1e-30))
