"""Resize and Upsample: RESIZE_NEAREST_NEIGHBOR and RESIZE_BILINEAR where they take the same places with the same weights.

ONNX has seven ways to say which place of the input a place of the output is, LiteRT three. What ONNX Runtime computes for
each axis is compared with what the kernels do (resampling.py). What none of them does is a GATHER along each axis, or a
weighted sum of several.
"""

from dataclasses import dataclass

import numpy as np

from onnx_lathe.runtime.targets.litert.dimensions import Dim, is_open
from onnx_lathe.runtime.targets.litert.emitter import FLOAT, INT32, Emitter
from onnx_lathe.runtime.targets.litert.network import Network
from onnx_lathe.runtime.targets.litert.node import Node, Unsupported
from onnx_lathe.runtime.targets.litert.registry import operator
from onnx_lathe.runtime.targets.litert.resampling import (
    Kernel,
    Resampling,
    attributes,
    kernel_for,
    taps,
    weights,
)

MOST_TAPS = 4
"""Values that go into one: as many as a cubic interpolation has. More are an antialiased reduction."""


WHOLE = (0.0, 1.0)
"""The region of an axis that is taken."""


@dataclass(frozen=True)
class Axis:
    """An axis that is resized. `scale`: as the node has it; None where it has sizes."""

    number: int
    before: Dim
    after: Dim
    scale: float | None
    region: tuple[float, float] = WHOLE


@operator("Resize", "Upsample", integers=("INT8",), data=(0,))
def resize(node: Node, net: Network) -> None:
    emit = Emitter(node, net)
    source = emit.operand(0)
    axes = [one for one in _axes(node, net, emit) if not _stays(node, one)]
    if not axes:
        net.name_output(node, source)
        return
    resampled = [[_weights(node, one, place) for one in axes] for place in (0, 1)]
    kernels = [kernel_for([(one, *one.shape) for one in found]) for found in resampled]
    numbers = [one.number for one in axes]
    if (
        kernels[0] is not None
        and kernels[0] == kernels[1]
        and (numbers := _image_axes(numbers, emit.rank(source)))
    ):
        _put(emit, source, kernels[0], numbers)
    elif any(is_open(one.after) for one in axes):
        raise Unsupported(f"{_described(node)}, which LiteRT has not, and its sizes depend on the input's")
    else:
        emit.in_float = node.on_integers and any(len(taps(one)) > 1 for one in resampled[0])
        source = emit.operand(0)
        for one, values in zip(axes, resampled[0], strict=True):
            source = _weighted(node, emit, source, one.number, values)
        emit.leave(source)


def _axes(node: Node, net: Network, emit: Emitter) -> list[Axis]:
    before, after = emit.dims(emit.operand(0)), emit.given()
    if node.text("keep_aspect_ratio_policy", "stretch") != "stretch":
        raise Unsupported("it keeps the aspect ratio: give it the sizes that this leads to")
    rank = len(before)
    given = node.integers("axes")
    order = list(range(rank)) if given is None else [axis % rank for axis in given]
    place = 1 if node.op == "Upsample" or node.opset < 11 else 2
    scales: list[float | None] = [1.0] * rank
    if place == 2 and node.given(3):
        if not net.is_free(node.inputs[3]):
            raise Unsupported("its sizes are computed at run time, from what the input holds")
        scales = [None] * rank
    else:
        values = node.attributes.get("scales")
        values = net.constant(node.inputs[place], "scale") if values is None else values
        for axis, scale in zip(order, values, strict=True):
            scales[axis] = float(scale)
    regions = [WHOLE] * rank
    if node.text("coordinate_transformation_mode", "half_pixel") == "tf_crop_and_resize":
        values = net.constant(node.inputs[1], "region").reshape(2, -1)
        for number, axis in enumerate(order):
            regions[axis] = (float(values[0, number]), float(values[1, number]))
    return [Axis(axis, before[axis], after[axis], scales[axis], regions[axis]) for axis in range(rank)]


def _stays(node: Node, one: Axis) -> bool:
    """Whether an axis is as it was, at every size."""
    return one.before == one.after and one.scale in (None, 1.0) and one.region == WHOLE


