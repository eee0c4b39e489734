"""The stages of a pipeline: each worker runs some consecutive steps of the plan, and holds their weights.

    inputs, weights of A -> steps of A -> tensors that cross -> steps of B, weights of B -> outputs
                                    `-> a skip connection, through every stage in between

What depends on weights alone (decoded codebooks, Q/DQ of weights) runs in the stage that reads it. What is
known from shapes alone is not sent: it is recorded once for each size of a micro-batch. Samples are not sent
either: every worker reads those that its steps take.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from onnx_lathe.errors import PassError
from onnx_lathe.runtime.torch_bridge import GraphModule
from onnx_lathe.runtime.torch_bridge.plan import DISCARDED
from onnx_lathe.runtime.torch_bridge.segments import last_read, run_step
from onnx_lathe.runtime.training.memory.recompute import Profile


class Weight(NamedTuple):
    """A trained weight, and the numbers of the first and the last step that reads it, also by way of what
    depends on weights alone.
    """

    name: str
    parameter: nn.Parameter
    first: int
    last: int


class Reading:
    """Which steps of a module's plan read what. A step that depends on weights alone counts as a part of
    those that read it.
    """

    def __init__(self, module: GraphModule) -> None:
        self.module, self.plan = module, module.plan
        self.steps = self.plan.steps
        self.results = [slot for slot, _ in module.results]
        self.readers: dict[int, set[int]] = {slot: {len(self.steps) - 1} for slot in self.results}
        """Slot -> the steps that read it; the graph's outputs are read by the last one."""
        for number, step in reversed(list(enumerate(self.steps))):
            by = (
                set[int]().union(*(self.readers.get(slot, ()) for slot in step.outputs))
                if step.static
                else {number}
            )
            for slot in step.inputs:
                self.readers.setdefault(slot, set()).update(by)

    def weights(self) -> list[Weight]:
        """The trained ones, in the module's order."""
        named = self.module.weights() | self.module.scales()
        found = []
        for name, parameter in named.items():
            readers = self.readers.get(self.plan.slots.get(name, DISCARDED))
            if parameter.requires_grad and readers:
                found.append(Weight(name, parameter, min(readers), max(readers)))
        return found

    def times(self, profile: Profile) -> list[float]:
        """Seconds of each step, those that depend on weights alone as a part of the first that reads them."""
        seconds = list(profile.seconds)
        for number, step in enumerate(self.steps):
            if step.static:
                readers = set[int]().union(*(self.readers.get(slot, ()) for slot in step.outputs))
                seconds[min(readers)] += seconds[number]
                seconds[number] = 0.0
        return seconds

    def crossing(self, profile: Profile) -> list[int]:
        """Bytes that a cut before each step would send in the forward pass of the profile's batch."""
        found = [0] * len(self.steps)
        for activation in profile.activations:
            made = self.steps[activation.made] if activation.made < len(self.steps) else None
            if made is not None and not made.static and not self.plan.host.intersection(made.node.output):
                for cut in range(activation.made + 1, min(activation.end, len(self.steps) - 1) + 1):
                    found[cut] += activation.size
        return found


@dataclass
class Sent:
    """What a stage gives the next one of one micro-batch: shape and type of every tensor and whether it has
    a gradient; and what is known from shapes alone, of this stage and those before it.
    """

    tensors: Sequence[tuple[tuple[int, ...], torch.dtype, bool]] = ()
    numbers: dict[int, Any] = field(default_factory=dict)

    def made(self, device: torch.device) -> tuple[Tensor, ...]:
        """Tensors like these, of zeros."""
        return tuple(
            torch.zeros(shape, dtype=dtype, device=device, requires_grad=graded)
            for shape, dtype, graded in self.tensors
        )

    @property
    def sizes_bytes(self) -> tuple[int, int]:
        """(sent forward, of which a gradient comes back)."""
        sizes = [
            (torch.Size(shape).numel() * dtype.itemsize, graded) for shape, dtype, graded in self.tensors
        ]
        return sum(size for size, _ in sizes), sum(size for size, graded in sizes if graded)


