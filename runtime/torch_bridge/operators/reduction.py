"""Reductions over axes given as an attribute, or from some opset on as an input."""

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from onnx_lathe.runtime.torch_bridge.registry import Function, Node, operator

Reduce = Callable[[Tensor, tuple[int, ...], bool], Tensor]


def _product(x: Tensor, axes: tuple[int, ...], keep: bool) -> Tensor:
    for axis in sorted((axis % x.dim() for axis in axes), reverse=True):
        x = x.prod(axis, keepdim=keep)
    return x


def _extreme(function: Reduce, highest: bool) -> Reduce:
    """`function`, which PyTorch does not define on no elements, where ONNX gives the least or greatest
    value of the type.
    """

    def run(x: Tensor, axes: tuple[int, ...], keep: bool) -> Tensor:
        if x.numel():
            return function(x, axes, keep)
        if x.dtype.is_floating_point:
            value: Any = torch.inf if highest else -torch.inf
        elif x.dtype == torch.bool:
            value = highest
        else:
            value = torch.iinfo(x.dtype).max if highest else torch.iinfo(x.dtype).min
        return torch.full_like(_sum(x, axes, keep), value)

    return run


def _mean(x: Tensor, axes: tuple[int, ...], keep: bool) -> Tensor:
    if x.is_floating_point():
        return x.mean(axes, keepdim=keep)
    return torch.div(_sum(x, axes, keep), math.prod(x.shape[axis] for axis in axes), rounding_mode="trunc")


def _norm(x: Tensor, axes: tuple[int, ...], keep: bool) -> Tensor:
    if x.is_floating_point():
        # its gradient at zero is 0, that of a square root is infinite
        return torch.linalg.vector_norm(x, 2, axes, keep)
    return _sum(x.square(), axes, keep).sqrt().to(x.dtype)


def _sum(x: Tensor, axes: tuple[int, ...], keep: bool) -> Tensor:
    return x.sum(axes, keepdim=keep, dtype=x.dtype)


_REDUCTIONS: dict[str, Reduce] = {
    "ReduceMean": _mean,
    "ReduceSum": _sum,
    "ReduceMax": _extreme(lambda x, axes, keep: x.amax(axes, keepdim=keep), highest=False),
    "ReduceMin": _extreme(lambda x, axes, keep: x.amin(axes, keepdim=keep), highest=True),
    "ReduceProd": _product,
    "ReduceL1": lambda x, axes, keep: _sum(x.abs(), axes, keep),
    "ReduceL2": _norm,
    "ReduceSumSquare": lambda x, axes, keep: _sum(x.square(), axes, keep),
    "ReduceLogSum": lambda x, axes, keep: _sum(x, axes, keep).log(),
    "ReduceLogSumExp": lambda x, axes, keep: torch.logsumexp(x, axes, keepdim=keep),
}


def _with_axes_as_attribute(reduce: Reduce) -> Callable[[Node], Function]:
    def build(node: Node) -> Function:
        axes, keep = node.integers("axes"), bool(node.integer("keepdims", 1))
        return lambda x: reduce(x, tuple(range(x.dim()) if axes is None else axes), keep)

    return build


def _with_axes_as_input(reduce: Reduce) -> Callable[[Node], Function]:
    def build(node: Node) -> Function:
        keep, unless_given = bool(node.integer("keepdims", 1)), bool(node.integer("noop_with_empty_axes"))

        def run(x: Tensor, axes: list[int] | None = None) -> Tensor:
            if not axes and unless_given:
                return reduce(x.unsqueeze(-1), (-1,), False)  # over sets of one value
            return reduce(x, tuple(axes or range(x.dim())), keep)

        return run

    return build


for _name, _reduce in _REDUCTIONS.items():
    operator(_name, since=1)(_with_axes_as_attribute(_reduce))
    operator(_name, since=13 if _name == "ReduceSum" else 18, numbers=(1,))(_with_axes_as_input(_reduce))
