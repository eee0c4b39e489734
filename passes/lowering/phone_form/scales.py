"""Scale and zero-point of every tensor that kernels store, under the constraints that operators put on them."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from onnx_lathe.passes.graph import Tensor
from onnx_lathe.passes.graph.layers import is_constant
from onnx_lathe.passes.graph.quantization.placement import floor_range
from onnx_lathe.passes.graph.quantization.ranges import Range
from onnx_lathe.passes.lowering.phone_form.choice import Kernel
from onnx_lathe.passes.lowering.phone_form.known import Known
from onnx_lathe.passes.lowering.phone_form.operators import FIXED, JOINED, Parameters, activations, is_same
from onnx_lathe.passes.numerics.quantization import affine

COARSER = 2.0
"""So many times as coarse as by its own range a part of a Concat is stored, for the sake of one scale, rather than
stored a second time.
"""


@dataclass(eq=False)
class _Group:
    """Tensors of one scale. `finest`: width of the narrowest range among those that were put together."""

    ends: Range
    fixed: Parameters | None = None
    members: list[int] = field(default_factory=list)
    finest: float = 0.0

    @property
    def parameters(self) -> Parameters:
        return self.fixed if self.fixed is not None else Parameters(*affine.asymmetric_scale(*self.ends))


class Scales:
    """By identity of the tensor, once all kernels are known."""

    def __init__(self, kernels: Sequence[Kernel], known: Known) -> None:
        self._known = known
        self._groups: dict[int, _Group] = {}
        for kernel in kernels:
            self._add(kernel)
        for kernel in kernels:
            if kernel.node.op == JOINED:
                self._join(kernel)

    def __getitem__(self, tensor: Tensor) -> Parameters:
        return self._groups[id(tensor)].parameters

    def __contains__(self, tensor: Tensor) -> bool:
        return id(tensor) in self._groups

    def _add(self, kernel: Kernel) -> None:
        node = kernel.node
        for index in activations(node):
            if index < len(node.inputs) and not is_constant(node.inputs[index]):
                self._start(node.inputs[index])
        if is_same(node):
            group = self._groups[id(node.inputs[0])]
            for tensor in kernel.results:
                self._put(tensor, group)
        else:
            for tensor in kernel.results:
                self._start(tensor, kernel)

    def _start(self, tensor: Tensor, kernel: Kernel | None = None) -> None:
        if id(tensor) in self._groups:
            return
        fixed = self._known.exact.get(tensor.name)
        low, high = self._known.ranges.get(tensor.name, (0.0, 0.0))
        if kernel is not None and kernel.node.op in FIXED:
            fixed = FIXED[kernel.node.op]
        for floor in kernel.floors if kernel is not None else ():
            least, most = floor_range(floor)
            low, high = (
                max(low, -float("inf") if least is None else least),
                min(high, float("inf") if most is None else most),
            )
        ends = (low, high) if fixed is None else fixed.ends
        self._put(tensor, _Group(ends, fixed, finest=ends[1] - ends[0]))

    def _put(self, tensor: Tensor, group: _Group) -> None:
        group.members.append(id(tensor))
        self._groups[id(tensor)] = group

    def _join(self, kernel: Kernel) -> None:
        """Gives a Concat the range of all its parts, and them its scale where that is no more than COARSER."""
        whole = self._groups[id(kernel.results[0])]
        read = [tensor for tensor in kernel.node.inputs if not is_constant(tensor)]
        parts = list({id(self._groups[id(tensor)]): self._groups[id(tensor)] for tensor in read}.values())
        if len({part.fixed for part in parts}) == 1 and parts[0].fixed is not None:
            whole.fixed = parts[0].fixed
            self._merge(whole, parts)
            return
        whole.fixed = None
        whole.ends = min(part.ends[0] for part in parts), max(part.ends[1] for part in parts)
        width = whole.ends[1] - whole.ends[0]
        whole.finest = width
        self._merge(whole, [one for one in parts if one.fixed is None and width <= COARSER * one.finest])

    def _merge(self, whole: _Group, parts: Sequence[_Group]) -> None:
        for part in parts:
            if part is whole:
                continue
            for member in part.members:
                self._groups[member] = whole
            whole.members += part.members
            whole.finest = min(whole.finest, part.finest)
            whole.ends = min(whole.ends[0], part.ends[0]), max(whole.ends[1], part.ends[1])
