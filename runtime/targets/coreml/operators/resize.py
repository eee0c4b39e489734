"""Resize and Upsample.

ONNX has seven ways to say which place of the input a place of the output is. What ONNX Runtime computes along an axis
is the product with a matrix, [values before, values after], which it makes of a unit matrix. That is compared with what
MIL's operations do by their documentation; where none does the same, the matrix itself is a weight.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from onnx_lathe.errors import ModelError
from onnx_lathe.runtime.targets.core.node import Node, Unsupported
from onnx_lathe.runtime.targets.core.resampling import by_onnxruntime
from onnx_lathe.runtime.targets.coreml.dimensions import is_open
from onnx_lathe.runtime.targets.coreml.knowledge import Pair
from onnx_lathe.runtime.targets.coreml.network import Network
from onnx_lathe.runtime.targets.coreml.registry import operator
from onnx_lathe.runtime.targets.coreml.resampling import MODES, by_mil

MOST_MATRIX = 1 << 22
"""Values of a matrix that stands for a resize."""


@dataclass(frozen=True)
class Axis:
    """An axis that is resized. `scale`: as the node has it; None where it has sizes."""

    axis: int
    before: Pair
    after: Pair
    scale: float | None


@operator("Resize", "Upsample")
def resize(node: Node, net: Network) -> None:
    before, after = net.pairs(node.inputs[0]), net.pairs(node.outputs[0])
    scales = _scales(node, net)
    rank = len(before)
    axes = [
        Axis(axis, before[axis], after[axis], None if scales is None else scales[axis])
        for axis in range(rank)
        if before[axis] != after[axis] or (scales is not None and scales[axis] != 1.0)
    ]
    source = net.variable(node.inputs[0])
    if not axes:
        net.leave(node, source)
        return
    if not net.is_float(source):
        raise Unsupported("it resizes integers; MIL resizes floats")
    for name in (
        "coordinate_transformation_mode",
        "nearest_mode",
        "cubic_coeff_a",
        "exclude_outside",
        "extrapolation_value",
        "antialias",
        "mode",
    ):
        node.attributes.get(name)
    last = all(one.axis >= rank - 2 for one in axes) and rank >= 3
    if last and (found := _operation(node, net, axes, before[-2:], after[-2:])):
        kind, inputs = found
        net.put(node, kind, x=source, **inputs)
        return
    for one in axes:
        source = _by_matrix(node, net, source, one)
    net.leave(node, source)


def _scales(node: Node, net: Network) -> list[float] | None:
    """The scale of each axis; None if the node has sizes."""
    if node.text("keep_aspect_ratio_policy", "stretch") != "stretch":
        raise Unsupported("it keeps the aspect ratio")
    if node.text("coordinate_transformation_mode", "") == "tf_crop_and_resize":
        raise Unsupported("it crops a region before it resizes (tf_crop_and_resize)")
    rank = net.rank(node.inputs[0])
    axes = [axis % rank for axis in node.integers("axes") or range(rank)]
    place = 1 if node.op == "Upsample" or node.opset < 11 else 2
    if place == 2 and node.given(3):
        if net.values(node.inputs[3]) is None:
            raise Unsupported("its sizes are computed at run time")
        return None
    values = node.attributes.get("scales")
    if values is None:
        values = net.constant(node.inputs[place], "scale")
    scales = [1.0] * rank
    for axis, scale in zip(axes, values, strict=True):
        scales[axis] = float(scale)
    return scales


def _operation(
    node: Node, net: Network, axes: list[Axis], before: tuple[Pair, ...], after: tuple[Pair, ...]
) -> tuple[str, dict[str, Any]] | None:
    """MIL's operation that does the same with the last two axes, if there is one."""
    ratios = [_ratio(one, other) for one, other in zip(before, after, strict=True)]
    mode = node.text("mode", "nearest")
    if mode == "nearest" and None not in ratios and all(_agrees(node, one, "nearest") for one in axes):
        height, width = ratios
        return "upsample_nearest_neighbor", {"scale_factor_height": height, "scale_factor_width": width}
    if mode not in ("linear", "bilinear"):
        return None
    found = next((way for way in MODES if all(_agrees(node, one, way) for one in axes)), None)
    if found is None:
        return None
    if not any(map(is_open, after)):
        sizes = {"target_size_height": after[0][0], "target_size_width": after[1][0]}
        return "resize_bilinear", {**sizes, "sampling_mode": found}
    if None in ratios or found not in ("UNALIGN_CORNERS", "STRICT_ALIGN_CORNERS"):
        return None
    height, width = ratios
    aligned = found == "STRICT_ALIGN_CORNERS"
    return "upsample_bilinear", {
        "scale_factor_height": height,
        "scale_factor_width": width,
        "align_corners": aligned,
    }


