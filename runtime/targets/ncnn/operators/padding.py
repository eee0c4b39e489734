"""Pad: Padding around the last three dimensions of a blob, Crop where it takes values away."""

import math

import numpy as np

from onnx_lathe.runtime.targets.core.node import Node, Unsupported
from onnx_lathe.runtime.targets.ncnn.expressions import ONE, Pair, is_open, pairs
from onnx_lathe.runtime.targets.ncnn.moving import TO_THE_END, cropped, grouped, held, leave
from onnx_lathe.runtime.targets.ncnn.network import Loose, Network
from onnx_lathe.runtime.targets.ncnn.registry import operator

MODES = {"constant": 0, "edge": 1, "reflect": 2}
KEYS = {-1: (2, 3), -2: (0, 1), -3: (7, 8)}
"""Dimension, from the innermost -> parameters of what comes before and behind it."""


@operator("Pad")
def pad(node: Node, net: Network) -> None:
    source = node.inputs[0]
    mode = node.text("mode", "constant")
    if mode not in MODES:
        raise Unsupported(f"ncnn has no padding of mode '{mode}'")
    if net.is_integer(source):
        raise Unsupported("it pads integers")
    begin, end = _amounts(node, net)
    if mode != "constant" and min(*begin, *end) < 0:
        raise Unsupported(f"it takes values away in mode '{mode}'")
    value = _value(node, net) if mode == "constant" else 0.0
    axes = [axis for axis in range(len(begin)) if begin[axis] or end[axis]]
    if not axes:
        leave(node, net, held(net, source))
        return
    blob, places = _blob(net, source, axes)
    amounts = {place: (begin[axis], end[axis]) for place, axis in zip(places, axes, strict=True)}
    blob = _cut(net, blob, amounts, node.outputs[0])
    params: dict[int, int | float] = {4: MODES[mode], 5: value}
    dims = list(blob.dims)
    for place, (before, behind) in amounts.items():
        before, behind = max(before, 0), max(behind, 0)
        if mode == "reflect" and max(before, behind) >= min(dims[place]):
            raise Unsupported("it reflects more values than there are")
        first, last = KEYS[place - len(dims)]
        params |= {first: before, last: behind}
        dims[place] = (dims[place][0] + before + behind, dims[place][1] + before + behind)
    if dims != list(blob.dims):
        top = net.inner("Padding", node.outputs[0], [blob.name], params)
        blob = Loose(top, tuple(dims))
    leave(node, net, blob)


def _amounts(node: Node, net: Network) -> tuple[list[int], list[int]]:
    """(before, behind) each axis of the input."""
    given = node.integers("pads") or node.integers("paddings")
    if given is None:
        given = [int(one) for one in net.constant(node.inputs[1], "padding").reshape(-1)]
    rank = net.rank(node.inputs[0])
    axes = list(range(rank))
    if node.given(3):
        axes = [int(axis) % rank for axis in net.constant(node.inputs[3], "axes").reshape(-1)]
    begin, end = [0] * rank, [0] * rank
    for place, axis in enumerate(axes):
        begin[axis], end[axis] = given[place], given[place + len(axes)]
    return begin, end


def _value(node: Node, net: Network) -> float:
    value = node.number("value", 0.0)
    if node.given(2):
        value = float(net.constant(node.inputs[2], "padding value").reshape(-1)[0])
    if not math.isfinite(value):
        raise Unsupported(f"it pads with {value}, which ncnn's files have no number for")
    return float(np.float32(value))


def _blob(net: Network, source: str, axes: list[int]) -> tuple[Loose, list[int]]:
    """(a blob of which the padded axes are among the last three dimensions, which of them they are). Axes that stay as
    they are, are one dimension with their neighbours where they must be.
    """
    sizes = pairs(net, source)
    if source not in net.loose:
        blob = net.blob(source)
        kept = tuple(sorted({*blob.axes, *axes}))
        if len(kept) <= 4 and (len(kept) < 4 or kept[0] not in axes):
            dims = tuple(sizes[axis] for axis in kept)
            return Loose(net.form(source, kept).name, dims), [kept.index(axis) for axis in axes]
    groups: list[list[int]] = []
    for axis in range(len(sizes)):
        if groups and axis not in axes and groups[-1][0] not in axes:
            groups[-1].append(axis)
        else:
            groups.append([axis])
    groups = [group for group in groups if group[0] in axes or any(sizes[axis] != ONE for axis in group)]
    if len(groups) > 4 or (len(groups) == 4 and groups[0][0] in axes):
        raise Unsupported("it pads more of its axes than ncnn's layer, which pads the last three")
    found = grouped(net, source, [tuple(group) for group in groups])
    return found, [groups.index([axis]) for axis in axes]


def _cut(net: Network, blob: Loose, amounts: dict[int, tuple[int, int]], label: str) -> Loose:
    """Without what negative amounts take away."""
    cuts: dict[int, tuple[int, int, Pair]] = {}
    for place, (before, behind) in amounts.items():
        if min(before, behind) < 0:
            gone = max(-before, 0), max(-behind, 0)
            size = blob.dims[place]
            left = (size[0] - sum(gone), size[1] - sum(gone))
            if min(left) <= 0:
                raise Unsupported("it takes all values away")
            last = left[0] + gone[0] if not is_open(size) else -gone[1] or TO_THE_END
            cuts[place] = (gone[0], last, left)
    return cropped(net, blob, cuts, label)
