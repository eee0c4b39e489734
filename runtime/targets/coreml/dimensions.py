"""Shapes that depend on those of the input: as numbers, with -1 for the one that is left, or computed when it runs.

Where a size is open, it is known at two sizes of the model's input. It is taken for a size of the tensor that is
reshaped, a multiple or a part of one, only if that holds at both and no other of its kind does.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np

from onnx_lathe.runtime.targets.core.node import Unsupported
from onnx_lathe.runtime.targets.coreml.knowledge import Pair
from onnx_lathe.runtime.targets.coreml.network import Network

UNKNOWN = "its sizes depend on the size of the input, and it is not certain how"


def is_open(pair: Pair) -> bool:
    return pair[0] != pair[1]


def target(net: Network, tensor: str, variable: Any, pairs: Sequence[Pair], label: str) -> Any:
    """What `reshape` takes to give the tensor, which `variable` holds, the sizes `pairs`."""
    if sum(map(is_open, pairs)) <= 1:
        return [-1 if is_open(pair) else pair[0] for pair in pairs]
    return computed(net, tensor, variable, pairs, label)


def computed(net: Network, tensor: str, variable: Any, pairs: Sequence[Pair], label: str) -> Any:
    """The sizes as a vector of int32, read off the shape of the tensor when it runs; numbers if none is open."""
    if not any(map(is_open, pairs)):
        return [pair[0] for pair in pairs]
    whole = net.op("shape", f"{label}_shape", x=variable)
    parts = []
    for place, pair in enumerate(pairs):
        parts.append(
            _size(net, net.pairs(tensor), whole, pair, f"{label}_{place}")
            if is_open(pair)
            else np.array([pair[0]], np.int32)
        )
    return net.op("concat", f"{label}_sizes", values=parts, axis=0)


def _size(net: Network, known: Sequence[Pair], whole: Any, pair: Pair, label: str) -> Any:
    """[1]: the size, as a size of `whole`, or that times or divided by a number."""
    found = []
    for axis, (first, second) in enumerate(known):
        if not is_open((first, second)):
            continue
        if (first, second) == pair:
            found = [(axis, 1, 1)]
            break
        if pair[0] % first == 0 and pair[0] // first * second == pair[1]:
            found.append((axis, pair[0] // first, 1))
        elif first % pair[0] == 0 and first // pair[0] * pair[1] == second:
            found.append((axis, 1, first // pair[0]))
    if len(found) != 1:
        return _product(net, known, whole, pair, label)
    axis, times, parts = found[0]
    size = _taken(net, whole, axis, label)
    if times > 1:
        size = net.op("mul", f"{label}_times", x=size, y=np.int32(times))
    return net.op("floor_div", f"{label}_part", x=size, y=np.int32(parts)) if parts > 1 else size


def _product(net: Network, known: Sequence[Pair], whole: Any, pair: Pair, label: str) -> Any:
    """Of neighbouring sizes, such as height and width of a map that becomes a sequence."""
    found = []
    for start in range(len(known)):
        for stop in range(start + 2, len(known) + 1):
            first, second = (int(np.prod([one[end] for one in known[start:stop]])) for end in (0, 1))
            if (first, second) == pair:
                found.append((start, stop))
    found = [one for one in found if not any(_inside(other, one) and other != one for other in found)]
    if len(found) != 1:
        raise Unsupported(UNKNOWN)
    start, stop = found[0]
    size = _taken(net, whole, start, label)
    for axis in range(start + 1, stop):
        size = net.op("mul", f"{label}_times_{axis}", x=size, y=_taken(net, whole, axis, label))
    return size


def _inside(one: tuple[int, int], other: tuple[int, int]) -> bool:
    return other[0] <= one[0] and one[1] <= other[1]


def _taken(net: Network, whole: Any, axis: int, label: str) -> Any:
    return net.op("slice_by_size", f"{label}_axis_{axis}", x=whole, begin=[axis], size=[1])


def repeats(net: Network, reps: Sequence[Pair], label: str) -> Any:
    """What `tile` takes: numbers; or read off the shape of another tensor that has the sizes."""
    if not any(map(is_open, reps)):
        return np.array([pair[0] for pair in reps], np.int32)
    for tensor, variable in net.variables.items():
        try:
            known = net.pairs(tensor)
        except Unsupported:
            continue
        if all(pair in known for pair in reps if is_open(pair)):
            return computed(net, tensor, variable, reps, label)
    raise Unsupported(UNKNOWN)


def spread(net: Network, tensor: str) -> None:
    """Writes a free tensor that is the same all along its open axes, such as the first state of a recurrent layer for
    each sample: a constant that is repeated.
    """
    values = net.values(tensor) if tensor and tensor not in net.variables else None
    if values is None or values[0].ndim != values[1].ndim or values[0].shape == values[1].shape:
        return
    pairs = tuple(zip(values[0].shape, values[1].shape, strict=True))
    if 0 in values[0].shape:
        return
    one = values[0][tuple(slice(0, 1) if is_open(pair) else slice(None) for pair in pairs)]
    if not all(np.array_equal(np.broadcast_to(one, value.shape), value) for value in values):
        return
    reps = [pair if is_open(pair) else (1, 1) for pair in pairs]
    constant = net.stored(f"{tensor}_one", one)
    net.variables[tensor] = net.op("tile", tensor, x=constant, reps=repeats(net, reps, tensor))
