"""Conv and ConvTranspose in one, two or three dimensions."""

from functools import cache
from typing import Any

import torch.nn.functional as F
from torch import Size, Tensor

from runtime.torch_bridge.operators.window import Window, torch_padding, window
from runtime.torch_bridge.registry import Function, Node, operator

_CONV: dict[int, Any] = {3: F.conv1d, 4: F.conv2d, 5: F.conv3d}
_TRANSPOSED: dict[int, Any] = {3: F.conv_transpose1d, 4: F.conv_transpose2d, 5: F.conv_transpose3d}


@operator("Conv", since=1)
def conv(node: Node) -> Function:
    groups = node.integer("group", 1)

    @cache
    def geometry(kernel: Size) -> Window:
        return window(node, list(kernel))

    def run(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        shape = geometry(weight.shape[2:])
        padding: Any = 0
        if shape.symmetric:
            padding = shape.before
        else:
            x = F.pad(x, torch_padding([shape.padding(axis, size) for axis, size in enumerate(x.shape[2:])]))
        result: Tensor = _CONV[x.dim()](x, weight, bias, shape.strides, padding, shape.dilations, groups)
        return result

    return run


@operator("ConvTranspose", since=1)
def conv_transpose(node: Node) -> Function:
    groups = node.integer("group", 1)

    def run(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        shape = window(node, list(weight.shape[2:]))
        extra = node.integers("output_padding") or [0] * len(shape.kernel)
        full: Tensor = _TRANSPOSED[x.dim()](x, weight, bias, shape.strides, 0, extra, groups, shape.dilations)
        crop = [(-before, -after) for before, after in _crops(node, shape, list(x.shape[2:]), list(full.shape[2:]))]
        return F.pad(full, torch_padding(crop)) if any(map(any, crop)) else full

    return run


def _crops(node: Node, shape: Window, sizes: list[int], full: list[int]) -> list[tuple[int, int]]:
    """Elements to cut off the unpadded result before and after, per axis; negative to add zeros."""
    wanted = node.integers("output_shape")
    if wanted is None and shape.pads is not None:
        return [shape.padding(axis, size) for axis, size in enumerate(sizes)]
    if wanted is None:
        wanted = full if shape.auto_pad == "VALID" else [size * stride for size, stride in zip(sizes, shape.strides, strict=True)]
    totals = [have - want for have, want in zip(full, wanted[-len(full) :], strict=True)]
    if shape.auto_pad == "SAME_UPPER":
        return [(total // 2, total - total // 2) for total in totals]
    return [(total - total // 2, total // 2) for total in totals]
