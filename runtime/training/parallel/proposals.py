"""`--parallel auto`: groups of workers and a way for each layer, by the cost model, and why."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor

from onnx_lathe.errors import UsageError
from onnx_lathe.macs import OpenShape
from onnx_lathe.runtime.torch_bridge import GraphModule
from onnx_lathe.runtime.torch_bridge.plan import Step
from onnx_lathe.runtime.training.parallel.choice import Placed, choose, uniform
from onnx_lathe.runtime.training.parallel.costs import Group, Machine, cost_of
from onnx_lathe.runtime.training.parallel.geometry import CONV, GEMM, Layer
from onnx_lathe.runtime.training.parallel.grid import Grid
from onnx_lathe.runtime.training.parallel.layers import Network, layers_of
from onnx_lathe.runtime.training.parallel.rules.table import Choose, Placing
from onnx_lathe.runtime.training.parallel.step import step_of

_SPLITS = {"height": "height", "width": "width", "filter": "filter", "channel": "channel", "local": "follow"}
"""What the placer calls a way; it gathers for all others."""


@dataclass(frozen=True)
class Proposal:
    """How a grid would share each layer, and the `seconds` of a step by the model."""

    grid: Grid
    placed: Sequence[Placed]
    seconds: float

    @property
    def ways(self) -> tuple[str, ...]:
        return tuple(one.way for one in self.placed)


class Grouped(NamedTuple):
    """`data` groups of `parts` workers, `batch` samples of all."""

    parts: int
    data: int
    batch: int

    @property
    def shared(self) -> Group:
        """As the cost model sees them: workers that share samples alone are one group, by the way "data"."""
        if self.parts == 1:
            return Group(self.data, self.batch)
        return Group(self.parts, self.batch, self.data)


def network_of(module: GraphModule, sample: Mapping[str, Tensor]) -> Network:
    """The layers of the module, from the shapes of a run on the sample."""
    outline = module.outline(sample)
    shapes: dict[str, OpenShape] = {}
    for name, slot in module.plan.slots.items():
        value: Any = outline[slot]
        if isinstance(name, str) and isinstance(value, Tensor):
            shapes[name] = tuple(value.shape)
    samples = max(1, len(next(iter(sample.values()))))
    nodes = [step.node for step in module.plan.steps]
    return layers_of(nodes, shapes, list(module.inputs), samples)


def groups_of(workers: int, most: int, batch: int) -> list[Grouped]:
    """What can be chosen among: groups of 1 worker, which is data parallelism, and of more, up to `most`."""
    sizes = [parts for parts in range(1, most + 1) if workers % parts == 0]
    return [Grouped(parts, workers // parts, batch) for parts in sizes]


def propose(layers: Sequence[Layer], groups: Sequence[Grouped], machine: Machine) -> list[Proposal]:
    """The fastest of each size of group that fits in memory, data parallelism first if it does.

    Raises UsageError if none fits.
    """
    found: list[Proposal] = []
    refused: UsageError | None = None
    for group in groups:
        try:
            placed = (
                choose(layers, group.shared, machine)
                if group.parts > 1
                else uniform(layers, "data", group.shared)
            )
        except UsageError as error:
            refused = error
            continue
        memory = sum(one.cost.memory for one in placed)
        if memory <= machine.memory:
            seconds = step_of(placed, machine).seconds
            grid = Grid(group.data, "auto" if group.parts > 1 else "", group.parts)
            found.append(Proposal(grid, placed, seconds))
    if not found:
        raise refused or UsageError(
            f"--parallel auto: a worker has {machine.memory / 1e9:.3g} GB free, and the network does not fit; give more "
            "workers or a smaller batch="
        )
    return found


def as_planned(network: Network, ways: Sequence[str]) -> Choose:
    """What the placer asks for each layer."""

    def chosen(placer: Placing, step: Step) -> str:
        place = network.results.get(step.node.output[0])
        return "whole" if place is None else _SPLITS.get(ways[place], "whole")

    return chosen


def explained(best: Proposal, machine: Machine, batch: int) -> Iterator[str]:
    """A line for each run of layers that go the same way: what it takes, and what data parallelism would."""
    workers = best.grid.data * best.grid.parts
    products = [one for one in best.placed if one.layer.kind in (CONV, GEMM)]
    start = 0
    for end in range(1, len(products) + 1):
        if end < len(products) and products[end].way == products[start].way:
            continue
        run = products[start:end]
        taken = 1e3 * sum(machine.seconds(one.cost) for one in run)
        alone = 1e3 * sum(machine.seconds(cost_of(one.layer, "data", Group(workers, batch))) for one in run)
        names = run[0].layer.name if len(run) == 1 else f"{run[0].layer.name} to {run[-1].layer.name}"
        why = run[0].reason if len(run) == 1 else f"{len(run)} layers"
        yield f"auto: {names}: {run[0].way} {taken:.3g} ms, by samples {alone:.3g} ms ({why})"
        start = end
