"""Operators that put tensors together, take them apart, and repeat them: Concat, Split, Tile, Expand."""

from collections.abc import Sequence

import numpy as np

from onnx_lathe.runtime.targets.core.node import Node, Unsupported
from onnx_lathe.runtime.targets.ncnn.expressions import ONE, Pair, holds, is_open, pairs, product
from onnx_lathe.runtime.targets.ncnn.moving import (
    TO_THE_END,
    along,
    grouped,
    held,
    leave,
    refuse_computed_shape,
    reshape,
)
from onnx_lathe.runtime.targets.ncnn.network import MOST_DIMENSIONS, Axes, Loose, Network
from onnx_lathe.runtime.targets.ncnn.registry import operator


@operator("Concat")
def concat(node: Node, net: Network) -> None:
    target = node.outputs[0]
    sizes = pairs(net, target)
    axis = node.integer("axis") % len(sizes)
    operands = [name for name in node.inputs if pairs(net, name)[axis] != (0, 0)]
    joined = [net.is_free(name) or name in net.counted for name in operands]
    if net.is_integer(target) and any(joined) and not all(joined):
        raise Unsupported("it joins integers that point with others")
    if len(operands) == 1:
        leave(node, net, held(net, operands[0]))
        return
    axes = _common(net, operands, target, axis)
    if axes is not None:
        bottoms = [net.form(name, axes).name for name in operands]
        net.put(node, "Concat", bottoms, {0: axes.index(axis)}, axes=axes)
        return
    groups = [
        group
        for group in (tuple(range(axis)), (axis,), tuple(range(axis + 1, len(sizes))))
        if any(sizes[one] != ONE for one in group) or group == (axis,)
    ]
    bottoms = [grouped(net, name, groups).name for name in operands]
    top = net.inner("Concat", target, bottoms, {0: groups.index((axis,))})
    leave(node, net, Loose(top, tuple(product([sizes[one] for one in group]) for group in groups)))


def _common(net: Network, operands: Sequence[str], target: str, axis: int) -> Axes | None:
    """A form that all operands can have: that in which most of them are, or else the usual one of the result."""
    forms = [net.blob(name).axes for name in operands if name not in net.loose and not net.is_free(name)]
    sizes = pairs(net, target)
    for axes in sorted(set(forms), key=forms.count, reverse=True):
        if axis in axes and all(place in axes or size == ONE for place, size in enumerate(sizes)):
            return axes
    long = tuple(place for place, size in enumerate(sizes) if size != ONE or place == axis)
    if len(long) > MOST_DIMENSIONS or net.loose.keys() & set(operands):
        return None
    usual = net.usual(target)
    return usual if axis in usual else long


@operator("Split", "SplitToSequence")
def split(node: Node, net: Network) -> None:
    if node.op != "Split":
        raise Unsupported("it makes a sequence")
    source = node.inputs[0]
    axis = node.integer("axis") % net.rank(source)
    blob, place = along(net, source, axis)
    parts = [pairs(net, name)[axis] if name else None for name in node.outputs]
    if len(parts) == 1:
        leave(node, net, held(net, source))
        return
    counts = _counts(node, net, axis)
    tops = [net.unused(name or f"{node.name}_part_{number}") for number, name in enumerate(node.outputs)]
    net.add("Slice", node.name, [blob.name], tops, {0: counts, 1: place})
    for position, (name, top) in enumerate(zip(node.outputs, tops, strict=True)):
        if name:
            size = pairs(net, name)[axis]
            leave(node, net, Loose(top, (*blob.dims[:place], size, *blob.dims[place + 1 :])), position)


