"""Samples that a graph does not take in one call: run some at a time, or one by one, and joined."""

from collections.abc import Callable, Mapping, Sequence

import torch

Tensors = Mapping[str, torch.Tensor]
Compute = Callable[[Tensors], tuple[torch.Tensor, ...]]


def piecewise(compute: Compute, feeds: Tensors, size: int) -> tuple[torch.Tensor, ...]:
    """The outputs of pieces of `size` samples, joined; the last piece is filled up by repeating its last
    sample.
    """
    count = _count(feeds)
    rows = torch.arange(-(-count // size) * size).clamp(max=count - 1).split(size)
    parts = [compute({name: tensor[row.to(tensor.device)] for name, tensor in feeds.items()}) for row in rows]
    return tuple(torch.cat(outputs)[:count] for outputs in zip(*parts, strict=True))


def one_by_one(compute: Compute, feeds: Tensors) -> tuple[torch.Tensor, ...]:
    """The outputs for inputs [samples, *shape], each sample a call, joined by `joined`."""
    parts = [compute({name: tensor[row] for name, tensor in feeds.items()}) for row in range(_count(feeds))]
    return tuple(joined(outputs) for outputs in zip(*parts, strict=True))


def joined(outputs: Sequence[torch.Tensor]) -> torch.Tensor:
    """One output of several calls, each of one sample: single numbers as [samples], [classes] as
    [samples, classes], and others along their first axes.
    """
    shapes = {tuple(one.shape) for one in outputs}
    per_sample = len(shapes) == 1 and len(next(iter(shapes))) < 2 and shapes != {(1,)}
    return torch.stack(tuple(outputs)) if per_sample else torch.cat(tuple(outputs))


def _count(feeds: Tensors) -> int:
    return len(next(iter(feeds.values())))
