"""Sliding windows: padding and output sizes of convolution and pooling (ONNX: Conv, ConvTranspose, MaxPool,
AveragePool).
"""

from dataclasses import dataclass
from functools import cached_property

from onnx_lathe.runtime.torch_bridge.registry import Node


@dataclass(frozen=True)
class Window:
    """Geometry per spatial axis. `pads` is None when `auto_pad` leaves it to the input's size."""

    kernel: list[int]
    strides: list[int]
    dilations: list[int]
    pads: list[int] | None
    auto_pad: str
    ceil: bool

    @cached_property
    def before(self) -> list[int]:
        """Padding before, if it does not depend on the input's size."""
        return (self.pads or [])[: len(self.kernel)]

    @cached_property
    def symmetric(self) -> bool:
        return self.pads is not None and self.before == self.pads[len(self.kernel) :]

    def extent(self, axis: int) -> int:
        """Input elements from the first to the last tap."""
        return (self.kernel[axis] - 1) * self.dilations[axis] + 1

    def padding(self, axis: int, size: int) -> tuple[int, int]:
        """Elements added before and after."""
        if self.pads is not None:
            return self.pads[axis], self.pads[axis + len(self.kernel)]
        if self.auto_pad == "VALID":
            return 0, 0
        total = max((-(-size // self.strides[axis]) - 1) * self.strides[axis] + self.extent(axis) - size, 0)
        return (
            (total // 2, total - total // 2)
            if self.auto_pad == "SAME_UPPER"
            else (total - total // 2, total // 2)
        )

    def count(self, axis: int, size: int) -> int:
        """Output elements. With `ceil`, a last window that would begin in the padding behind is left out."""
        before, after = self.padding(axis, size)
        span = size + before + after - self.extent(axis)
        if not self.ceil:
            return span // self.strides[axis] + 1
        count = -(-span // self.strides[axis]) + 1
        return count - 1 if (count - 1) * self.strides[axis] >= size + before else count

    def reach(self, axis: int, size: int) -> int:
        """Elements behind the input that the last window touches; negative if it ends before the input
        does.
        """
        before, _ = self.padding(axis, size)
        return (self.count(axis, size) - 1) * self.strides[axis] + self.extent(axis) - size - before


def window(node: Node, kernel: list[int]) -> Window:
    """The node's attributes, for a kernel of the given size."""
    auto_pad = node.text("auto_pad", "NOTSET")
    ones = [1] * len(kernel)
    return Window(
        kernel,
        node.integers("strides") or ones,
        node.integers("dilations") or ones,
        (node.integers("pads") or [0] * 2 * len(kernel)) if auto_pad == "NOTSET" else None,
        auto_pad,
        bool(node.integer("ceil_mode")),
    )


def torch_padding(sides: list[tuple[int, int]]) -> list[int]:
    """(before, after) per axis in ONNX order, as `torch.nn.functional.pad` wants it: last axis first."""
    return [amount for side in reversed(sides) for amount in side]
