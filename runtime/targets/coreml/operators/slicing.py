"""Slice and Pad."""

from dataclasses import dataclass

import numpy as np

from onnx_lathe.runtime.targets.core.node import Node, Unsupported
from onnx_lathe.runtime.targets.coreml.dimensions import is_open
from onnx_lathe.runtime.targets.coreml.knowledge import Pair
from onnx_lathe.runtime.targets.coreml.network import Network
from onnx_lathe.runtime.targets.coreml.registry import operator

FARTHEST = 1 << 20
"""Larger numbers stand for the end of an axis, whatever its size."""
MODES = {"constant": "constant", "reflect": "reflect", "edge": "replicate"}


@dataclass(frozen=True)
class Part:
    """What is taken along an axis: every `step`-th from `start` to `end`; None for either end of the axis."""

    axis: int
    start: int | None
    end: int | None
    step: int = 1


@operator("Slice")
def slice_(node: Node, net: Network) -> None:
    source, rank = net.variable(node.inputs[0]), net.rank(node.inputs[0])
    parts = _parts(node, net)
    for axis in (part.axis for part in parts if part.step < 0):
        source = net.op("reverse", f"{node.name}_reversed", x=source, axes=[axis])
    forward = {
        part.axis: part for part in parts if part.start is not None or part.end is not None or part.step > 1
    }
    if not forward:
        net.leave(node, source)
        return
    taken = [forward.get(axis, Part(axis, None, None)) for axis in range(rank)]
    net.put(
        node,
        "slice_by_index",
        x=source,
        begin=[part.start or 0 for part in taken],
        end=[part.end or 0 for part in taken],
        stride=[abs(part.step) for part in taken],
        begin_mask=[part.start is None for part in taken],
        end_mask=[part.end is None for part in taken],
    )


def _parts(node: Node, net: Network) -> list[Part]:
    pairs = net.pairs(node.inputs[0])
    starts, ends = _bounds(node, net, 1, "starts"), _bounds(node, net, 2, "ends")
    count = len(starts[0])
    axes = _numbers(node, net, 3, "axes") or list(range(count))
    steps = _numbers(node, net, 4, "steps") or [1] * count
    found = []
    for place, (axis, step) in enumerate(zip(axes, steps, strict=True)):
        axis %= len(pairs)
        start, end = ((int(one[0][place]), int(one[1][place])) for one in (starts, ends))
        found.append(_part(axis, pairs[axis], start, end, step))
    return found


def _part(axis: int, size: Pair, start: Pair, end: Pair, step: int) -> Part:
    if step < 0:
        return _backwards(axis, size, start, end, step)
    if not is_open(size) and not is_open(start) and not is_open(end):
        first, last = (min(max(one + size[0] if one < 0 else one, 0), size[0]) for one in (start[0], end[0]))
        if first >= last:
            raise Unsupported("it takes nothing")
        return Part(axis, first or None, None if last == size[0] else last, step)
    return Part(axis, _place(size, start), _place(size, end), step)


def _place(size: Pair, bound: Pair) -> int | None:
    """The same from one end of an axis of open size, at every size; None for that end."""
    if not is_open(bound):
        value = bound[0]
        if value >= FARTHEST or value == 0 or value <= -FARTHEST:
            return None
        if abs(value) <= size[0]:
            return value
    elif bound[0] - size[0] == bound[1] - size[1] <= 0:
        return bound[0] - size[0] or None
    raise Unsupported("what it takes depends on the size of the input, and it is not certain how")


def _backwards(axis: int, size: Pair, start: Pair, end: Pair, step: int) -> Part:
    """From the last value to the first alone, or parts of an axis whose size is known: of the axis, reversed."""
    if is_open(size) or is_open(start) or is_open(end):
        whole = start[0] in (-1, size[0] - 1) or start[0] >= FARTHEST
        if whole and end[0] < -size[0] and start[1] - start[0] in (0, size[1] - size[0]):
            return Part(axis, None, None, step)
        raise Unsupported("it runs backwards over a part of an axis of open size")
    taken = range(size[0])[slice(start[0], end[0], step)]
    if not taken:
        raise Unsupported("it takes nothing")
    first, last = size[0] - 1 - taken[0], size[0] - 1 - taken[-1]
    return Part(axis, first or None, None if last == size[0] - 1 else last + 1, step)


def _bounds(node: Node, net: Network, place: int, name: str) -> tuple[np.ndarray, np.ndarray]:
    """An attribute up to opset 9, an input since; at both sizes of the model's input."""
    if node.opset < 10:
        values = np.array(node.integers(name) or [], np.int64)
        return values, values
    found = net.values(node.inputs[place])
    if found is None:
        raise Unsupported(f"its {name} are computed at run time")
    return found[0].reshape(-1), found[1].reshape(-1)


def _numbers(node: Node, net: Network, place: int, name: str) -> list[int] | None:
    if node.opset < 10:
        return node.integers(name)
    return (
        [int(one) for one in net.constant(node.inputs[place], name).reshape(-1)]
        if node.given(place)
        else None
    )


@operator("Pad")
def pad(node: Node, net: Network) -> None:
    """Less than nothing is cut off first."""
    mode = node.text("mode", "constant")
    if mode not in MODES:
        raise Unsupported(f"Core ML has no padding of mode '{mode}'")
    source, rank = net.variable(node.inputs[0]), net.rank(node.inputs[0])
    begin, end = _amounts(node, net, rank)
    if min(*begin, *end) < 0:
        source = _cut(node, net, source, begin, end)
    pads = [max(amount, 0) for both in zip(begin, end, strict=True) for amount in both]
    if not any(pads):
        net.leave(node, source)
        return
    if mode != "constant" and any(pads[: max(2 * rank - 4, 0)]):
        raise Unsupported(f"it pads other axes than the last two with mode '{mode}'")
    value = _value(node, net) if mode == "constant" else 0.0
    net.put(node, "pad", x=source, pad=pads, mode=MODES[mode], constant_val=net.number(value))


def _amounts(node: Node, net: Network, rank: int) -> tuple[list[int], list[int]]:
    given = node.integers("pads" if node.opset > 1 else "paddings")
    values = (
        given
        if node.opset < 11
        else [int(one) for one in net.constant(node.inputs[1], "padding").reshape(-1)]
    )
    values = values or [0] * 2 * rank
    axes = list(range(rank))
    if node.given(3):
        axes = [int(axis) % rank for axis in net.constant(node.inputs[3], "axes").reshape(-1)]
    begin, end = [0] * rank, [0] * rank
    for place, axis in enumerate(axes):
        begin[axis], end[axis] = values[place], values[place + len(axes)]
    return begin, end


def _value(node: Node, net: Network) -> float:
    if node.opset < 11:
        return node.number("value", 0.0)
    return float(net.constant(node.inputs[2], "value").reshape(-1)[0]) if node.given(2) else 0.0


def _cut(node: Node, net: Network, source: object, begin: list[int], end: list[int]) -> object:
    return net.op(
        "slice_by_index",
        f"{node.name}_cut",
        x=source,
        begin=[max(-amount, 0) for amount in begin],
        end=[min(amount, 0) for amount in end],
        begin_mask=[amount >= 0 for amount in begin],
        end_mask=[amount >= 0 for amount in end],
    )
