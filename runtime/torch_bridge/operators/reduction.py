"""Reductions over axes given as an attribute, or from some opset on as an input."""

from collections.abc import Callable

import torch
from torch import Tensor

from runtime.torch_bridge.registry import Function, Node, operator

Reduce = Callable[[Tensor, tuple[int, ...], bool], Tensor]


def _product(x: Tensor, axes: tuple[int, ...], keep: bool) -> Tensor:
    for axis in sorted((axis % x.dim() for axis in axes), reverse=True):
        x = x.prod(axis, keepdim=keep)
    return x


def _sum(x: Tensor, axes: tuple[int, ...], keep: bool) -> Tensor:
    return x.sum(axes, keepdim=keep, dtype=x.dtype)


_REDUCTIONS: dict[str, Reduce] = {
    "ReduceMean": lambda x, axes, keep: x.mean(axes, keepdim=keep),
    "ReduceSum": _sum,
    "ReduceMax": lambda x, axes, keep: x.amax(axes, keepdim=keep),
    "ReduceMin": lambda x, axes, keep: x.amin(axes, keepdim=keep),
    "ReduceProd": _product,
    "ReduceL1": lambda x, axes, keep: _sum(x.abs(), axes, keep),
    "ReduceL2": lambda x, axes, keep: _sum(x.square(), axes, keep).sqrt(),
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
                return x
            return reduce(x, tuple(axes or range(x.dim())), keep)

        return run

    return build


for _name, _reduce in _REDUCTIONS.items():
    operator(_name, since=1)(_with_axes_as_attribute(_reduce))
    operator(_name, since=13 if _name == "ReduceSum" else 18, numbers=(1,))(_with_axes_as_input(_reduce))
