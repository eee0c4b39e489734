"""Gather: parts of a tensor whose places are known, and rows of a table that an input of integers names (Embed)."""

import itertools

import numpy as np

from onnx_lathe.layout import LAYOUT
from onnx_lathe.runtime.targets.core.node import Node, Unsupported
from onnx_lathe.runtime.targets.ncnn.dialect import Weight
from onnx_lathe.runtime.targets.ncnn.expressions import holds, is_open, pairs, product
from onnx_lathe.runtime.targets.ncnn.moving import TO_THE_END, along, cropped, held, leave, reshape
from onnx_lathe.runtime.targets.ncnn.network import Loose, Network
from onnx_lathe.runtime.targets.ncnn.operators.slicing import strided
from onnx_lathe.runtime.targets.ncnn.registry import operator

MOST_PIECES = 32
CARRYING = (*LAYOUT, "Cast", "Slice", "Split", "Concat")
"""Operators that hand integers on as they are."""


@operator("Gather")
def gather(node: Node, net: Network) -> None:
    table, index = node.inputs[:2]
    axis = node.integer("axis") % net.rank(table)
    places = net.values(index)
    if places is not None and not net.is_free(table):
        _known(node, net, axis, places)
    elif net.is_free(table):
        _embedding(node, net, axis)
    else:
        raise Unsupported("its indices are computed at run time, and so is what they point into")


def _known(node: Node, net: Network, axis: int, places: tuple[np.ndarray, np.ndarray]) -> None:
    source, target = node.inputs[0], node.outputs[0]
    blob, place = along(net, source, axis)
    size = blob.dims[place]
    if places[0].shape != places[1].shape:
        raise Unsupported("how many indices it has depends on the size of the input")
    if not is_open(size):
        if not np.array_equal(*places):
            raise Unsupported("its indices depend on the size of the input")
        found = places[0].reshape(-1) % size[0]
    else:
        found = _of_open_size(node, net, axis, places)
    pieces = _pieces(found)
    if len(pieces) > MOST_PIECES:
        raise Unsupported(f"its indices are {len(pieces)} runs of neighbours; a layer for each is too many")
    parts = [_piece(net, blob, place, first, last, step, target) for first, last, step in pieces]
    count = (found.size, found.size)
    dims = (*blob.dims[:place], count, *blob.dims[place + 1 :])
    name = (
        parts[0].name
        if len(parts) == 1
        else net.inner("Concat", target, [part.name for part in parts], {0: place})
    )
    leave(node, net, Loose(name, dims))


def _of_open_size(node: Node, net: Network, axis: int, places: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """Indices into an axis of open size: the same at every size, or as far from its end."""
    source, index = node.inputs[:2]
    if np.array_equal(*places):
        return places[0].reshape(-1)
    away = places[0].reshape(-1) - net.shape(source)[axis]
    same = holds(
        net,
        node.opset,
        index,
        source,
        lambda values, shape: np.array_equal(values.reshape(-1) - shape[axis], away),
    )
    if np.all(places[0] >= 0) and same:
        return away
    raise Unsupported("its indices depend on the size of the input")


def _pieces(places: np.ndarray) -> list[tuple[int, int, int]]:
    """Runs (first, last, step) of places at equal distances; a run of less than three is one of neighbours."""
    pieces: list[tuple[int, int, int]] = []
    values = [int(place) for place in places]
    if len(values) > 2 and (min(values) >= 0 or max(values) < 0):  # no run goes on behind the first value
        step = values[1] - values[0]
        if step not in (0, 1) and all(b - a == step for a, b in itertools.pairwise(values)):
            return [(values[0], values[-1], step)]
    for value in values:
        if pieces and value == pieces[-1][1] + 1 != 0:  # -1 and 0 are no neighbours
            pieces[-1] = (pieces[-1][0], value, 1)
        else:
            pieces.append((value, value, 1))
    return pieces


def _piece(net: Network, blob: Loose, place: int, first: int, last: int, step: int, label: str) -> Loose:
    low, high = min(first, last), max(first, last)
    count = (high - low + 1,) * 2
    whole = blob.dims[place] == count and low == 0
    end = TO_THE_END if high == -1 else high + 1
    part = blob if whole else cropped(net, blob, {place: (low, end, count)}, label)
    if step < 0:
        part = Loose(net.inner("Flip", label, [part.name], {0: [place]}), part.dims)
    return part if abs(step) == 1 else strided(net, part, {place: abs(step)}, label)


def _embedding(node: Node, net: Network, axis: int) -> None:
    """Rows of a constant table. Embed reads whole numbers as such, and takes those outside the table for its first or
    last row: an index below 0 counts from the end in ONNX, which no exporter writes for data.
    """
    table, index = node.inputs[:2]
    if axis != 0:
        raise Unsupported(f"it gathers from a table along axis {axis}; ncnn's Embed takes rows")
    if index in net.counted or not _carries_integers(net, index):
        raise Unsupported("its indices are computed at run time")
    if net.is_integer(node.outputs[0]):
        raise Unsupported("its table is one of integers, and Embed writes floats")
    weight = net.weight(table, "table")
    shape = weight.values.shape
    width = int(np.prod(shape[1:]))
    sizes = pairs(net, index)
    words = product(sizes)
    name = reshape(net, held(net, index), [words], index).name
    params = {0: width, 1: shape[0], 2: 0, 3: shape[0] * width}
    weights = [Weight(weight.moved(lambda values: values.reshape(-1)), tagged=True)]
    top = net.inner("Embed", node.outputs[0], [name], params, weights)
    leave(node, net, Loose(top, (words, (width, width))))


def _carries_integers(net: Network, tensor: str) -> bool:
    """Whether these are an input's own numbers: other layers of ncnn write integers as floats."""
    made = net.nodes.get(tensor)
    if made is None:
        return tensor in net.facts.inputs
    return made.op_type in CARRYING and bool(made.input) and _carries_integers(net, made.input[0])