class Stage(nn.Module):
    """Steps `first` up to `end` of `module`, called with the tensors that cross the cut before them, in the
    order of `inputs`, and with samples by `keyword`. Gives a tensor, or a tuple of them: what crosses the
    cut behind them or, of the last stage, the graph's outputs in their declared types.

    `weights` are its Parameters. `within` is entered for every run: the context of mixed precision.
    """

    def __init__(
        self,
        reading: Reading,
        first: int,
        end: int,
        weights: Sequence[Weight],
        within: Callable[[], AbstractContextManager[Any]],
    ) -> None:
        super().__init__()
        module, plan, steps = reading.module, reading.plan, reading.steps
        self.is_last = end == len(steps)
        self.weights = nn.ParameterList(weight.parameter for weight in weights)
        self.read, self.within, self.count = module.stored, within, len(plan.slots)
        self.results = module.results if self.is_last else ()
        moving = [step for step in steps if not step.static]
        read_last = last_read(moving, reading.results)
        order = {id(step): number for number, step in enumerate(steps)}
        until = {
            slot: len(steps) if number == len(moving) else order[id(moving[number])]
            for slot, number in read_last.items()
        }
        """Slot -> the last step that reads it, by its number in the plan."""
        host = {plan.slots[name] for name in plan.host if name in plan.slots}
        before = _made(steps[:first])
        mine = [step for step in steps[first:end] if not step.static]
        wanted = {slot for step in mine for slot in step.inputs} | {slot for slot, _ in self.results}
        used = _decoders(steps, wanted)
        wanted |= {slot for step in used for slot in step.inputs}
        self.steps = sorted([*used, *mine], key=lambda step: order[id(step)])
        self.inputs = tuple(sorted(slot for slot in before - host if until.get(slot, -1) >= first))
        later = _made(steps[:end])
        self.outputs = (
            tuple(slot for slot, _ in self.results)
            if self.is_last
            else tuple(sorted(slot for slot in later - host if until.get(slot, -1) >= end))
        )
        self.numbers = sorted(slot for slot in _made(mine) & host if until.get(slot, -1) >= end)
        self.feeds = {keyword(slot): slot for name in module.inputs if (slot := plan.slots[name]) in wanted}
        self.names = {slot: name for name, slot in plan.slots.items() if isinstance(name, str)}
        self.given: Mapping[int, Any] = {}
        """What stages before it have found from shapes alone."""
        self.wanted = wanted
        self.release = _release(self.steps, {*self.outputs, *self.numbers})

    def forward(self, *carried: Tensor, **feeds: Tensor) -> Any:
        outputs = self._outputs(carried, self._run(carried, feeds))
        return outputs if len(outputs) > 1 else outputs[0]

    def describe(self, carried: Sequence[Tensor], feeds: Mapping[str, Tensor]) -> Sent:
        """What a run sends. Raises PassError for a sequence, which no pipeline carries."""
        values = self._run(carried, feeds)
        for slot in self.outputs:
            if not isinstance(values[slot], Tensor):
                raise PassError(
                    f"a cut of the pipeline separates '{self.names.get(slot, slot)}' from its reader, and only tensors can be sent; "
                    "give another number of stages"
                )
        tensors = [
            (tuple(tensor.shape), tensor.dtype, tensor.requires_grad)
            for tensor in self._outputs(carried, values)
        ]
        return Sent(tensors, {**self.given, **{slot: values[slot] for slot in self.numbers}})

    def _run(self, carried: Sequence[Tensor], feeds: Mapping[str, Tensor]) -> list[Any]:
        values: list[Any] = [None] * self.count
        with self.within():
            for slot, value in (self.read(self.wanted) | dict(self.given)).items():
                values[slot] = value
            for slot, tensor in zip(self.inputs, carried, strict=True):
                # Convolutions go on in the memory format that the loop gives weights and samples.
                values[slot] = tensor.to(memory_format=torch.channels_last) if tensor.dim() == 4 else tensor
            for name, slot in self.feeds.items():
                values[slot] = feeds[name]
            for step, release in zip(self.steps, self.release, strict=True):
                run_step(step, values)
                for slot in release:
                    values[slot] = None
        return values

    def _outputs(self, carried: Sequence[Tensor], values: Sequence[Any]) -> tuple[Tensor, ...]:
        if self.is_last:
            return tuple(
                values[slot] if values[slot].dtype == dtype else values[slot].to(dtype)
                for slot, dtype in self.results
            )
        passing = dict(zip(self.inputs, carried, strict=True))
        # Buffers for what is received are contiguous.
        return tuple(passing.get(slot, values[slot]).contiguous() for slot in self.outputs)


def keyword(slot: int) -> str:
    """Under which name a stage is given the samples of an input: names of a graph may be any text."""
    return f"input_{slot}"


def owners(weights: Sequence[Weight], bounds: Sequence[int]) -> list[int]:
    """The stage that holds each weight; stage i has the steps `bounds[i]` up to `bounds[i + 1]`."""
    return [
        next(stage for stage, (first, end) in enumerate(pairwise(bounds)) if first <= weight.first < end)
        for weight in weights
    ]


def _made(steps: Collection[Any]) -> set[int]:
    return {slot for step in steps if not step.static for slot in step.outputs if slot > DISCARDED}


def _decoders(steps: Sequence[Any], wanted: Collection[int]) -> list[Any]:
    """The steps that depend on weights alone and lead to the slots `wanted`."""
    needed, found = set(wanted), []
    for step in reversed(steps):
        if step.static and needed.intersection(step.outputs):
            needed.update(step.inputs)
            found.append(step)
    return found


def _release(steps: Sequence[Any], kept: Collection[int]) -> list[list[int]]:
    """For each step, the slots that no later one of `steps` reads and that are not `kept`."""
    last = {slot: number for number, step in enumerate(steps) for slot in (*step.outputs, *step.inputs)}
    found: list[list[int]] = [[] for _ in steps]
    for slot, number in last.items():
        if slot not in kept:
            found[number].append(slot)
    return found
