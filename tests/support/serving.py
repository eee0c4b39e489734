"""A server and its workers as threads of one process."""

import threading
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
import torch.distributed as dist

from onnx_lathe.errors import PassError
from onnx_lathe.protocols import Shaping
from onnx_lathe.runtime.data import Batch, DataSource
from onnx_lathe.runtime.torch_bridge import GraphModule
from onnx_lathe.runtime.training import TrainingSetup
from onnx_lathe.runtime.training.parallel.grid import Server as Policy
from onnx_lathe.runtime.training.parallel.server import Pushed, Server, unpacked
from onnx_lathe.runtime.training.parallel.server_parallel import ServerParallel, WorkerParallel
from onnx_lathe.runtime.training.parallel.workers import Group
from onnx_lathe.runtime.training.session import train

LIMIT_S = 60.0


class Noting(Server):
    """Notes of each update whose gradients made it: (number of a worker, how many it had sent before)."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.members: dict[int, list[tuple[int, int]]] = defaultdict(list)
        self.pushed: Counter[int] = Counter()
        self.behind = 0
        """Updates whose workers could not have the stand-ins that it was made with."""

    def gradients(self, optimizer: torch.optim.Optimizer) -> torch.Tensor:
        loss = super().gradients(optimizer)
        assert self.published is not None
        known = unpacked(self.published.stand_ins) if self.published.generation else {}
        given = self.module.imposed()
        same = known.keys() == given.keys() and all(
            np.array_equal(known[name], array) for name, array in given.items()
        )
        self.behind += not same
        return loss

    def take(self, pushed: Pushed, number: int, size_bytes: int = 0) -> bool:
        dropped = super().take(pushed, number, size_bytes)
        self.pushed[number] += 1
        return dropped

    def used(self, pushed: Pushed, number: int, staleness: int) -> None:
        self.members[self.version].append((number, self.pushed[number]))
        super().used(pushed, number, staleness)


def replayed(
    model: onnx.ModelProto,
    server: Noting,
    batch_of: Callable[[int, int], Batch],
    rate: float,
    momentum: float,
) -> dict[str, np.ndarray]:
    """Weights of one process that takes the server's steps, with all samples of an update at once. `batch_of`: the batch
    from which a worker of this number computed its gradients after so many others.
    """
    module = GraphModule(model)
    optimizer = torch.optim.SGD(module.parameters(), lr=rate, momentum=momentum, nesterov=momentum > 0)
    for version in range(server.version):
        batches = [batch_of(number, place) for number, place in server.members[version]]
        inputs = {
            name: torch.from_numpy(np.concatenate([batch.inputs[name] for batch in batches]))
            for name in batches[0].inputs
        }
        labels = torch.from_numpy(np.concatenate([batch.labels for batch in batches]))
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(module(**inputs), labels).backward()
        optimizer.step()
    return module.values()


class Here(ServerParallel):
    """Answers workers that are threads."""

    kind = Noting

    def server(self, module: GraphModule) -> Server:
        made = super().server(module)
        for number in range(1, self.policy.workers + 1):
            arguments = self.store, number
            threading.Thread(target=made.serve, args=arguments, daemon=True).start()
        return made


@dataclass
class Trained:
    values: dict[str, np.ndarray]
    metrics: dict[str, float]
    server: Noting
    lines: list[str] = field(default_factory=list)


def trained(
    model: onnx.ModelProto,
    policy: Policy,
    settings: Mapping[str, Any],
    data: Callable[[], DataSource],
    shaping: Shaping | None = None,
    validation: DataSource | None = None,
    teacher: onnx.ModelProto | None = None,
    state: Path | None = None,
    memory: int | None = None,
) -> Trained:
    """What a training leaves whose workers are threads. Raises what the server raised."""
    store, lines = dist.HashStore(), list[str]()

    def work(number: int) -> None:
        group = Group()
        group.rank = number
        worker = WorkerParallel(store, settings, number, group)
        setup = TrainingSetup(data(), teacher, device="cpu", memory=memory)
        try:
            train(setup, model, settings, None, worker)
        except (PassError, RuntimeError) as error:
            if strategy.served is not None:
                strategy.served.fail(str(error))

    strategy = Here(store, settings, policy)
    workers = [
        threading.Thread(target=work, args=(number,), daemon=True) for number in range(1, policy.workers + 1)
    ]
    for worker in workers:
        worker.start()
    setup = TrainingSetup(
        data(), teacher, validation=validation, device="cpu", state=state, progress=lines.append
    )
    try:
        values, metrics = train(setup, model, settings, shaping, strategy)
    finally:
        if strategy.served is not None:
            strategy.served.close()
    for worker in workers:
        worker.join(LIMIT_S)
    assert isinstance(strategy.served, Noting)
    return Trained(values, metrics, strategy.served, lines)
