"""Runs a plan's steps, in segments whose results are dropped in the forward pass and computed again when
the backward pass needs them.

What crosses a cut between two segments is kept, and all that the last segment saves: it is needed first, so
that computing it again would save nothing. The graph that autograd sees is the same with and without
segments, so gradients are equal bit for bit.
Source: Chen et al., "Training Deep Nets with Sublinear Memory Cost", arXiv 1604.06174, 2016, section 3.
"""

from collections.abc import Callable, Collection, Iterable, MutableSequence, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch.autograd.graph import saved_tensors_hooks
from torch.utils.checkpoint import checkpoint

from onnx_lathe.errors import PassError
from onnx_lathe.runtime.torch_bridge.plan import Plan, Step

Watch = Callable[[int, Sequence[Any]], None]


@dataclass(frozen=True)
class _Segment:
    """Steps that are computed again together: reads the slots `inputs` of what comes before it, and gives
    `outputs` to what follows.
    """

    steps: Sequence[Step]
    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    statistics: Collection[int]
    """Those of `inputs` that the module may update before the backward pass. A batch normalization that
    does so reads their shape only.
    """

    def arguments(self, values: Sequence[Any]) -> list[Any]:
        # PyTorch refuses to go on with a tensor that was changed meanwhile; `.data` is the same memory, but
        # no longer compared.
        return [
            values[slot].data if slot in self.statistics and not values[slot].requires_grad else values[slot]
            for slot in self.inputs
        ]

    def __call__(self, *arguments: Any) -> tuple[Any, ...]:
        values = dict(zip(self.inputs, arguments, strict=True))
        for step in self.steps:
            run_step(step, values)
            for slot in step.release:
                values[slot] = None
        return tuple(values[slot] for slot in self.outputs)


class Segments:
    """Runs `plan`; `results` are the slots of the graph's outputs. Without cuts nothing is computed twice.

    cuts: numbers of the steps that begin a new segment. offload: what is saved for the backward pass waits
    in host memory, page-locked where the device is a GPU. Raises PassError for a cut that is no step of the
    plan.
    """

    def __init__(
        self, plan: Plan, results: Collection[int], cuts: Collection[int] = (), offload: bool = False
    ) -> None:
        self.steps, self.offload = plan.steps, offload
        self.last_read = last_read(plan.steps, results)
        self.watch: Watch | None = None
        """Is told the number of each step before it runs, and how many there are after the last, with the
        values of all slots.
        """
        wrong = [cut for cut in cuts if not 0 < cut < len(plan.steps)]
        if wrong:
            raise PassError(
                f"there is no cut before step {wrong[0]}; the model has steps 0 to {len(plan.steps) - 1}"
            )
        bounds = [0, *sorted(set(cuts))]
        self._recomputed = [self._segment(first, end) for first, end in pairwise(bounds)]
        self._rest = bounds[-1]

    def run(self, values: MutableSequence[Any]) -> None:
        """Fills the slots of the results; those that no later step reads are None again afterwards."""
        recording = torch.is_grad_enabled()
        with _offloading(values) if self.offload and recording else nullcontext():
            for segment in self._recomputed:
                arguments = segment.arguments(values)
                given = (
                    checkpoint(segment, *arguments, use_reentrant=False, preserve_rng_state=False)
                    if recording
                    else segment(*arguments)
                )
                del arguments
                for slot, value in zip(segment.outputs, given, strict=True):
                    values[slot] = value
                del given
                for step in segment.steps:
                    for slot in step.release:
                        values[slot] = None
            for number, step in enumerate(self.steps[self._rest :], self._rest):
                if self.watch is not None:
                    self.watch(number, values)
                run_step(step, values)
                for slot in step.release:
                    values[slot] = None
            if self.watch is not None:
                self.watch(len(self.steps), values)

    def _segment(self, first: int, end: int) -> _Segment:
        steps = self.steps[first:end]
        made = {slot for step in steps for slot in step.outputs}
        read = {slot for step in steps for slot in step.inputs}
        outputs = {slot for slot in made if self.last_read.get(slot, 0) >= end}
        statistics = {
            slot for step in steps if step.node.op_type == "BatchNormalization" for slot in step.inputs[3:5]
        }
        return _Segment(steps, tuple(sorted(read - made)), tuple(sorted(outputs)), statistics)


def last_read(steps: Sequence[Step], results: Iterable[int]) -> dict[int, int]:
    """Slot -> number of the last step that reads it; for the graph's outputs the number of steps."""
    numbers = {slot: number for number, step in enumerate(steps) for slot in step.inputs}
    return numbers | dict.fromkeys(results, len(steps))


def run_step(step: Step, values: Any) -> None:
    """Reads and fills slots of `values`, a list or a dict."""
    result = step.run(*[values[slot] for slot in step.inputs])
    if isinstance(result, tuple):
        for slot, value in zip(step.outputs, result, strict=False):
            values[slot] = value
    else:
        values[step.outputs[0]] = result


def _offloading(values: Iterable[Any]) -> AbstractContextManager[None]:
    """Within, saved tensors go to host memory; not those that `values` holds before the first step:
    weights, constants and inputs stay.

    Copies keep the strides: a convolution of another memory format may sum in another order.
    """
    staying = {value.untyped_storage().data_ptr() for value in values if isinstance(value, torch.Tensor)}

    def pack(tensor: torch.Tensor) -> tuple[torch.device, torch.Tensor]:
        if tensor.untyped_storage().data_ptr() in staying:
            return tensor.device, tensor
        copy = torch.empty_like(
            tensor, device="cpu", pin_memory=tensor.device.type == "cuda", requires_grad=False
        )
        return tensor.device, copy.copy_(tensor.detach())

    def unpack(packed: tuple[torch.device, torch.Tensor]) -> torch.Tensor:
        device, tensor = packed
        return tensor.to(device, non_blocking=True)

    return saved_tensors_hooks(pack, unpack)
