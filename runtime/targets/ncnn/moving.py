"""Values that move: blobs with other dimensions, permuted, cropped. What the operators of shapes share.

A tensor with more dimensions than a blob can have is held by a blob with fewer, neighbours merged: its values lie in
the same order, and an operator of one axis needs no more than what lies before that, the axis, and what lies behind.
"""

from collections.abc import Sequence
from functools import cache
from itertools import combinations, pairwise, permutations

from onnx_lathe.runtime.targets.core.node import Node, Unsupported
from onnx_lathe.runtime.targets.ncnn.dialect import Value
from onnx_lathe.runtime.targets.ncnn.expressions import (
    LETTERS,
    ONE,
    Pair,
    is_open,
    pairs,
    product,
    shape_expression,
)
from onnx_lathe.runtime.targets.ncnn.network import MOST_DIMENSIONS, Axes, Loose, Network

TO_THE_END = -233
"""Crop's and Slice's own word (src/layer/crop.cpp)."""
ORDERS = {
    2: "WH HW",
    3: "WHC HWC WCH CWH HCW CHW",
    4: "WHDC HWDC WDHC DWHC HDWC DHWC WHCD HWCD WCHD CWHD HCWD CHWD WDCH DWCH WCDH CWDH DCWH CDWH HDCW DHCW HCDW "
    "CHDW DCHW CDHW",
}
"""Permute's order_type, by number: dimensions of the input as the output has them, innermost first
(docs/developer-guide/operators.md)."""


def held(net: Network, tensor: str) -> Loose:
    """A blob with the tensor's values in order, and its dimensions, whatever they are."""
    if tensor in net.loose:
        return net.loose[tensor]
    blob, sizes = net.blob(tensor), pairs(net, tensor)
    return Loose(blob.name, tuple(sizes[axis] for axis in blob.axes) or (ONE,))


def reshape(net: Network, source: Loose, dims: Sequence[Pair], label: str) -> Loose:
    """The same values in order, in a blob of these dimensions."""
    wanted = tuple(dims) or (ONE,)
    if wanted == source.dims:
        return source
    if sum(map(is_open, wanted)) <= 1:
        name = net.reshaped(source.name, label, [-1 if is_open(size) else size[0] for size in wanted])
    else:
        text = shape_expression(source.dims, wanted)
        name = net.inner("Reshape", f"{label}_reshaped", [source.name], {6: text})
    return Loose(name, wanted)


def grouped(net: Network, tensor: str, groups: Sequence[Axes]) -> Loose:
    """A blob with a dimension for each group of neighbouring axes."""
    sizes = pairs(net, tensor)
    return reshape(
        net, held(net, tensor), [product([sizes[axis] for axis in group]) for group in groups], tensor
    )


def along(net: Network, tensor: str, axis: int) -> tuple[Loose, int]:
    """(a blob in which this axis is a dimension of its own, which of its dimensions that is)."""
    sizes = pairs(net, tensor)
    if tensor not in net.loose:
        blob = net.blob(tensor)
        axes = tuple(sorted({*blob.axes, axis}))
        if len(axes) > MOST_DIMENSIONS:
            axes = tuple(one for one in axes if one == axis or sizes[one] != ONE)
        if len(axes) <= MOST_DIMENSIONS:
            return Loose(net.form(tensor, axes).name, tuple(sizes[one] for one in axes)), axes.index(axis)
    rank = len(sizes)
    groups = [tuple(range(axis)), (axis,), tuple(range(axis + 1, rank))]
    kept = [group for group in groups if group]
    return grouped(net, tensor, kept), kept.index((axis,))


def leave(node: Node, net: Network, blob: Loose, output: int = 0) -> None:
    """Makes the blob, which has the output's values in order, the node's result: with dimensions of the output as they
    are, or reshaped where they are others.
    """
    tensor = node.outputs[output]
    sizes = pairs(net, tensor)
    try:
        usual = net.usual(tensor)
    except Unsupported:
        net.loose[tensor] = blob
        return
    axes = _matched(blob.dims, sizes, usual)
    if axes is None:
        axes, blob = usual, reshape(net, blob, [sizes[axis] for axis in usual], tensor)
    net.name_output(node, blob.name, axes, output)


