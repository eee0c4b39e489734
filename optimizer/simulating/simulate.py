"""`optimize simulate`: strategies on machines that nobody has, from the layers of a model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from onnx_lathe.errors import UsageError
from onnx_lathe.optimizer.inspecting.analysis import Question
from onnx_lathe.optimizer.inspecting.sharing import open_network
from onnx_lathe.optimizer.simulating import stragglers as slow
from onnx_lathe.optimizer.simulating.machines import machine_counts
from onnx_lathe.optimizer.simulating.scaling import Curve, curve
from onnx_lathe.optimizer.simulating.step import step_of
from onnx_lathe.runtime.training.parallel.choice import uniform
from onnx_lathe.runtime.training.parallel.costs import ELEMENT_BYTES, Group, Machine
from onnx_lathe.runtime.training.parallel.geometry import Layer


@dataclass(frozen=True)
class Request:
    """`batch`: samples of a step in strong scaling; `each`: samples of each machine in weak scaling."""

    model: Path
    strategies: Sequence[str]
    machine: Machine
    machines: int
    batch: int
    each: int
    shapes: Mapping[str, Sequence[int]]
    stragglers: slow.Stragglers | None = None
    backups: int | None = None
    seed: int = 0


@dataclass(frozen=True)
class Simulation:
    request: Request
    parameters: int
    flops: int
    strong: Sequence[Curve]
    weak: Sequence[Curve]
    stragglers: Sequence[slow.Row]
    notes: Sequence[str]

    def as_json(self) -> dict[str, Any]:
        request, machine = self.request, self.request.machine
        return {
            "model": str(request.model),
            "rate": machine.rate,
            "latency_s": machine.latency,
            "bandwidth": machine.bandwidth,
            "memory": machine.memory if machine.memory < float("inf") else None,
            "batch": request.batch,
            "each": request.each,
            "parameters": self.parameters,
            "flops": self.flops,
            "strong": [one.as_json() for one in self.strong],
            "weak": [one.as_json() for one in self.weak],
            "distribution": None if request.stragglers is None else request.stragglers.text,
            "stragglers": [one.as_json() for one in self.stragglers],
            "notes": list(self.notes),
        }


def simulate(request: Request) -> Simulation:
    """Raises UsageError for a model without products, and for strategies that fit nowhere."""
    network, _ = open_network(request.model, Question(request.shapes))
    layers, machine = network.layers, request.machine
    counts = machine_counts(request.machines)
    strong = [curve(layers, one, machine, counts, request.batch, False) for one in request.strategies]
    weak = [curve(layers, one, machine, counts, request.each, True) for one in request.strategies]
    for one in strong:
        if not one.points:
            reason = next(reversed(one.refused.values()), "no grid fits")
            raise UsageError(f"--parallel '{one.strategy}': on up to {request.machines} machines: {reason}")
    rows: list[slow.Row] = []
    if request.stragglers is not None:
        loads = [(count, _load(layers, machine, count, request.each)) for count in counts]
        rows = slow.rows_of(loads, request.stragglers, request.seed, request.backups)
    return Simulation(
        request,
        sum(layer.weights for layer in layers),
        sum(layer.product(1).flops for layer in layers),
        strong,
        weak,
        rows,
        [f"{name}: {reason}" for name, reason in network.left_out],
    )


def _load(layers: Sequence[Layer], machine: Machine, machines: int, each: int) -> slow.Load:
    """A step of data parallelism: what its sums of gradients add to the arithmetic."""
    step = step_of(uniform(layers, "data", Group(machines, each * machines)), machine)
    weights = ELEMENT_BYTES * sum(layer.weights for layer in layers) / machine.bandwidth
    return slow.Load(step.arithmetic, step.exposed, weights + machine.latency, each)


def check(request: Request) -> None:
    """Raises UsageError for numbers that are none."""
    for name in ("batch", "each"):
        if getattr(request, name) < 1:
            raise UsageError(f"--{name} takes a number from 1 on, not {getattr(request, name)}")
    machine_counts(request.machines)
    if request.backups is not None and request.stragglers is None:
        raise UsageError("--backups is of machines that are sometimes slow; give --stragglers too")
    if request.backups is not None and request.backups < 0:
        raise UsageError(f"--backups takes a number from 0 on, not {request.backups}")
