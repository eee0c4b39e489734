"""Conv and ConvTranspose in one, two or three dimensions, their deformable relative, and Col2Im."""

import itertools
import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Size, Tensor

from onnx_lathe.errors import ModelError
from onnx_lathe.metadata import CONV_ALGORITHM
from onnx_lathe.runtime.torch_bridge.operators.tiles import tiled
from onnx_lathe.runtime.torch_bridge.operators.window import Window, torch_padding, window
from onnx_lathe.runtime.torch_bridge.registry import Function, Node, RefusedError, operator
from onnx_lathe.tiles import TAPS, Tiles

_CONV: dict[int, Any] = {3: F.conv1d, 4: F.conv2d, 5: F.conv3d}
_TRANSPOSED: dict[int, Any] = {3: F.conv_transpose1d, 4: F.conv_transpose2d, 5: F.conv_transpose3d}


class Convolution:
    """A Conv. `tiles`: how it is computed in float16 in place of PyTorch's convolution; None: it is not."""

    def __init__(self, node: Node) -> None:
        self.node, self.groups = node, node.integer("group", 1)
        self.tiles: Tiles | None = None
        self._geometry: dict[Size, Window] = {}

    def __call__(self, x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        shape = self.geometry(weight.shape[2:])
        padding: Any = 0
        if shape.symmetric and self.tiles is None:
            padding = shape.before
        else:
            sides = torch_padding([shape.padding(axis, size) for axis, size in enumerate(x.shape[2:])])
            if self.tiles is not None:
                self._check_kernel(weight.shape[2:])
                return tiled(x, weight, bias, self.tiles, sides)
            x = F.pad(x, sides)
        result: Tensor = _CONV[x.dim()](x, weight, bias, shape.strides, padding, shape.dilations, self.groups)
        return result

    def _check_kernel(self, kernel: Size) -> None:
        """Raises ModelError, as for the attributes `untileable` tells before."""
        if tuple(kernel) != (TAPS, TAPS):
            raise ModelError(
                f"{CONV_ALGORITHM} of the convolution by {self.node.names[1]} is for kernels of {TAPS} x {TAPS}, not "
                f"{' x '.join(map(str, kernel))}; remove the entry, or leave winograd= out"
            )

    def untileable(self) -> str | None:
        """Why it cannot be computed by tiles, as far as its attributes tell."""
        kernel = self.node.integers("kernel_shape")
        for name in ("strides", "dilations"):
            if any(step != 1 for step in self.node.integers(name) or ()):
                return f"its {name} are {self.node.integers(name)}"
        if self.groups != 1:
            return f"it has {self.groups} groups"
        return f"its kernel is {kernel}" if kernel not in (None, [3, 3]) else None

    def geometry(self, kernel: Size) -> Window:
        if kernel not in self._geometry:
            self._geometry[kernel] = window(self.node, list(kernel))
        return self._geometry[kernel]


@operator("Conv", since=1)
def conv(node: Node) -> Function:
    return Convolution(node)


@operator("ConvTranspose", since=1)
def conv_transpose(node: Node) -> Function:
    groups = node.integer("group", 1)

    def run(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        shape = window(node, list(weight.shape[2:]))
        extra = node.integers("output_padding") or [0] * len(shape.kernel)
        sizes = list(x.shape[2:])
        full = [
            (size - 1) * shape.strides[axis] + shape.extent(axis) + extra[axis]
            for axis, size in enumerate(sizes)
        ]
        crop = [(-before, -after) for before, after in _crops(node, shape, sizes, full)]
        grows = any(after > 0 for _, after in crop)
        result: Tensor = _TRANSPOSED[x.dim()](
            x, weight, None if grows else bias, shape.strides, 0, extra, groups, shape.dilations
        )
        if any(map(any, crop)):
            result = F.pad(result, torch_padding(crop))
        if grows and bias is not None:  # it also fills what the result grows by
            result = result + bias.reshape([-1] + [1] * len(sizes))
        return result

    return run


def _crops(node: Node, shape: Window, sizes: list[int], full: list[int]) -> list[tuple[int, int]]:
    """Elements to cut off the unpadded result before and after, per axis; negative, behind only, to add
    zeros.
    """
    wanted = node.integers("output_shape")
    if wanted is None and shape.pads is not None:
        return [shape.padding(axis, size) for axis, size in enumerate(sizes)]
    if wanted is None:
        wanted = (
            full
            if shape.auto_pad == "VALID"
            else [size * stride for size, stride in zip(sizes, shape.strides, strict=True)]
        )
    totals = [have - want for have, want in zip(full, wanted[-len(full) :], strict=True)]
    befores = [
        max(total // 2 if shape.auto_pad == "SAME_UPPER" else total - total // 2, 0) for total in totals
    ]
    return [(before, total - before) for before, total in zip(befores, totals, strict=True)]


@operator("Col2Im", since=18, numbers=(1, 2))
def col2im(node: Node) -> Function:
    """The sum, at each place of the image, of the blocks' values that lie on it. Input [N, C * taps,
    blocks].
    """

    def run(columns: Tensor, image: list[int], block: list[int]) -> Tensor:
        shape, taps = window(node, block), math.prod(block)
        pads = [shape.padding(axis, size) for axis, size in enumerate(image)]
        counts = [shape.count(axis, size) for axis, size in enumerate(image)]
        parts = columns.reshape(columns.shape[0], -1, taps, *counts)
        result = columns.new_zeros(
            [*parts.shape[:2], *(size + sum(pad) for size, pad in zip(image, pads, strict=True))]
        )
        for tap, offsets in enumerate(itertools.product(*map(range, block))):
            places = tuple(
                slice(offset * dilation, offset * dilation + (count - 1) * stride + 1, stride)
                for offset, dilation, stride, count in zip(
                    offsets, shape.dilations, shape.strides, counts, strict=True
                )
            )
            result[(slice(None), slice(None), *places)] += parts[:, :, tap]
        return F.pad(result, torch_padding([(-before, -after) for before, after in pads]))

    return run


@operator("DeformConv", since=19)
def deformable_convolution(node: Node) -> Function:
    """Dai et al., "Deformable Convolutional Networks", ICCV 2017; with a mask Zhu et al., "Deformable
    ConvNets v2", CVPR 2019.
    """
    groups, offset_groups = node.integer("group", 1), node.integer("offset_group", 1)
    if node.ranks[0] not in (0, 4):
        raise RefusedError("in other than two dimensions")

    def run(
        x: Tensor, weight: Tensor, offset: Tensor, bias: Tensor | None = None, mask: Tensor | None = None
    ) -> Tensor:
        shape = window(node, list(weight.shape[2:]))
        size, (height, width) = x.shape[0], offset.shape[2:]
        taps = list(itertools.product(range(shape.kernel[0]), range(shape.kernel[1])))
        images = x.reshape(size * offset_groups, -1, *x.shape[2:])
        moves = offset.reshape(size * offset_groups, len(taps), 2, height, width)
        factors = None if mask is None else mask.reshape(size * offset_groups, len(taps), 1, height, width)
        columns = []
        for index, tap in enumerate(taps):
            rows, places = (
                torch.arange(count, device=x.device, dtype=x.dtype) * shape.strides[axis]
                + (tap[axis] * shape.dilations[axis] - shape.padding(axis, x.shape[axis + 2])[0])
                for axis, count in enumerate((height, width))
            )
            at = [rows[:, None] + moves[:, index, 0], places + moves[:, index, 1]]
            grid = [(2 * place + 1) / extent - 1 for place, extent in zip(at, x.shape[2:], strict=True)]
            values = F.grid_sample(images, torch.stack(grid[::-1], -1), align_corners=False)
            columns.append(values if factors is None else values * factors[:, index])
        sampled = torch.stack(columns, 2).reshape(size, groups, -1, height * width)
        result = (weight.reshape(groups, -1, sampled.shape[2]) @ sampled).reshape(size, -1, height, width)
        return result if bias is None else result + bias.reshape(-1, 1, 1)

    return run