def refuse_computed_shape(node: Node, net: Network) -> None:
    """What the two known sizes say of a shape holds at no other, nor for other values, if it is made of an input's."""
    if node.given(1) and not net.is_free(node.inputs[1]):
        what = "axes are" if node.op in ("Squeeze", "Unsqueeze") else "shape is"
        raise Unsupported(f"its {what} computed at run time")


def _matched(dims: Sequence[Pair], sizes: Sequence[Pair], usual: Axes) -> Axes | None:
    """The axes that are a blob's dimensions, if each of these is one: as usual, or else the innermost that fit."""
    if list(dims) == ([sizes[axis] for axis in usual] or [ONE]):
        return usual
    axes: list[int] = []
    axis = len(sizes) - 1
    for size in reversed(dims):
        while axis >= 0 and sizes[axis] == ONE != size:
            axis -= 1
        if axis < 0 or sizes[axis] != size:
            return None
        axes.append(axis)
        axis -= 1
    return tuple(reversed(axes)) if all(size == ONE for size in sizes[: axis + 1]) else None


def permuted(net: Network, blob: Loose, order: Sequence[int], label: str) -> Loose:
    """A blob whose dimensions are those of another, in this order, outermost first; `label` names the layer."""
    if list(order) == sorted(order):
        return blob
    name = net.inner("Permute", label, [blob.name], {0: order_type(order)})
    return Loose(name, tuple(blob.dims[place] for place in order))


def order_type(order: Sequence[int]) -> int:
    letters = "CDHW" if len(order) == 4 else "CHW"[-len(order) :]
    return ORDERS[len(order)].split().index("".join(letters[place] for place in reversed(order)))


@cache
def moves(order: tuple[int, ...]) -> tuple[tuple[tuple[int, ...], tuple[int, ...]], ...]:
    """A permutation of any number of dimensions as few permutations of at most four, each of merged neighbours:
    (sizes of the groups, order of the groups) one after another.
    """
    start = tuple(range(len(order)))
    found: dict[tuple[int, ...], tuple[tuple[tuple[int, ...], tuple[int, ...]], ...]] = {start: ()}
    latest = [start]
    while order not in found:
        following = []
        for state in latest:
            for lengths, places in _moves_of(len(order)):
                moved = _moved(state, lengths, places)
                if moved not in found:
                    found[moved] = (*found[state], (lengths, places))
                    following.append(moved)
        latest = following
    return found[order]


@cache
def _moves_of(rank: int) -> tuple[tuple[tuple[int, ...], tuple[int, ...]], ...]:
    """Fewer groups first: they are cheaper to move."""
    found = []
    for count in range(2, min(rank, MOST_DIMENSIONS) + 1):
        for cuts in combinations(range(1, rank), count - 1):
            ends = (0, *cuts, rank)
            lengths = tuple(b - a for a, b in pairwise(ends))
            found += [(lengths, places) for places in permutations(range(count))]
    return tuple(found)


def _moved(state: tuple[int, ...], lengths: Sequence[int], places: Sequence[int]) -> tuple[int, ...]:
    groups, start = [], 0
    for length in lengths:
        groups.append(state[start : start + length])
        start += length
    return tuple(item for place in places for item in groups[place])


def cropped(net: Network, blob: Loose, cuts: dict[int, tuple[int, int, Pair]], label: str) -> Loose:
    """Part of a blob. `cuts`: dimension -> (start, end, size of the part), as Crop has them: from the end where
    negative.
    """
    if not cuts:
        return blob
    places = sorted(cuts)
    starts = [_begin(blob, place, cuts[place][0]) for place in places]
    ends = [cuts[place][1] for place in places]
    params: dict[int, Value] = {9: [cuts[place][0] for place in places], 10: ends, 11: places}
    if any(isinstance(start, str) for start in starts):
        params = {19: _listed(starts), 20: _listed(ends), 21: _listed(places)}
    name = net.inner("Crop", label, [blob.name], params)
    return Loose(
        name, tuple(cuts[place][2] if place in cuts else size for place, size in enumerate(blob.dims))
    )


def _begin(blob: Loose, place: int, start: int) -> int | str:
    """Crop clamps an end to the axis, but no start: one from the end of an open axis is a formula, since the axis may
    be shorter (resolve_crop_roi in src/layer/crop.cpp).
    """
    if start >= -1 or not is_open(blob.dims[place]):
        return start
    return f"max(-(0{LETTERS[len(blob.dims)][place]},{-start}),0)"


def _listed(values: Sequence[int | str]) -> str:
    return ",".join(map(str, values))
