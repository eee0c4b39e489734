"""Scale and zero-point of every tensor that kernels store, under the constraints that operators put on them."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from onnx_lathe.passes.graph import Node, Tensor
from onnx_lathe.passes.graph.layers import is_constant
from onnx_lathe.passes.graph.quantization.placement import floor_range
from onnx_lathe.passes.graph.quantization.ranges import Range
from onnx_lathe.passes.lowering.phone_form.choice import Kernel
from onnx_lathe.passes.lowering.phone_form.known import Known
from onnx_lathe.passes.lowering.phone_form.operators import (
    FIXED,
    JOINED,
    Parameters,
    activations,
    constant_ends,
    is_same,
    parameters_over,
)
from onnx_lathe.passes.numerics.quantization import affine

COARSER = 2.0
"""So many times as coarse as by its own range a part of a Concat is stored, for the sake of one scale, rather than
stored a second time.
"""
EVERYTHING = (-math.inf, math.inf)
HALF = 0.501
"""Of a step: as near the end of a stored range is to that of a Clip."""

Key = tuple[int, int]
"""Identity of a tensor, and the bits that it is read in."""


@dataclass(eq=False)
class _Group:
    """Tensors of one scale. `finest`: width of the narrowest range among those that were put together; `limits`: the
    floors in front of them, which the ends of the range do.
    """

    ends: Range
    bits: int
    fixed: Parameters | None = None
    limits: Range = EVERYTHING
    members: list[Key] = field(default_factory=list)
    finest: float = 0.0

    @property
    def parameters(self) -> Parameters:
        if self.fixed is not None:
            return self.fixed
        return parameters_over(*self.ends, self.bits)


class Scales:
    """By tensor and bits, once all kernels are known."""

    def __init__(self, kernels: Sequence[Kernel], known: Known, opset: int) -> None:
        self._known, self._opset = known, opset
        self._groups: dict[Key, _Group] = {}
        for kernel in kernels:
            self._add(kernel)
        for kernel in kernels:
            if kernel.node.op == JOINED:
                self._join(kernel)

    def of(self, tensor: Tensor, bits: int) -> Parameters:
        return self._groups[id(tensor), bits].parameters

    def _add(self, kernel: Kernel) -> None:
        node = kernel.node
        for index in activations(node):
            if index < len(node.inputs) and not is_constant(node.inputs[index]):
                self._start(node.inputs[index], kernel.bits)
        if is_same(node):
            group = self._groups[id(node.inputs[0]), kernel.bits]
            for tensor in kernel.results:
                self._put((id(tensor), kernel.bits), group)
        else:
            for tensor in kernel.results:
                self._start(tensor, kernel.bits, kernel)

    def _start(self, tensor: Tensor, bits: int, kernel: Kernel | None = None) -> None:
        if (id(tensor), bits) in self._groups:
            return
        fixed = self._known.exact.get(tensor.name) if bits == 8 else None
        low, high = self._known.ranges.get(tensor.name, (0.0, 0.0))
        if bits == affine.WIDE_BITS:
            low, high = self._known.wide.get(tensor.name, (low, high))
        limits = EVERYTHING
        if kernel is not None:
            fixed = FIXED[kernel.node.op][bits] if kernel.node.op in FIXED else fixed
            limits = limits_of(kernel.floors)
            low, high = max(low, limits[0]), min(high, limits[1])
        ends = (low, high) if fixed is None else fixed.ends
        self._put((id(tensor), bits), _Group(ends, bits, fixed, limits, finest=ends[1] - ends[0]))

    def _put(self, key: Key, group: _Group) -> None:
        group.members.append(key)
        self._groups[key] = group

    def _join(self, kernel: Kernel) -> None:
        """Gives a Concat the range of all its parts, constant ones too, and those that are computed its scale where that
        is no more than COARSER.
        """
        bits = kernel.bits
        stored = constant_ends(kernel.node, self._opset)
        whole = self._groups[id(kernel.results[0]), bits]
        read = [tensor for tensor in kernel.node.inputs if not is_constant(tensor)]
        parts = list({id(group): group for group in (self._groups[id(one), bits] for one in read)}.values())
        fixed = parts[0].fixed
        if fixed is not None and all(part.fixed == fixed for part in parts) and _within(stored, fixed.ends):
            whole.fixed = fixed
            self._merge(whole, parts)
            return
        whole.fixed = None
        ends = [*(part.ends for part in parts), *stored]
        whole.ends = min(low for low, _ in ends), max(high for _, high in ends)
        width = whole.ends[1] - whole.ends[0]
        whole.finest = width
        self._merge(
            whole,
            [
                part
                for part in parts
                if part.fixed is None and width <= COARSER * part.finest and _holds(part.limits, whole.ends)
            ],
        )

    def _merge(self, whole: _Group, parts: Sequence[_Group]) -> None:
        for part in parts:
            if part is whole:
                continue
            for member in part.members:
                self._groups[member] = whole
            whole.members += part.members
            whole.finest = min(whole.finest, part.finest)
            whole.limits = max(whole.limits[0], part.limits[0]), min(whole.limits[1], part.limits[1])


def limits_of(floors: Sequence[Node]) -> Range:
    """The lowest and highest value behind ReLUs and Clips."""
    low, high = EVERYTHING
    for floor in floors:
        least, most = floor_range(floor)
        low, high = (
            max(low, -math.inf if least is None else least),
            min(high, math.inf if most is None else most),
        )
    return low, high


def is_done_by(parameters: Parameters, limits: Range) -> bool:
    """Whether what is stored so lies within the limits, but for half a step; a lower end of 0 exactly."""
    half = HALF * float(parameters.scale)
    low, high = parameters.ends
    return (low == 0 if limits[0] == 0 else low >= limits[0] - half) and high <= limits[1] + half


def _within(ranges: Sequence[Range], ends: Range) -> bool:
    return all(_holds(ends, one) for one in ranges)


def _holds(limits: Range, ends: Range) -> bool:
    return limits[0] <= ends[0] and ends[1] <= limits[1]
