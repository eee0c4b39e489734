"""Operators that select or place values by index."""

import math
from typing import Any

import torch
from torch import Tensor

from onnx_lathe.runtime.torch_bridge.registry import Function, Node, RefusedError, operator, scalar


def _never_negative(indices: Tensor | None) -> bool:
    return indices is not None and (indices.numel() == 0 or int(indices.min()) >= 0)


def _wrapped(indices: Tensor, size: int) -> Tensor:
    """Indices counted from the end made into indices counted from the beginning."""
    return torch.where(indices < 0, indices + size, indices)


@operator("Gather", since=1)
def gather(node: Node) -> Function:
    """A codebook weight is this with a vector as data: its gradient sums over all weights that share a
    centroid.
    """
    axis = node.integer("axis")
    plain = _never_negative(node.constants[1])

    def run(data: Tensor, indices: Tensor) -> Tensor:
        flat = indices.reshape(-1) if plain else _wrapped(indices.reshape(-1), data.shape[axis])
        where = axis % data.dim()
        return data.index_select(axis, flat).reshape(
            data.shape[:where] + indices.shape + data.shape[where + 1 :]
        )

    return run


@operator("GatherElements", since=11)
def gather_elements(node: Node) -> Function:
    axis = node.integer("axis")
    return lambda data, indices: torch.gather(data, axis, _wrapped(indices, data.shape[axis]).long())


@operator("GatherND", since=11)
def gather_nd(node: Node) -> Function:
    batch_axes = node.integer("batch_dims")

    def run(data: Tensor, indices: Tensor) -> Tensor:
        places: list[Tensor] = []
        for axis in range(batch_axes):  # each sample selects from itself
            places.append(
                torch.arange(data.shape[axis], device=data.device).reshape(
                    [-1] + [1] * (indices.dim() - axis - 2)
                )
            )
        return data[(*places, *indices.unbind(-1))]

    return run


_SCATTERED: dict[str, str | None] = {"none": None, "add": "sum", "mul": "prod", "max": "amax", "min": "amin"}
"""ONNX reduction -> PyTorch's name of it."""


def _scatter_reduction(node: Node) -> str | None:
    reduction = node.text("reduction", "none")
    if reduction not in _SCATTERED:
        raise RefusedError(f"with reduction {reduction}")
    return _SCATTERED[reduction]


@operator("Scatter", since=9)
@operator("ScatterElements", since=11)
def scatter_elements(node: Node) -> Function:
    axis, reduction = node.integer("axis"), _scatter_reduction(node)

    def run(data: Tensor, indices: Tensor, updates: Tensor) -> Tensor:
        places = _wrapped(indices, data.shape[axis]).long()
        if reduction is None:
            return data.scatter(axis, places, updates)
        return data.scatter_reduce(axis, places, updates, reduction)

    return run


@operator("ScatterND", since=11)
def scatter_nd(node: Node) -> Function:
    reduction = _scatter_reduction(node)

    def run(data: Tensor, indices: Tensor, updates: Tensor) -> Tensor:
        if reduction is None:
            return data.index_put(indices.unbind(-1), updates)
        depth = indices.shape[-1]
        row = torch.zeros(indices.shape[:-1], dtype=torch.int64, device=data.device)
        for axis, index in enumerate(indices.unbind(-1)):
            row = row * data.shape[axis] + _wrapped(index, data.shape[axis])
        width = math.prod(data.shape[depth:])
        places = row.reshape(-1, 1) * width + torch.arange(width, device=data.device)
        return (
            data.flatten()
            .scatter_reduce(0, places.flatten(), updates.flatten(), reduction)
            .reshape(data.shape)
        )

    return run


@operator("OneHot", since=9, numbers=(1,))
def one_hot(node: Node) -> Function:
    axis = node.integer("axis", -1)

    def run(indices: Tensor, depth: Any, values: Tensor) -> Tensor:
        count = int(scalar(depth))
        classes = torch.arange(count, device=indices.device)
        # an index out of range gives a row of off values
        hot = _wrapped(indices.long(), count).unsqueeze(-1) == classes
        return torch.where(hot, values[1], values[0]).movedim(-1, axis)

    return run


@operator("ReverseSequence", since=10)
def reverse_sequence(node: Node) -> Function:
    time, batch = node.integer("time_axis", 0), node.integer("batch_axis", 1)

    def run(x: Tensor, lengths: Tensor) -> Tensor:
        steps = torch.arange(x.shape[time], device=x.device)
        ends = lengths.reshape(-1, 1)
        places = torch.where(steps < ends, ends - 1 - steps, steps)  # [batch, time]
        if time < batch:
            places = places.t()
        shape = [size if axis in (time, batch) else 1 for axis, size in enumerate(x.shape)]
        return x.gather(time, places.reshape(shape).expand(x.shape))

    return run


@operator("NonZero", since=9)
def non_zero(node: Node) -> Function:
    return lambda x: torch.nonzero(x).t()


@operator("Compress", since=9)
def compress(node: Node) -> Function:
    axis = node.attributes.get("axis")

    def run(x: Tensor, condition: Tensor) -> Tensor:
        chosen = torch.nonzero(condition).flatten()
        return x.flatten().index_select(0, chosen) if axis is None else x.index_select(axis, chosen)

    return run


@operator("TopK", since=1)
def topk_1(node: Node) -> Function:
    run, count = topk(node), node.integer("k")
    return lambda x: run(x, count)


@operator("TopK", since=10, numbers=(1,))
def topk(node: Node) -> Function:
    axis, largest = node.integer("axis", -1), bool(node.integer("largest", 1))

    def run(x: Tensor, count: Any) -> tuple[Tensor, ...]:
        # torch.topk leaves the order of equals open
        ordered = torch.sort(x, stable=True, dim=axis, descending=largest)
        return tuple(part.narrow(axis, 0, scalar(count)) for part in ordered)

    return run


@operator("ArgMax", since=1)
def argmax(node: Node) -> Function:
    return _extreme(node, torch.argmax)


@operator("ArgMin", since=1)
def argmin(node: Node) -> Function:
    return _extreme(node, torch.argmin)


def _extreme(node: Node, function: Function) -> Function:
    axis, keep = node.integer("axis"), bool(node.integer("keepdims", 1))
    if node.integer("select_last_index"):
        return lambda x: x.shape[axis] - 1 - function(x.flip(axis), dim=axis, keepdim=keep)
    return lambda x: function(x, dim=axis, keepdim=keep)