def _weights(node: Node, one: Axis, place: int) -> np.ndarray:
    before, after = one.before[place], one.after[place]
    given = attributes(
        {**dict(node.attributes.items()), "extrapolation_value": 0.0}
        if one.region != WHOLE
        else node.attributes
    )
    found = weights(Resampling(node.op, node.opset, given, before, after, one.scale, one.region))
    outside = bool(np.any(found.sum(axis=0) == 0.0))
    if outside and node.number("extrapolation_value", 0.0) != 0.0:
        raise Unsupported("its region goes beyond the image, where its extrapolation_value is not 0")
    if found.shape != (before, after):
        raise Unsupported("ONNX Runtime resizes one axis of it by itself to another size")
    return found


def _image_axes(numbers: list[int], rank: int) -> list[int]:
    """The two neighbouring axes that the kernel resizes, of a tensor of 4 with channels behind; none if there are no two."""
    if rank == 4 and set(numbers) <= {1, 2}:
        return [1, 2]
    if rank == 4 and set(numbers) <= {2, 3}:
        return [2, 3]
    if rank == 3 and len(numbers) == 1 and numbers[0] > 0:
        return [numbers[0]]
    return []


def _put(emit: Emitter, source: int, kernel: Kernel, numbers: list[int]) -> None:
    """Channels that stand in front of the axes are moved behind them, and back; of one axis, the other is 1."""
    after = emit.given()
    image, sizes = source, [after[axis] for axis in numbers]
    if len(numbers) == 1:
        turned = emit.transpose(source, (0, 2, 1)) if numbers[0] == 2 else source
        dims = emit.dims(turned)
        image = emit.reshape(turned, (dims[0], dims[1], (1, 1), dims[2]))
        sizes.append((1, 1))
    elif numbers == [2, 3]:
        image = emit.transpose(source, (0, 2, 3, 1))
    inputs = [image, _sizes(emit, source, numbers, sizes)]
    code, options = (
        ("RESIZE_BILINEAR", "ResizeBilinearOptions")
        if kernel.linear
        else ("RESIZE_NEAREST_NEIGHBOR", "ResizeNearestNeighborOptions")
    )
    fields = {"alignCorners": kernel.align_corners, "halfPixelCenters": kernel.half_pixel}
    if image == source:
        emit.net.put(emit.node, code, inputs, options, **fields)
        return
    dims = emit.dims(image)
    found = emit.op(code, inputs, (dims[0], *sizes, dims[3]), None, options, **fields)
    if len(numbers) == 2:
        emit.leave(emit.transpose(found, (0, 3, 1, 2)))
        return
    flat = emit.reshape(found, (dims[0], sizes[0], dims[3]))
    emit.leave(emit.transpose(flat, (0, 2, 1)) if numbers[0] == 2 else flat)


def _sizes(emit: Emitter, source: int, numbers: list[int], sizes: list[Dim]) -> int:
    """INT32 [2]: where they are open, as the model computes them, or so many times those of the source."""
    node, given = emit.node, emit.node.integers("axes")
    if not any(map(is_open, sizes)) or not (node.opset >= 11 and node.given(3)):
        return emit.run_time_sizes(sizes, source)
    rank = emit.rank(source)
    order = list(range(rank)) if given is None else [axis % rank for axis in given]
    if any(axis not in order for axis in numbers):
        return emit.run_time_sizes(sizes, source)
    own = emit.cast(emit.read(3), INT32)
    found = emit.gather(own, np.array([order.index(axis) for axis in numbers]), 0)
    return found if len(numbers) == 2 else emit.concat([found, emit.integers([1], "size")], 0)


def _weighted(node: Node, emit: Emitter, source: int, axis: int, values: np.ndarray) -> int:
    """The sum of values along an axis, each with its weight."""
    parts = taps(values)
    if len(parts) > MOST_TAPS:
        raise Unsupported(
            f"{_described(node)}, which takes {len(parts)} values for one: LiteRT has no such resizing"
        )
    if len(parts) > 1 and emit.type(source) != FLOAT:
        raise Unsupported("it interpolates integers: cast its input to float32")
    behind = (1,) * (emit.rank(source) - 1 - axis)
    result = None
    for places, shares in parts:
        taken = emit.gather(source, places, axis)
        if not np.all(shares == 1.0):
            taken = emit.mul(taken, emit.floats(shares.reshape(-1, *behind), "shares"))
        result = taken if result is None else emit.add(result, taken)
    assert result is not None
    return result


def _described(node: Node) -> str:
    how = [node.text("mode", "nearest")]
    if node.op == "Resize" and node.opset >= 11:
        how.append(node.text("coordinate_transformation_mode", "half_pixel"))
        if how[0] == "nearest":
            how.append(node.text("nearest_mode", "round_prefer_floor"))
    return f"it resizes with mode {', '.join(how)}"
