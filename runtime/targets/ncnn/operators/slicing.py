"""Slice: Crop for what lies together, Flip for what runs backwards, a pooling of single values for steps."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from onnx_lathe.runtime.targets.core.node import Node, Unsupported
from onnx_lathe.runtime.targets.ncnn.expressions import Pair, holds, is_open, pairs, product
from onnx_lathe.runtime.targets.ncnn.moving import TO_THE_END, along, cropped, held, leave, reshape
from onnx_lathe.runtime.targets.ncnn.network import Loose, Network
from onnx_lathe.runtime.targets.ncnn.registry import operator

FARTHEST = 2**31 - 1
MAX_POOLING, NO_CEIL = 0, 1


@dataclass(frozen=True)
class Part:
    """What is taken along one axis: from `start` to `end`, in Crop's words, `size` values; of these, every `step`-th,
    from the last one backwards where the step is negative.
    """

    axis: int
    start: int
    end: int
    size: Pair
    step: int = 1


@operator("Slice")
def slice_(node: Node, net: Network) -> None:
    take(node, net, _parts(node, net))


def take(node: Node, net: Network, parts: Sequence[Part]) -> None:
    """Writes the layers that take these parts of the node's first input."""
    source, label = node.inputs[0], node.outputs[0]
    if not parts:
        leave(node, net, held(net, source))
        return
    if source in net.loose or any(part.axis not in net.blob(source).axes for part in parts):
        if len(parts) > 1:
            raise Unsupported("it takes parts of several axes of a tensor with more dimensions than ncnn has")
        blob, place = along(net, source, parts[0].axis)
        places = [place]
    else:
        axes, sizes = net.blob(source).axes, pairs(net, source)
        blob = Loose(net.blob(source).name, tuple(sizes[axis] for axis in axes))
        places = [axes.index(part.axis) for part in parts]
    cuts = {
        place: (part.start, part.end, part.size)
        for place, part in zip(places, parts, strict=True)
        if (part.start, part.end) != (0, TO_THE_END)
        and (is_open(blob.dims[place]) or blob.dims[place] != part.size)  # else it cuts at other sizes
    }
    blob = cropped(net, blob, cuts, label)
    backwards = [place for place, part in zip(places, parts, strict=True) if part.step < 0]
    if backwards:
        blob = Loose(net.inner("Flip", label, [blob.name], {0: backwards}), blob.dims)
    strides = {place: abs(part.step) for place, part in zip(places, parts, strict=True) if abs(part.step) > 1}
    if strides:
        blob = strided(net, blob, strides, label)
    leave(node, net, blob)


def strided(net: Network, blob: Loose, strides: dict[int, int], label: str) -> Loose:
    """Every so many-th value along these dimensions: the largest of one value is that value."""
    if net.is_integer(label):
        raise Unsupported("it steps over integers")
    if len(blob.dims) == 3 and strides.keys() <= {1, 2}:
        return _pooled(net, blob, strides.get(1, 1), strides.get(2, 1), label)
    for place, stride in strides.items():
        before, after = product(blob.dims[:place]), product(blob.dims[place + 1 :])
        flat = reshape(net, blob, (before, blob.dims[place], after), label)
        size = _steps(blob.dims[place], stride)
        pooled = _pooled(net, flat, stride, 1, label)
        blob = reshape(net, pooled, (*blob.dims[:place], size, *blob.dims[place + 1 :]), label)
    return blob


def _pooled(net: Network, blob: Loose, height: int, width: int, label: str) -> Loose:
    params = {0: MAX_POOLING, 1: 1, 11: 1, 2: width, 12: height, 5: NO_CEIL}
    top = net.inner("Pooling", label, [blob.name], params)
    return Loose(top, (blob.dims[0], _steps(blob.dims[1], height), _steps(blob.dims[2], width)))