def _ratio(before: Pair, after: Pair) -> int | None:
    """By how many times an axis grows, if that is a whole number at both sizes."""
    ratio = after[0] // before[0]
    return ratio if ratio >= 1 and (before[0] * ratio, before[1] * ratio) == after else None


def _agrees(node: Node, one: Axis, way: str) -> bool:
    """Whether MIL's `way` takes the same places with the same weights, at both sizes."""
    for before, after in zip(one.before, one.after, strict=True):
        wanted, ours = _matrix(node, one, before, after), by_mil(way, before, after)
        # ONNX Runtime computes places in float32: their rounding grows with the size, and is one of the weights
        if wanted.shape != ours.shape or np.abs(wanted - ours).max() > 1e-6 + 5e-7 * (before + after):
            return False
    return True


def _matrix(node: Node, one: Axis, before: int, after: int) -> np.ndarray:
    """[before, after]."""
    attributes = {
        name: value
        for name, value in dict(node.attributes).items()
        if name not in ("axes", "keep_aspect_ratio_policy", "scales")
    }
    try:
        return by_onnxruntime(
            node.op, node.opset, tuple(sorted(attributes.items())), before, after, one.scale
        )
    except ModelError as error:
        raise Unsupported(f"ONNX Runtime does not resize one axis of it alone: {error}") from error


def _by_matrix(node: Node, net: Network, source: Any, one: Axis) -> Any:
    """The axis, moved to the end if need be, times the matrix."""
    if is_open(one.before) or is_open(one.after):
        raise Unsupported("MIL has no such resize of an axis whose size depends on the size of the input")
    if one.before[0] * one.after[0] > MOST_MATRIX:
        raise Unsupported(
            f"MIL has no resize like it, and a matrix of {one.before[0]} x {one.after[0]} in its place is too large"
        )
    rank, label = net.rank(node.inputs[0]), f"{node.name}_axis_{one.axis}"
    matrix = net.stored(f"{label}_weights", _matrix(node, one, one.before[0], one.after[0]))
    order = [axis for axis in range(rank) if axis != one.axis] + [one.axis]
    if one.axis != rank - 1:
        source = net.op("transpose", f"{label}_last", x=source, perm=order)
    source = net.op("matmul", label, x=source, y=matrix)
    if one.axis != rank - 1:
        source = net.op(
            "transpose", f"{label}_back", x=source, perm=[order.index(axis) for axis in range(rank)]
        )
    return source


@operator("GridSample")
def grid_sample(node: Node, net: Network) -> None:
    mode = {"bilinear": "bilinear", "linear": "bilinear", "nearest": "nearest"}.get(
        node.text("mode", "linear")
    )
    padding = {"zeros": "constant", "border": "border"}.get(node.text("padding_mode", "zeros"))
    if mode is None or padding is None or net.rank(node.inputs[0]) != 4:
        raise Unsupported("its mode, padding or dimensions are none of those of MIL's resample")
    net.put(
        node,
        "resample",
        x=net.variable(node.inputs[0]),
        coordinates=net.variable(node.inputs[1]),
        sampling_mode=mode,
        padding_mode=padding,
        padding_value=net.number(0.0),
        coordinates_mode="normalized_minus_one_to_one",
        align_corners=node.integer("align_corners") == 1,
    )
