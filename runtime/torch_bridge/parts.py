"""What a module offers to those who have several workers share its layers: another plan, and weights of which each
worker has a part.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from onnx_lathe.runtime.torch_bridge.members import Members
from onnx_lathe.runtime.torch_bridge.plan import Plan, Step, release
from onnx_lathe.runtime.torch_bridge.segments import Segments, run_step
from onnx_lathe.runtime.torch_bridge.stand_ins import StandIn

Change = Callable[[Plan, Sequence[int]], tuple[Sequence[Step], Sequence[int]]]
"""(plan, slots of the outputs) -> (steps, slots of the outputs) to run in their place."""


class Weight(NamedTuple):
    """An initializer that changes: the attribute that holds its value, the slot that it is read from, and
    its type in the file.
    """

    attribute: str
    slot: int
    dtype: np.dtype
    half: torch.dtype | None


class Part(NamedTuple):
    """Member i has elements `bounds[i]` to `bounds[i + 1]` of the axis `dim`."""

    dim: int
    bounds: tuple[int, ...]
    members: Members

    @property
    def own(self) -> slice:
        return slice(*self.bounds[self.members.rank : self.members.rank + 2])

    def cut(self, whole: Tensor) -> Tensor:
        """A copy of this worker's part."""
        return whole.narrow(self.dim, self.own.start, self.own.stop - self.own.start).clone()

    def joined(self, part: Tensor) -> Tensor:
        """The whole; every member has to call it."""
        first = part.detach().movedim(self.dim, 0)
        row = math.prod(first.shape[1:])
        sizes = [(end - begin) * row for begin, end in pairwise(self.bounds)]
        pieces = self.members.swap([first.reshape(-1)] * self.members.size, sizes)
        return torch.cat(pieces).reshape(-1, *first.shape[1:]).movedim(0, self.dim).contiguous()


class Rewritable(nn.Module):
    """Base of GraphModule: runs a plan, which may be replaced."""

    _plan: Plan
    _results: tuple[tuple[int, torch.dtype], ...]
    _parts: dict[str, Part]
    """By attribute of the weight or statistic."""
    _weights: dict[str, Weight]
    _statistics: dict[str, Weight]
    _stand_ins: dict[str, StandIn]
    segments: Segments

    def rewrite(self, change: Change) -> None:
        """Runs other steps from now on, which `change` makes of the present ones. Cuts of `checkpoint` are gone."""
        steps, outputs = change(self._plan, [slot for slot, _ in self._results])
        self._plan.steps[:] = steps
        self._results = tuple((slot, dtype) for slot, (_, dtype) in zip(outputs, self._results, strict=True))
        release(self._plan.steps, outputs)
        self.segments = Segments(self._plan, outputs)

    def outline(self, feeds: Mapping[str, Tensor]) -> list[Any]:
        """By slot, what a run on these inputs would hold: tensors have shape and type only (device meta), numbers are
        as they are.
        """
        values = self._start(feeds)
        outline = list(map(_without_values, values))
        with torch.no_grad():
            for step in self._plan.steps:
                run_step(step, values)
                for slot in step.outputs:
                    outline[slot] = _without_values(values[slot])
                for slot in step.release:
                    values[slot] = None
        return outline

    def holdable(self, weights: bool) -> dict[int, str]:
        """Slot -> attribute of what `hold` can make a part: running statistics, and if `weights` is set weights that are
        read as they are stored.
        """
        found = dict(self._statistics)
        if weights:
            found |= {
                name: weight
                for name, weight in self._weights.items()
                if weight.half is None
                and weight.attribute not in self._stand_ins
                and getattr(self, f"{weight.attribute}_keep") is None
            }
        return {one.slot: one.attribute for one in found.values()}

    def hold(self, attribute: str, part: Part) -> None:
        """Keeps of a weight or a running statistic this worker's part only. What reads it has to expect that."""
        tensor = getattr(self, attribute)
        if isinstance(tensor, nn.Parameter):
            tensor.data = part.cut(tensor.data)
        else:
            setattr(self, attribute, part.cut(tensor))
        self._parts[attribute] = part

    def parts(self) -> dict[str, nn.Parameter]:
        """Attribute -> the parameter, of those that are parts of a weight."""
        return {name: value for name in self._parts if isinstance(value := getattr(self, name), nn.Parameter)}

    def _whole(self, attribute: str, value: Tensor) -> Tensor:
        part = self._parts.get(attribute)
        return value if part is None else part.joined(value)

    def _own(self, attribute: str, array: np.ndarray) -> np.ndarray:
        part = self._parts.get(attribute)
        return array if part is None else array[(slice(None),) * part.dim + (part.own,)]

    def _whole_shape(self, attribute: str) -> tuple[int, ...]:
        shape, part = list(getattr(self, attribute).shape), self._parts.get(attribute)
        if part is not None:
            shape[part.dim] = part.bounds[-1]
        return tuple(shape)

    def _start(self, feeds: Mapping[str, Tensor]) -> list[Any]:
        raise NotImplementedError


def _without_values(value: Any) -> Any:
    return value.detach().to("meta") if isinstance(value, Tensor) else value
