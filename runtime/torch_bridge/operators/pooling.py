"""MaxPool, AveragePool and the global pools, in one, two or three dimensions."""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from onnx_lathe.runtime.torch_bridge.operators.window import Window, torch_padding, window
from onnx_lathe.runtime.torch_bridge.registry import Function, Node, RefusedError, operator

_MAX: dict[int, Any] = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
_AVERAGE: dict[int, Any] = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}


def _native(shape: Window) -> bool:
    """Whether PyTorch's own pooling pads so: the same on both sides, by at most half the kernel."""
    return (
        shape.symmetric
        and not shape.ceil
        and all(2 * pad <= size for pad, size in zip(shape.before, shape.kernel, strict=True))
    )


def _padded(x: Tensor, shape: Window, value: float) -> Tensor:
    """x padded (or cut) behind to exactly what the last window touches."""
    sides = [(shape.padding(axis, size)[0], shape.reach(axis, size)) for axis, size in enumerate(x.shape[2:])]
    return F.pad(x, torch_padding(sides), value=value)


@operator("MaxPool", since=1)
def max_pool(node: Node) -> Function:
    shape = _pool_window(node)
    pool = _MAX[len(shape.kernel)]
    if node.used > 1:
        return _with_indices(node, shape, pool)
    if _native(shape):
        return lambda x: pool(x, shape.kernel, shape.strides, shape.before, shape.dilations)
    return lambda x: pool(_padded(x, shape, _lowest(x)), shape.kernel, shape.strides, 0, shape.dilations)


def _lowest(x: Tensor) -> float:
    return -torch.inf if x.is_floating_point() else torch.iinfo(x.dtype).min


def _with_indices(node: Node, shape: Window, pool: Any) -> Function:
    """The maxima, and where each is in the flattened input: ONNX counts over the whole tensor, PyTorch over
    one padded channel.
    """
    column_major = node.integer("storage_order")

    def run(x: Tensor) -> tuple[Tensor, Tensor]:
        padded = _padded(x, shape, _lowest(x))
        result, found = pool(padded, shape.kernel, shape.strides, 0, shape.dilations, return_indices=True)
        sizes, place = list(x.shape[2:]), torch.zeros_like(found)
        steps = [math.prod(sizes[:axis] if column_major else sizes[axis + 1 :]) for axis in range(len(sizes))]
        for axis in reversed(range(len(sizes))):
            place += (found % padded.shape[axis + 2] - shape.padding(axis, sizes[axis])[0]) * steps[axis]
            found = found // padded.shape[axis + 2]
        planes = torch.arange(math.prod(x.shape[:2]), device=x.device).reshape(
            list(x.shape[:2]) + [1] * len(sizes)
        )
        return result, place + planes * math.prod(sizes)

    return run


@operator("MaxUnpool", since=9, numbers=(2,))
def max_unpool(node: Node) -> Function:
    shape = _pool_window(node)
    pads = shape.pads or []

    def run(x: Tensor, indices: Tensor, wanted: list[int] | None = None) -> Tensor:
        full = list(x.shape[:2])
        for axis, size in enumerate(x.shape[2:]):
            full.append(
                (size - 1) * shape.strides[axis]
                + shape.kernel[axis]
                - pads[axis]
                - pads[axis + len(shape.kernel)]
            )
        result = x.new_zeros(math.prod(full)).scatter(0, indices.flatten(), x.flatten()).reshape(full)
        behind = [] if wanted is None else [(0, want - have) for want, have in zip(wanted, full, strict=True)]
        return F.pad(result, torch_padding(behind)) if behind else result

    return run


def _pool_window(node: Node) -> Window:
    kernel = node.integers("kernel_shape") or []
    if len(kernel) not in _MAX:
        raise RefusedError(f"in {len(kernel)} dimensions")
    return window(node, kernel)


@operator("AveragePool", since=1)
def average_pool(node: Node) -> Function:
    shape = _pool_window(node)
    pool = _AVERAGE[len(shape.kernel)]
    with_padding = bool(node.integer("count_include_pad"))
    if _native(shape) and set(shape.dilations) == {1}:
        return lambda x: pool(x, shape.kernel, shape.strides, shape.before, False, with_padding)

    def run(x: Tensor) -> Tensor:
        total = _window_sums(x, shape)
        for axis, size in enumerate(x.shape[2:]):
            taps = x.new_tensor(_tap_counts(shape, axis, size, with_padding))
            total = total / taps.reshape([-1] + [1] * (len(shape.kernel) - axis - 1))
        return total

    return run


@operator("LpPool", since=2)
def lp_pool(node: Node) -> Function:
    shape, order = _pool_window(node), node.integer("p", 2)
    return lambda x: _root(_window_sums(x.abs() ** order, shape), order)


@operator("GlobalLpPool", since=2)
def global_lp_pool(node: Node) -> Function:
    order = node.integer("p", 2)
    return lambda x: torch.linalg.vector_norm(x, order, tuple(range(2, x.dim())), keepdim=True)


def _root(x: Tensor, order: int) -> Tensor:
    """The root, with gradient 0 instead of infinity at 0."""
    return torch.where(x > 0, torch.where(x > 0, x, 1) ** (1 / order), 0)


def _window_sums(x: Tensor, shape: Window) -> Tensor:
    """The sum over each window, zeros outside the input."""
    total = _padded(x, shape, 0.0)
    for axis, size in enumerate(x.shape[2:]):
        total = _sum_of_taps(total, axis, shape, shape.count(axis, size))
    return total


def _sum_of_taps(x: Tensor, axis: int, shape: Window, count: int) -> Tensor:
    """Sum of each window along one spatial axis: one strided view per tap."""
    stride, dilation = shape.strides[axis], shape.dilations[axis]
    views = [
        x[
            (slice(None),) * (axis + 2)
            + (slice(tap * dilation, tap * dilation + (count - 1) * stride + 1, stride),)
        ]
        for tap in range(shape.kernel[axis])
    ]
    return torch.stack(views).sum(0)


def _tap_counts(shape: Window, axis: int, size: int, with_padding: bool) -> Sequence[int]:
    """How many taps of each window along one axis count: those on the input, or on the input and its
    padding.
    """
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