def _counts(node: Node, net: Network, axis: int) -> list[int]:
    """How much of the axis each output has: numbers, or ncnn's word for equal parts of what is left."""
    whole, parts = pairs(net, node.inputs[0])[axis], len(node.outputs)
    given = net.values(node.inputs[1]) if node.given(1) else None
    if node.given(1) and given is None:
        raise Unsupported("the sizes of its parts are computed at run time")
    sizes = node.integers("split")
    if given is not None and np.array_equal(*given):
        sizes = [int(size) for size in given[0]]
    if sizes is None and not is_open(whole):
        chunk = -(-whole[0] // parts)
        sizes = [min(chunk, whole[0] - chunk * part) for part in range(parts)]
    if sizes is not None:
        if min(sizes) <= 0:
            raise Unsupported("one of its parts is empty")
        return sizes
    alike = given is None or holds(
        net, node.opset, node.inputs[1], node.inputs[0], lambda values, _: bool(np.all(values == values[0]))
    )
    if not alike or "num_outputs" in node.attributes:  # that one may leave a smaller part at other sizes
        raise Unsupported(f"the sizes of its parts along axis {axis} depend on the size of the input")
    return [TO_THE_END] * parts


@operator("Tile")
def tile(node: Node, net: Network) -> None:
    repeats = [int(count) for count in net.constant(node.inputs[1], "number of repeats")]
    if min(repeats, default=1) < 1:
        raise Unsupported("its result is empty")
    _repeat(node, net, repeats)


@operator("Expand")
def expand(node: Node, net: Network) -> None:
    """Dimensions of 1 are repeated; those that come in front are 1 until then."""
    refuse_computed_shape(node, net)
    before, after = pairs(net, node.inputs[0]), pairs(net, node.outputs[0])
    before = (ONE,) * (len(after) - len(before)) + before
    repeats = []
    for axis, (old, new) in enumerate(zip(before, after, strict=True)):
        if old != new and (old != ONE or is_open(new)):
            raise Unsupported(
                f"how often it repeats values along axis {axis} depends on the size of the input"
            )
        repeats.append(1 if old == new else new[0])
    _repeat(node, net, repeats)


def _repeat(node: Node, net: Network, repeats: Sequence[int]) -> None:
    """`repeats`: of each axis of the result. Axes between which nothing is repeated are one dimension."""
    source = node.inputs[0]
    sizes = pairs(net, source)
    sizes = (ONE,) * (len(repeats) - len(sizes)) + sizes
    if all(count == 1 for count in repeats):
        leave(node, net, held(net, source))
        return
    axes = _repeatable(net, source, repeats)
    if axes is not None:
        counts = [repeats[axis] for axis in axes]
        net.put(node, "Tile", [net.form(source, axes).name], {2: counts}, axes=axes)
        return
    groups = _groups(sizes, repeats)
    if len(groups) > MOST_DIMENSIONS:
        raise Unsupported(f"it repeats values along axes that need {len(groups)} dimensions; ncnn has 4")
    dims = [product([sizes[axis] for axis in group]) for group in groups]
    counts = [int(np.prod([repeats[axis] for axis in group])) for group in groups]
    blob = reshape(net, held(net, source), dims, node.outputs[0])
    top = net.inner("Tile", node.outputs[0], [blob.name], {2: counts})
    leave(node, net, Loose(top, tuple((a * n, b * n) for (a, b), n in zip(dims, counts, strict=True))))


def _repeatable(net: Network, source: str, repeats: Sequence[int]) -> Axes | None:
    """The form of the blob with the axes that are repeated, if it can have one."""
    if source in net.loose or len(repeats) != net.rank(source):
        return None
    repeated = {axis for axis, count in enumerate(repeats) if count > 1}
    axes = tuple(sorted({*net.blob(source).axes, *repeated}))
    return axes if len(axes) <= MOST_DIMENSIONS else None


def _groups(sizes: Sequence[Pair], repeats: Sequence[int]) -> list[list[int]]:
    """Neighbouring axes as one dimension where the repeats of their values are repeats of the whole: of a group, its
    outermost axis alone is repeated, or more of them if those within are 1.
    """
    groups: list[list[int]] = []
    for axis, (size, count) in enumerate(zip(sizes, repeats, strict=True)):
        if size == ONE and count == 1:
            continue
        whole = groups and all(sizes[one] == ONE for one in groups[-1])
        if groups and (count == 1 or (whole and size == ONE)):
            groups[-1].append(axis)
        else:
            groups.append([axis])
    return groups or [[0]]
