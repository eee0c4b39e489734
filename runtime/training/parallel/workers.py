"""The processes that train one model together, and what they can say to each other: collectives, which every
one of them has to call. A single process is a group of one.
"""

import os
import secrets
import time
from collections.abc import Sequence
from datetime import timedelta

import torch
import torch.distributed as dist
from torch import Tensor
from torch._C._distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from onnx_lathe.errors import UsageError
from onnx_lathe.runtime.training.parallel import lifeline

PATIENCE = timedelta(minutes=30)
"""How long a worker waits for the others, which may compute for long; one whose machine is gone is noticed by
its lifeline."""

MEET = timedelta(minutes=5)
"""How long the workers may take to start, all at once, until they hold their lifelines."""


class Group:
    """A single worker: a training without `--launch`."""

    rank: int = 0
    """Number of this process among `size`."""
    size: int = 1
    local: int = 0
    """Number of this process among those on its machine."""

    def device(self, name: str) -> str:
        """The name of this worker's own device."""
        return name

    def total(self, *values: float) -> list[float]:
        """Each value summed over all workers."""
        return list(values)

    def most(self, *values: float) -> list[float]:
        """The largest of each value over all workers."""
        return list(values)

    def mean(self, value: Tensor) -> Tensor:
        """The mean of the workers' values, without gradient."""
        return value


class LaunchedGroup(Group):
    """One of several workers, which torchrun started: it sets RANK, WORLD_SIZE, LOCAL_RANK and
    LOCAL_WORLD_SIZE, and where they meet.

    `lost` is called in a thread when another machine has fallen silent, and has to end this process. Raises
    UsageError for more workers than the machine has GPUs.
    """

    def __init__(self, cuda: bool, lost: lifeline.Told = lifeline.end) -> None:
        self.local, self.neighbours = (int(os.environ[name]) for name in ("LOCAL_RANK", "LOCAL_WORLD_SIZE"))
        if cuda:
            there = torch.cuda.device_count()
            if self.neighbours > there:
                raise UsageError(
                    f"--launch: {self.neighbours} workers, but this machine has {there} GPUs; give --nproc-per-node={there}"
                )
            torch.cuda.set_device(self.local)
        self.place = torch.device("cuda", self.local) if cuda else torch.device("cpu")
        store, self.rank, self.size = next(rendezvous("env://", timeout=MEET))
        own = PrefixStore(met(store, self.rank, self.size), store)
        lifeline.hold(own, self.rank, lost)
        own.set_timeout(PATIENCE)
        dist.init_process_group(
            "nccl" if cuda else "gloo",
            timeout=PATIENCE,
            store=own,
            rank=self.rank,
            world_size=self.size,
            device_id=self.place if cuda else None,
        )

    def device(self, name: str) -> str:
        return f"cuda:{self.local}" if self.place.type == "cuda" else name

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

    def alike(self, count: int) -> bool:
        """Whether all workers gave the same count."""
        bounds = torch.tensor([count, -count], device=self.place)
        dist.all_reduce(bounds, dist.ReduceOp.MAX)
        return int(bounds[0]) == -int(bounds[1])

    def first_unlike(self, content: bytes) -> int | None:
        """The first worker that gave something else than worker 0."""
        contents = self.gathered(content)
        return next((rank for rank, one in enumerate(contents) if one != contents[0]), None)

    def copy_first(self, tensor: Tensor) -> None:
        """Writes worker 0's values into every worker's tensor."""
        dist.broadcast(tensor.detach(), 0)

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


def met(store: Store, rank: int, size: int) -> str:
    """The name of a part of the store that these workers alone write to.

    torchrun 2.13 keeps one store when it starts workers anew, and they would look for those before them by
    the addresses found there. So each worker asks, under a name of its own, and worker 0 answers until all
    have heard the name that it chose.
    """
    token = secrets.token_hex(8)
    if rank > 0:
        store.set(f"asks/{rank}", token)
        token = store.get(f"answer/{token}").decode()
        store.set(f"heard/{token}/{rank}", "")
        return token
    deadline, missing = time.monotonic() + MEET.total_seconds(), set(range(1, size))
    while missing:
        for other in missing:
            if store.check([f"asks/{other}"]):
                store.set(f"answer/{store.get(f'asks/{other}').decode()}", token)
        missing = {other for other in missing if not store.check([f"heard/{token}/{other}"])}
        if time.monotonic() > deadline:
            raise RuntimeError(f"Timed out waiting for worker {min(missing)} of {size}")
        time.sleep(0.01)
    return token
