"""The processes that train one model together, as a hook sees them.

    network = job.workers.parallel(module)                      gradients become the mean over all workers
    for batch in job.data.batches(64):                          64 for each worker, no sample twice
        loss = ... the mean over the batch ...
        (loss * batch.weight).backward()                        weight differs from 1 where a last batch cannot be divided evenly

Two workers with batches of B then take the steps that one worker with batches of 2B takes. With one worker
all this changes nothing.
"""

import hashlib
import io
import os
import secrets
import time
import warnings
from collections.abc import Callable, Mapping, Sequence
from datetime import timedelta
from typing import Any

import numpy as np
import onnx
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._C._distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous
from torch.nn.parallel import DistributedDataParallel

from onnx_lathe.errors import PassError, UsageError
from onnx_lathe.runtime.data import DataSource
from onnx_lathe.runtime.data.source import Share
from onnx_lathe.runtime.training.parallel.gradients import Traffic, communication_hook
from onnx_lathe.runtime.training.state import JobState

DRIFT = 1e-3
"""Largest difference of a weight between workers, relative to the largest of its tensor: two kinds of
processors round differently.
"""

PATIENCE = timedelta(minutes=30)
"""How long a worker waits for the others."""


class Workers:
    """A single worker: a training without `--launch`."""

    rank: int = 0
    """Number of this process among `size`; worker 0 speaks for all."""
    size: int = 1

    def parallel(self, module: nn.Module) -> Callable[..., Any]:
        """What to call in place of `module` so that its gradients are those of all workers, exchanged as
        the option `gradients` says.
        """
        return module

    def share(self, source: DataSource) -> DataSource:
        """This worker's part of every batch. `job.data` is one already."""
        return source

    def total(self, *values: float) -> list[float]:
        """Each value summed over all workers; every worker has to call it."""
        return list(values)

    def most(self, *values: float) -> list[float]:
        """The largest of each value over all workers; every worker has to call it."""
        return list(values)

    def mean(self, value: Tensor) -> Tensor:
        """The mean of the workers' values, without gradient; every worker has to call it."""
        return value

    def device(self, name: str) -> str:
        """The name of this worker's own device."""
        return name

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


