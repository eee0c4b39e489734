"""Operators that select or place values by index."""

import torch
from torch import Tensor

from runtime.torch_bridge.registry import Function, Node, RefusedError, operator


def _never_negative(indices: Tensor | None) -> bool:
    return indices is not None and (indices.numel() == 0 or int(indices.min()) >= 0)


def _wrapped(indices: Tensor, size: int) -> Tensor:
    """Indices counted from the end made into indices counted from the beginning."""
    return torch.where(indices < 0, indices + size, indices)


@operator("Gather", since=1)
def gather(node: Node) -> Function:
    """A codebook weight is this with a vector as data: its gradient sums over all weights that share a centroid."""
    axis = node.integer("axis")
    plain = _never_negative(node.constants[1])

    def run(data: Tensor, indices: Tensor) -> Tensor:
        flat = indices.reshape(-1) if plain else _wrapped(indices.reshape(-1), data.shape[axis])
        where = axis % data.dim()
        return data.index_select(axis, flat).reshape(data.shape[:where] + indices.shape + data.shape[where + 1 :])

    return run


@operator("GatherElements", since=11)
def gather_elements(node: Node) -> Function:
    axis = node.integer("axis")
    return lambda data, indices: torch.gather(data, axis, _wrapped(indices, data.shape[axis]).long())


@operator("GatherND", since=11)
def gather_nd(node: Node) -> Function:
    if node.integer("batch_dims"):
        raise RefusedError("with batch_dims")
    return lambda data, indices: data[indices.unbind(-1)]


@operator("ScatterElements", since=11)
def scatter_elements(node: Node) -> Function:
    if node.text("reduction", "none") != "none":
        raise RefusedError("with reduction")
    axis = node.integer("axis")
    return lambda data, indices, updates: data.scatter(axis, _wrapped(indices, data.shape[axis]).long(), updates)


@operator("ScatterND", since=11)
def scatter_nd(node: Node) -> Function:
    if node.text("reduction", "none") != "none":
        raise RefusedError("with reduction")
    return lambda data, indices, updates: data.index_put(indices.unbind(-1), updates)


@operator("TopK", since=11, numbers=(1,))
def topk(node: Node) -> Function:
    axis, largest = node.integer("axis", -1), bool(node.integer("largest", 1))

    def run(x: Tensor, count: list[int]) -> tuple[Tensor, ...]:
        ordered = torch.sort(x, stable=True, dim=axis, descending=largest)  # torch.topk leaves the order of equals open
        return tuple(part.narrow(axis, 0, count[0]) for part in ordered)

    return run


@operator("ArgMax", since=1)
def argmax(node: Node) -> Function:
    return _extreme(node, torch.argmax)


@operator("ArgMin", since=1)
def argmin(node: Node) -> Function:
    return _extreme(node, torch.argmin)


def _extreme(node: Node, function: Function) -> Function:
    if node.integer("select_last_index"):
        raise RefusedError("with select_last_index")
    axis, keep = node.integer("axis"), bool(node.integer("keepdims", 1))
    return lambda x: function(x, dim=axis, keepdim=keep)
