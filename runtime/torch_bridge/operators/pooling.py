"""MaxPool, AveragePool and the global pools, in one, two or three dimensions."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from runtime.torch_bridge.operators.window import Window, torch_padding, window
from runtime.torch_bridge.registry import Function, Node, RefusedError, operator

_MAX: dict[int, Any] = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
_AVERAGE: dict[int, Any] = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}


def _native(shape: Window) -> bool:
    """Whether PyTorch's own pooling pads so: the same on both sides, by at most half the kernel."""
    return shape.symmetric and not shape.ceil and all(2 * pad <= size for pad, size in zip(shape.before, shape.kernel, strict=True))


def _padded(x: Tensor, shape: Window, value: float) -> Tensor:
    """x padded (or cut) behind to exactly what the last window touches."""
    sides = [(shape.padding(axis, size)[0], shape.reach(axis, size)) for axis, size in enumerate(x.shape[2:])]
    return F.pad(x, torch_padding(sides), value=value)


@operator("MaxPool", since=1)
def max_pool(node: Node) -> Function:
    if node.used > 1:
        raise RefusedError("with indices")
    shape = window(node, node.integers("kernel_shape") or [])
    pool = _MAX[len(shape.kernel)]
    if _native(shape):
        return lambda x: pool(x, shape.kernel, shape.strides, shape.before, shape.dilations)
    return lambda x: pool(_padded(x, shape, -torch.inf), shape.kernel, shape.strides, 0, shape.dilations)


@operator("AveragePool", since=7)
def average_pool(node: Node) -> Function:
    shape = window(node, node.integers("kernel_shape") or [])
    pool = _AVERAGE[len(shape.kernel)]
    with_padding = bool(node.integer("count_include_pad"))
    if _native(shape) and set(shape.dilations) == {1}:
        return lambda x: pool(x, shape.kernel, shape.strides, shape.before, False, with_padding)

    def run(x: Tensor) -> Tensor:
        total = _padded(x, shape, 0.0)
        for axis, size in enumerate(x.shape[2:]):
            total = _sum_of_taps(total, axis, shape, shape.count(axis, size))
            taps = x.new_tensor(_tap_counts(shape, axis, size, with_padding))
            total = total / taps.reshape([-1] + [1] * (len(shape.kernel) - axis - 1))
        return total

    return run


def _sum_of_taps(x: Tensor, axis: int, shape: Window, count: int) -> Tensor:
    """Sum of each window along one spatial axis: one strided view per tap."""
    stride, dilation = shape.strides[axis], shape.dilations[axis]
    views = [
        x[(slice(None),) * (axis + 2) + (slice(tap * dilation, tap * dilation + (count - 1) * stride + 1, stride),)]
        for tap in range(shape.kernel[axis])
    ]
    return torch.stack(views).sum(0)


def _tap_counts(shape: Window, axis: int, size: int, with_padding: bool) -> Sequence[int]:
    """How many taps of each window along one axis count: those on the input, or on the input and its padding."""
    before, after = shape.padding(axis, size)
    low, high = (-before, size + after) if with_padding else (0, size)
    starts = [index * shape.strides[axis] - before for index in range(shape.count(axis, size))]
    offsets = [tap * shape.dilations[axis] for tap in range(shape.kernel[axis])]
    return [sum(low <= start + offset < high for offset in offsets) for start in starts]


@operator("GlobalAveragePool", since=1)
def global_average_pool(node: Node) -> Function:
    return lambda x: x.mean(tuple(range(2, x.dim())), keepdim=True)


@operator("GlobalMaxPool", since=1)
def global_max_pool(node: Node) -> Function:
    return lambda x: x.amax(tuple(range(2, x.dim())), keepdim=True)