def _steps(size: Pair, stride: int) -> Pair:
    return -(-size[0] // stride), -(-size[1] // stride)


def _parts(node: Node, net: Network) -> list[Part]:
    """What is taken along each axis; nothing of those that stay whole."""
    source = node.inputs[0]
    sizes = pairs(net, source)
    starts, ends = _bounds(node, net, 1, "starts"), _bounds(node, net, 2, "ends")
    count = len(starts[0])
    axes = _fixed(node, net, 3, "axes") or list(range(count))
    steps = _fixed(node, net, 4, "steps") or [1] * count
    parts = []
    for number, (axis, step) in enumerate(zip(axes, steps, strict=True)):
        axis %= len(sizes)
        start = (int(starts[0][number]), int(starts[1][number]))
        end = (int(ends[0][number]), int(ends[1][number]))
        certain = tuple(
            not is_open(bound) or _from_end(node, net, place, number, axis)
            for place, bound in ((1, start), (2, end))
        )
        part = _part(sizes[axis], start, end, step, axis, certain)
        if part is not None:
            parts.append(part)
    return parts


def _bounds(node: Node, net: Network, place: int, what: str) -> tuple[np.ndarray, np.ndarray]:
    """Starts or ends, at both sizes of the model's input."""
    if what in node.attributes:
        values = np.array(node.integers(what))
        return values, values
    found = net.values(node.inputs[place])
    if found is None:
        raise Unsupported(f"its {what} are computed at run time")
    return found[0].reshape(-1), found[1].reshape(-1)


def _fixed(node: Node, net: Network, place: int, what: str) -> list[int] | None:
    if what in node.attributes:
        return node.integers(what)
    return [int(one) for one in net.constant(node.inputs[place], what)] if node.given(place) else None


def _from_end(node: Node, net: Network, place: int, number: int, axis: int) -> bool:
    """Whether an open bound is as far from the end of its axis at every size as it is at the two that are known."""
    source = node.inputs[0]
    if not node.given(place):
        return False
    found = net.values(node.inputs[place])
    if found is None:
        return False
    distance = int(found[0].reshape(-1)[number]) - net.shape(source)[axis]
    return holds(
        net,
        node.opset,
        node.inputs[place],
        source,
        lambda values, shape: int(values.reshape(-1)[number]) - shape[axis] == distance,
    )


def _part(size: Pair, start: Pair, end: Pair, step: int, axis: int, certain: Sequence[bool]) -> Part | None:
    """None if that is the whole axis."""
    taken = [
        range(*slice(first, last, step).indices(whole))
        for first, last, whole in zip(start, end, size, strict=True)
    ]
    if not all(map(len, taken)):
        raise Unsupported(f"it takes nothing along axis {axis}")
    low = (min(taken[0][0], taken[0][-1]), min(taken[1][0], taken[1][-1]))
    high = (max(taken[0][0], taken[0][-1]) + 1, max(taken[1][0], taken[1][-1]) + 1)
    if not is_open(size):
        if is_open(low) or is_open(high):
            raise _unclear(axis)
        part = Part(axis, low[0], high[0], (high[0] - low[0],) * 2, step)
        return None if part.size == size and step == 1 else part
    whole = (start[0] == -1 or start[0] >= FARTHEST // 2) and max(end) <= -FARTHEST // 2  # at any size
    if step < 0 and (step != -1 or is_open(start) or not whole):
        raise Unsupported(f"it steps backwards along axis {axis}, whose size is open")
    if step < 0:
        return Part(axis, 0, TO_THE_END, size, step)
    if step > 1:  # the last value need not be a start plus so many steps: up to the end, then
        high = tuple(slice(None, last).indices(whole)[1] for last, whole in zip(end, size, strict=True))  # type: ignore[assignment]
    begin, until = _start(size, start, axis, certain[0]), _end(size, end, axis, certain[1])
    if (begin, until, step) == (0, TO_THE_END, 1):
        return None
    return Part(axis, begin, until, (high[0] - low[0], high[1] - low[1]), step)


def _start(size: Pair, start: Pair, axis: int, certain: bool) -> int:
    """The start on an open axis, as Crop has it: from the end if negative."""
    first = start[0]
    if not is_open(start) and (0 <= first < min(size) or (-min(size) <= first < 0 and first != TO_THE_END)):
        return first
    if not is_open(start) and first <= -FARTHEST // 2:
        return 0
    if (
        certain
        and is_open(start)
        and start[0] - size[0] == start[1] - size[1]
        and -min(size) <= start[0] - size[0] < 0
    ):
        return start[0] - size[0]
    raise _unclear(axis)


def _end(size: Pair, end: Pair, axis: int, certain: bool) -> int:
    """The end on an open axis; one behind the axis means all, at any size."""
    last = end[0]
    if not is_open(end) and last >= FARTHEST // 2:
        return TO_THE_END
    if not is_open(end) and (last > 0 or (-min(size) < last < 0 and last != TO_THE_END)):
        return last
    if certain and is_open(end) and last - size[0] == end[1] - size[1] and -min(size) < last - size[0] <= 0:
        return last - size[0] or TO_THE_END
    raise _unclear(axis)


def _unclear(axis: int) -> Unsupported:
    return Unsupported(f"how much it takes along axis {axis} depends on the size of the input")
