"""`--parallel "server"`: process 0 serves the weights, the others compute gradients from samples that each draws at
random from the whole.

The built-in hook takes its steps in process 0, with all that belongs to a step: rate, clipping, what a pass does while
training runs, held-out data, the state that is saved. A worker runs the hook's forward and backward pass alone.
"""

import threading
from collections.abc import Mapping, Sequence
from typing import Any

import onnx
import torch
from torch import Tensor
from torch._C._distributed_c10d import Store

from onnx_lathe.errors import PassError, UsageError
from onnx_lathe.runtime.torch_bridge import GraphModule
from onnx_lathe.runtime.training.loop.settings import Settings
from onnx_lathe.runtime.training.parallel.client import Client
from onnx_lathe.runtime.training.parallel.folder import takes_cuda
from onnx_lathe.runtime.training.parallel.grid import Server as Policy
from onnx_lathe.runtime.training.parallel.grid import parse_parallel
from onnx_lathe.runtime.training.parallel.messages import Line, Vector, coding
from onnx_lathe.runtime.training.parallel.server import Server, line_of
from onnx_lathe.runtime.training.parallel.strategy import Strategy, job_facts
from onnx_lathe.runtime.training.parallel.workers import Group

LATE_MOMENTUM = 0.0
"""Where the option is none and gradients may be late, which act like momentum themselves: Mitliagkas, Zhang, Hadjis and
Re, "Asynchrony begets momentum", Allerton 2016."""

_FACTS = "facts"


class ServerParallel(Strategy):
    """Process 0. `store` is where it meets the workers, whose ranks are 1 to `policy.workers`."""

    kind = Server

    def __init__(self, store: Store, settings: Mapping[str, Any], policy: Policy) -> None:
        super().__init__()
        self.store, self.settings, self.policy = store, settings, policy
        self.served: Server | None = None
        self.ready = threading.Event()
        """Whether there is a server."""

    def begin(
        self,
        model: onnx.ModelProto,
        settings: Mapping[str, Any],
        samples: int | None,
        weights: Sequence[Tensor],
    ) -> None:
        self.store.set(_FACTS, job_facts(model, settings, samples).hex())

    def server(self, module: GraphModule) -> Server:
        vector = Vector(module)
        code = coding(self.settings["gradients"], self.settings["gradient_threshold"], vector)
        expected = {rank: rank for rank in range(1, self.policy.workers + 1)}
        self.served = self.kind(module, vector, code, self.policy, expected)
        self.ready.set()
        return self.served

    def metrics(self) -> dict[str, float]:
        found = {"workers": float(self.policy.workers), "momentum": Settings.read(self.settings).momentum}
        return found | ({} if self.served is None else self.served.metrics())


class WorkerParallel(Strategy):
    """A worker of the server, of this `number`."""

    def __init__(self, store: Store, settings: Mapping[str, Any], number: int, group: Group) -> None:
        super().__init__(group)
        self.store, self.settings, self.number = store, settings, number

    def begin(
        self,
        model: onnx.ModelProto,
        settings: Mapping[str, Any],
        samples: int | None,
        weights: Sequence[Tensor],
    ) -> None:
        if self.store.get(_FACTS).decode() != job_facts(model, settings, samples).hex():
            raise PassError(
                f"worker {self.group.rank} has another model, other options or other data than the server; "
                "run the same command everywhere"
            )

    def client(self, module: GraphModule) -> Client:
        vector = Vector(module)
        code = coding(self.settings["gradients"], self.settings["gradient_threshold"], vector)
        return Client(Line(self.store, line_of(self.number), 1), self.number, module, vector, code)


class OneOf(Group):
    """A worker that shares no collective with others: `size` is 1, whatever its `rank`."""

    def __init__(self, rank: int, local: int, neighbours: int, cuda: bool) -> None:
        self.rank, self.local = rank, local
        # On the server's machine it is the first, and needs no GPU of its own.
        self.place = local - (rank == local) if cuda else None
        there = torch.cuda.device_count() if cuda else 0
        if self.place is not None and self.place >= there:
            workers = neighbours - (rank == local)
            raise UsageError(f"--launch: {workers} workers, but this machine has {there} GPUs")

    def device(self, name: str) -> str:
        return name if self.place is None else f"cuda:{self.place}"


def checked(job: Mapping[str, Any], processes: int) -> tuple[Policy, dict[str, Any], list[str]]:
    """(policy, settings with the momentum that it calls for, what the user should know of them) of a job that `launch`
    wrote. Raises UsageError for options that do not go with a server.
    """
    settings, text, notes = dict(job["settings"]), job["parallel"], list[str]()
    policy = parse_parallel(text).over(processes)
    if not isinstance(policy, Policy):
        raise UsageError(f"--parallel '{text}': is no server")
    check_served(text, job["hook"], settings)
    if settings["momentum"] is None and policy.late == "use":
        settings["momentum"] = LATE_MOMENTUM
        notes.append(
            f"momentum is {LATE_MOMENTUM:g} with a server, not 0.9: gradients that arrive late act like momentum themselves "
            "(Mitliagkas et al., 2016), and both together may diverge; momentum= gives another"
        )
    if policy.aware and policy.late == "drop":
        notes.append(
            f"--parallel '{text}': aware changes nothing, because late=drop uses no gradient that is late"
        )
    return policy, settings, notes


def check_served(text: str, hook: str | None, settings: Mapping[str, Any]) -> None:
    """Raises UsageError for what does not go with the server of `--parallel text`."""

    def refuse(why: str) -> None:
        raise UsageError(f"--parallel '{text}': {why}")

    if hook is not None:
        refuse(
            "a hook of your own (--retrain) takes its own steps, which here are the server's; "
            "leave --retrain out, or the server"
        )
    if settings["precision"] == "float16":
        refuse(
            "precision='float16' scales the loss, by steps that were too large, and workers take none; take bfloat16"
        )
    if settings["normalization"] == "train":
        refuse(
            "normalization='train' updates running statistics, and each worker would have its own; "
            "leave normalization out, or the server"
        )
    if settings["gradients"] == "powersgd":
        refuse("gradients='powersgd' sums factors of all workers' gradients at once; take half or threshold")


def group_of(job: Mapping[str, Any], rank: int, local: int, neighbours: int) -> OneOf:
    return OneOf(rank, local, neighbours, takes_cuda(job["device"]))