class Group(Workers):
    """One of several workers, which torchrun started: it sets RANK, WORLD_SIZE, LOCAL_RANK and
    LOCAL_WORLD_SIZE, and where they meet.

    `gradients` are the options of that name, and `precision`. Raises UsageError for options that do not go
    together.
    """

    def __init__(self, settings: Mapping[str, Any], cuda: bool) -> None:
        self.local, self.neighbours = (int(os.environ[name]) for name in ("LOCAL_RANK", "LOCAL_WORLD_SIZE"))
        if cuda:
            there = torch.cuda.device_count()
            if self.neighbours > there:
                raise UsageError(
                    f"--launch: {self.neighbours} workers, but this machine has {there} GPUs; give --nproc-per-node={there}"
                )
            torch.cuda.set_device(self.local)
        self.place = torch.device("cuda", self.local) if cuda else torch.device("cpu")
        store, self.rank, self.size = next(rendezvous("env://", timeout=PATIENCE))
        dist.init_process_group(
            "nccl" if cuda else "gloo",
            timeout=PATIENCE,
            store=_met(store, self.rank, self.size),
            rank=self.rank,
            world_size=self.size,
            device_id=self.place if cuda else None,
        )
        self.traffic = Traffic(self.size)
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
        return Share(source, self.rank, self.size, self._alike)

    def total(self, *values: float) -> list[float]:
        return self._reduced(values, dist.ReduceOp.SUM)

    def most(self, *values: float) -> list[float]:
        return self._reduced(values, dist.ReduceOp.MAX)

    def _reduced(self, values: Sequence[float], how: dist.ReduceOp.RedOpType) -> list[float]:
        tensor = torch.tensor(values, dtype=torch.float64, device=self.place)
        dist.all_reduce(tensor, how)
        return [float(value) for value in tensor]

    def mean(self, value: Tensor) -> Tensor:
        tensor = value.detach() / self.size
        dist.all_reduce(tensor)
        return tensor

    def device(self, name: str) -> str:
        return f"cuda:{self.local}" if self.place.type == "cuda" else name

    def metrics(self) -> dict[str, float]:
        return {"workers": float(self.size)} | self.traffic.metrics()

    def state(self, state: JobState) -> JobState:
        return _SharedState(state, self)

    def begin(
        self,
        model: onnx.ModelProto,
        settings: Mapping[str, Any],
        samples: int | None,
        weights: Sequence[Tensor],
    ) -> None:
        facts = (_structure(model), sorted(settings.items()), samples)
        other = self._first_unlike(hashlib.blake2b(repr(facts).encode(), digest_size=16).digest())
        if other is not None:
            raise PassError(
                f"worker {other} has another model, other options or other data than worker 0; run the same command everywhere"
            )
        for weight in weights:
            dist.broadcast(weight.detach(), 0)

    def agreed(self, values: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        first = {}
        apart = 0.0
        for name, mine in values.items():
            content = self.sent(np.ascontiguousarray(mine).tobytes(), 0)
            first[name] = np.frombuffer(content, mine.dtype).reshape(mine.shape).copy()
            apart = max(apart, 0.0 if content == mine.tobytes() else _difference(mine, first[name]))
        if self.total(float(not apart <= DRIFT))[0]:
            raise PassError(
                "the workers ended with different weights, so they did not train together; "
                "in the hook, run job.workers.parallel(module) in place of module"
            )
        return first

    def sent(self, content: bytes, source: int) -> bytes:
        """The content that worker `source` has."""
        size = torch.tensor([len(content)], device=self.place)
        dist.broadcast(size, source)
        tensor = torch.zeros(int(size), dtype=torch.uint8, device=self.place)
        if self.rank == source and content:
            tensor.copy_(torch.frombuffer(bytearray(content), dtype=torch.uint8))
        if len(tensor):
            dist.broadcast(tensor, source)
        return tensor.cpu().numpy().tobytes()

    def gathered(self, content: bytes) -> list[bytes]:
        """What every worker gave, in their order."""
        return [self.sent(content, rank) for rank in range(self.size)]

    def _first_unlike(self, content: bytes) -> int | None:
        contents = self.gathered(content)
        return next((rank for rank, one in enumerate(contents) if one != contents[0]), None)

    def _alike(self, count: int) -> bool:
        bounds = torch.tensor([count, -count], device=self.place)
        dist.all_reduce(bounds, dist.ReduceOp.MAX)
        return int(bounds[0]) == -int(bounds[1])


class _SharedState(JobState):
    """Saved once on each machine; loaded from the first worker that has one, so that all go on from the
    same epoch.
    """

    def __init__(self, own: JobState, group: Group) -> None:
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


def _met(store: Store, rank: int, size: int) -> Store:
    """A part of the store that these workers alone write to.

    torchrun 2.13 keeps one store when it starts workers anew, and they would look for those before them by
    the addresses found there. So each worker asks, under a name of its own, and worker 0 answers until all
    have heard the name that it chose.
    """
    token = secrets.token_hex(8)
    if rank > 0:
        store.set(f"asks/{rank}", token)
        token = store.get(f"answer/{token}").decode()
        store.set(f"heard/{token}/{rank}", "")
        return PrefixStore(token, store)
    deadline, missing = time.monotonic() + PATIENCE.total_seconds(), set(range(1, size))
    while missing:
        for other in missing:
            if store.check([f"asks/{other}"]):
                store.set(f"answer/{store.get(f'asks/{other}').decode()}", token)
        missing = {other for other in missing if not store.check([f"heard/{token}/{other}"])}
        if time.monotonic() > deadline:
            raise RuntimeError(f"Timed out waiting for worker {min(missing)} of {size}")
        time.sleep(0.01)
    return PrefixStore(token, store)


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
