"""Operators that move values without computing on them."""

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from onnx_lathe.runtime.torch_bridge.operators.window import torch_padding
from onnx_lathe.runtime.torch_bridge.registry import Function, Node, operator, scalar


@operator("Reshape", since=1)
def reshape_1(node: Node) -> Function:
    run, shape = reshape(node), node.integers("shape")
    return lambda x: run(x, shape)


@operator("Reshape", since=5, numbers=(1,))
def reshape(node: Node) -> Function:
    copy_zeros = not node.integer("allowzero")

    def run(x: Tensor, shape: list[int]) -> Tensor:
        if copy_zeros and 0 in shape:
            shape = [size or x.shape[axis] for axis, size in enumerate(shape)]
        return x.reshape(shape)

    return run


@operator("Flatten", since=1)
def flatten(node: Node) -> Function:
    axis = node.integer("axis", 1)

    def run(x: Tensor) -> Tensor:
        return x.reshape(math.prod(x.shape[:axis]), math.prod(x.shape[axis:]))

    return run


@operator("Transpose", since=1)
def transpose(node: Node) -> Function:
    order = node.integers("perm")
    return lambda x: x.permute(order if order is not None else list(range(x.dim()))[::-1])


def _squeezed(x: Tensor, axes: list[int] | None = None) -> Tensor:
    return x.squeeze() if axes is None else x.squeeze(tuple(axes))


def _unsqueezed(x: Tensor, axes: list[int]) -> Tensor:
    rank = x.dim() + len(axes)
    for axis in sorted(axis % rank for axis in axes):
        x = x.unsqueeze(axis)
    return x


@operator("Squeeze", since=1)
def squeeze_1(node: Node) -> Function:
    axes = node.integers("axes")
    return lambda x: _squeezed(x, axes)


@operator("Squeeze", since=13, numbers=(1,))
def squeeze(node: Node) -> Function:
    return _squeezed


@operator("Unsqueeze", since=1)
def unsqueeze_1(node: Node) -> Function:
    axes = node.integers("axes") or []
    return lambda x: _unsqueezed(x, axes)


@operator("Unsqueeze", since=13, numbers=(1,))
def unsqueeze(node: Node) -> Function:
    return _unsqueezed


@operator("Concat", since=1)
def concat(node: Node) -> Function:
    axis = node.integer("axis", 1)
    return lambda *tensors: torch.cat(tensors, axis)


@operator("Split", since=2)
def split_2(node: Node) -> Function:
    sizes = node.integers("split")
    run = split(node)
    return lambda x: run(x, sizes)


@operator("Split", since=13, numbers=(1,))
def split(node: Node) -> Function:
    axis, count = node.integer("axis"), node.integer("num_outputs", node.outputs)

    def run(x: Tensor, sizes: list[int] | None = None) -> tuple[Tensor, ...]:
        if sizes is None:
            part = -(-x.shape[axis] // count)
            sizes = [part] * (count - 1) + [x.shape[axis] - part * (count - 1)]
        return torch.split(x, sizes, axis)

    return run


@operator("Slice", since=1)
def slice_1(node: Node) -> Function:
    run, starts, ends, axes = (
        slice_(node),
        node.integers("starts"),
        node.integers("ends"),
        node.integers("axes"),
    )
    return lambda x: run(x, starts, ends, axes)


@operator("Slice", since=10, numbers=(1, 2, 3, 4))
def slice_(node: Node) -> Function:
    def run(
        x: Tensor,
        starts: list[int],
        ends: list[int],
        axes: list[int] | None = None,
        steps: list[int] | None = None,
    ) -> Tensor:
        ranges = zip(starts, ends, axes or range(len(starts)), steps or [1] * len(starts), strict=True)
        for start, end, axis, step in ranges:
            if step > 0:
                # exporters write "to the end" as the largest integer, of which PyTorch warns
                size = x.shape[axis]
                x = x[(slice(None),) * (axis % x.dim()) + (slice(max(start, -size), min(end, size), step),)]
            else:
                chosen = range(*slice(start, end, step).indices(x.shape[axis]))
                x = x.index_select(axis, torch.tensor(list(chosen), dtype=torch.int64, device=x.device))
        return x

    return run


@operator("Pad", since=1)
def pad_1(node: Node) -> Function:
    run, value = pad(node), node.number("value", 0.0)
    pads = node.integers("pads") or node.integers("paddings")
    return lambda x: run(x, pads, value)


@operator("Pad", since=11, numbers=(1, 2, 3))
def pad(node: Node) -> Function:
    mode = node.text("mode", "constant")

    def run(x: Tensor, pads: list[int], value: float | None = None, axes: list[int] | None = None) -> Tensor:
        sides = [(0, 0)] * x.dim()
        for index, axis in enumerate(range(x.dim()) if axes is None else axes):
            sides[axis] = pads[index], pads[index + len(pads) // 2]
        if mode == "constant":
            return F.pad(x, torch_padding(sides), value=scalar(value) or 0)
        for axis, side in enumerate(sides):
            if side != (0, 0):
                source = np.pad(np.arange(x.shape[axis]), side, mode=mode)  # type: ignore[call-overload]
                x = x.index_select(axis, torch.from_numpy(source).to(x.device))
        return x

    return run


@operator("Expand", since=8, numbers=(1,))
def expand(node: Node) -> Function:
    return lambda x, shape: x.expand(torch.broadcast_shapes(x.shape, shape))


@operator("Tile", since=6, numbers=(1,))
def tile(node: Node) -> Function:
    return torch.tile


def _blocks(x: Tensor, sizes: list[int], order: tuple[int, ...], result: list[int]) -> Tensor:
    return x.reshape(sizes).permute(order).reshape(result)


@operator("CenterCropPad", since=18, numbers=(1,))
def center_crop_pad(node: Node) -> Function:
    given = node.integers("axes")

    def run(x: Tensor, shape: list[int]) -> Tensor:
        sides = [(0, 0)] * x.dim()
        for axis, want in zip(range(x.dim()) if given is None else given, shape, strict=True):
            missing = abs(want - x.shape[axis])
            side = missing // 2, missing - missing // 2
            sides[axis] = side if want > x.shape[axis] else (-side[0], -side[1])
        return F.pad(x, torch_padding(sides))

    return run


@operator("DepthToSpace", since=1)
def depth_to_space(node: Node) -> Function:
    block = node.integer("blocksize")
    column_first = node.text("mode", "DCR") == "CRD"

    def run(x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        c //= block * block
        if column_first:
            return _blocks(x, [n, c, block, block, h, w], (0, 1, 4, 2, 5, 3), [n, c, h * block, w * block])
        return _blocks(x, [n, block, block, c, h, w], (0, 3, 4, 1, 5, 2), [n, c, h * block, w * block])

    return run


@operator("SpaceToDepth", since=1)
def space_to_depth(node: Node) -> Function:
    block = node.integer("blocksize")
    column_first = node.text("mode", "DCR") == "CRD"

    def run(x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        h, w = h // block, w // block
        if column_first:
            return _blocks(x, [n, c, h, block, w, block], (0, 1, 3, 5, 2, 4), [n, c * block * block, h, w])
        return _blocks(x, [n, c, h, block, w, block], (0, 3, 5, 1, 2, 4), [n, c * block * block, h, w])

    return run
