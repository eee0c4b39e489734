"""Rules for operators that move channels: where they are afterwards, and what the node has to say once some
are gone.

Shapes, sizes and offsets that a node holds count channels; `Coupling.adapts` gets a function that counts
those that are left.
"""

import math
from collections.abc import Iterator, Sequence

import numpy as np

from onnx_lathe.passes.graph import Constant, Node
from onnx_lathe.passes.graph.coupling.state import ChannelSets, Coupling, Survivors
from onnx_lathe.passes.graph.model import free_name

Dim = int | str | None


def flatten(coupling: Coupling, node: Node) -> str | None:
    shape = coupling.shape(node.inputs[0])
    if shape is None:
        return f"{node.name} flattens a shape that is not known"
    axis = int(node.attrs.get("axis", 1))
    axis += len(shape) if axis < 0 else 0
    parts = [range(axis), range(axis, len(shape))]
    blocks = [(part, range(index, index + 1)) for index, part in enumerate(parts)]
    return _regroup(coupling, node, shape, [_product(shape, part) for part in parts], blocks)


def reshape(coupling: Coupling, node: Node) -> str | None:
    shape, wanted = coupling.shape(node.inputs[0]), node.inputs[1]
    if not isinstance(wanted, Constant):
        return f"{node.name} reshapes it to a shape that is computed at run time; fold first"
    if shape is None:
        return f"{node.name} reshapes a shape that is not known"
    stated = [int(size) for size in wanted.values.reshape(-1)]
    target = _resolved(shape, stated, bool(node.attrs.get("allowzero", 0)))
    if target is None:
        return f"{node.name} reshapes it in a way that depends on sizes that are not known"
    source = coupling.of(node.inputs[0])
    if source is not None and source.axis < len(stated) and stated[source.axis] == 0:
        # it would copy the number of channels that are left
        stated[source.axis] = int(target[source.axis] or 0)
    reason = _regroup(coupling, node, shape, target, list(_blocks(shape, target)))
    if reason is None and stated:
        _adapt_shape(coupling, node, stated)
    return reason


def _adapt_shape(coupling: Coupling, node: Node, stated: Sequence[int]) -> None:
    """Lets a Reshape say `stated`, with as many channels as are left."""
    result = coupling.channels[node.outputs[0].name]

    def adapt(survive: Survivors) -> None:
        count = int(survive(result.units).sum())
        sizes = [count if axis == result.axis and size != -1 else size for axis, size in enumerate(stated)]
        _store(coupling, node, 1, sizes)

    coupling.adapts.append(adapt)


def _product(shape: Sequence[Dim], axes: range) -> int | None:
    """Elements along some of the axes, if all their sizes are known."""
    sizes = [size for axis in axes if isinstance(size := shape[axis], int)]
    return math.prod(sizes) if len(sizes) == len(axes) else None


def _resolved(shape: Sequence[Dim], stated: Sequence[int], allow_zero: bool) -> list[Dim] | None:
    """The shape that a Reshape gives: 0 copies a size, -1 takes what is left."""
    target: list[Dim] = [
        shape[index] if size == 0 and not allow_zero else size for index, size in enumerate(stated)
    ]
    if -1 not in stated:
        return target
    left, others = list(shape), [size for size in target if size != -1]
    for size in others:
        if not isinstance(size, int):
            if size not in left:
                return None
            left.remove(size)
    names = [size for size in left if not isinstance(size, int)]
    known = math.prod(size for size in left if isinstance(size, int))
    divisor = math.prod(size for size in others if isinstance(size, int))
    if (
        known == 0
        or divisor == 0
        or known % divisor
        or len(names) > 1
        or (names and (known != divisor or names[0] is None))
    ):
        return None
    target[stated.index(-1)] = names[0] if names else known // divisor
    return target


def _blocks(first: Sequence[Dim], second: Sequence[Dim]) -> Iterator[tuple[range, range]]:
    """Smallest runs of axes of both shapes that hold the same elements; ends where they cannot be told
    apart.
    """
    i = j = 0
    while i < len(first) and j < len(second):
        start = i, j
        if not isinstance(first[i], int) or not isinstance(second[j], int):
            if first[i] is None or first[i] != second[j]:
                return
            i, j = i + 1, j + 1
        else:
            sizes = [int(first[i] or 0), int(second[j] or 0)]
            i, j = i + 1, j + 1
            while sizes[0] != sizes[1]:
                shape, at, which = (first, i, 0) if sizes[0] < sizes[1] else (second, j, 1)
                step = shape[at] if at < len(shape) else None
                if not isinstance(step, int):
                    return
                sizes[which] *= step
                i, j = (i + 1, j) if which == 0 else (i, j + 1)
        yield range(start[0], i), range(start[1], j)


def _regroup(
    coupling: Coupling,
    node: Node,
    shape: Sequence[Dim],
    target: Sequence[Dim],
    blocks: Sequence[tuple[range, range]],
) -> str | None:
    """Follows the channels where `shape` becomes `target`; `blocks` are axes of both that hold the same
    elements.

    An axis that is split keeps its channels apart on the part with most units; each of them is then tied
    over the other parts.
    """
    source = coupling.of(node.inputs[0])
    if source is None:
        return f"{node.name} takes its shape from it"
    block = next(((old, new) for old, new in blocks if source.axis in old), None)
    sizes = [] if block is None else [shape[axis] for axis in block[0]]
    if block is None or not all(isinstance(size, int) for size in sizes):
        return f"{node.name} joins it with axes whose sizes are not known"
    old, new = block
    spread = np.broadcast_to(
        source.units.reshape([-1 if axis == source.axis else 1 for axis in old]),
        [int(size or 0) for size in sizes],
    )
    parts = [int(target[axis] or 0) for axis in new]
    spread = spread.reshape(parts)
    part = _best_part(coupling.units, spread)
    if part is None:
        return f"{node.name} splits its channels so that none can go alone"
    rows = np.moveaxis(spread, part, 0).reshape(parts[part], -1)
    coupling.units.tie(np.repeat(rows[:, 0], rows.shape[1] - 1), rows[:, 1:])
    coupling.put(node.outputs, new[part], np.ascontiguousarray(rows[:, 0]))
    return None


def _best_part(units: ChannelSets, spread: np.ndarray) -> int | None:
    """The axis along which most units stay apart when each position on it becomes one; None if no two do."""
    if spread.ndim == 1:
        return 0
    roots = units.roots(spread)
    found = {}
    for axis in range(spread.ndim):
        trial, rows = ChannelSets(), np.moveaxis(roots, axis, 0).reshape(spread.shape[axis], -1)
        distinct, numbers = np.unique(rows, return_inverse=True)
        trial.fresh(distinct.size)
        numbers = numbers.reshape(rows.shape)
        trial.tie(np.repeat(numbers[:, 0], rows.shape[1] - 1), numbers[:, 1:])
        found[axis] = np.unique(trial.roots(numbers)).size
    best = max(found, key=lambda axis: found[axis])
    return best if found[best] > 1 or spread.size == 1 else None


def transpose(coupling: Coupling, node: Node) -> str | None:
    source, shape = coupling.of(node.inputs[0]), coupling.shape(node.inputs[0])
    if source is None or shape is None:
        return f"{node.name} turns round a shape that is not known"
    order = [int(axis) for axis in node.attrs.get("perm", range(len(shape))[::-1])]
    coupling.put(node.outputs, order.index(source.axis), source.units)
    return None


def squeeze(coupling: Coupling, node: Node) -> str | None:
    source, shape, axes = coupling.of(node.inputs[0]), coupling.shape(node.inputs[0]), _axes(node)
    if source is None or shape is None or axes is None:
        return f"{node.name} takes out axes that are not known"
    gone = {axis % len(shape) for axis in axes}
    if source.axis in gone:
        return f"{node.name} takes out the axis of its channels"
    coupling.put(node.outputs, source.axis - sum(axis < source.axis for axis in gone), source.units)
    return None


def unsqueeze(coupling: Coupling, node: Node) -> str | None:
    source, shape, axes = coupling.of(node.inputs[0]), coupling.shape(node.outputs[0]), _axes(node)
    if source is None or shape is None or axes is None:
        return f"{node.name} adds axes that are not known"
    new = {axis % len(shape) for axis in axes}
    coupling.put(
        node.outputs, [axis for axis in range(len(shape)) if axis not in new][source.axis], source.units
    )
    return None


def _axes(node: Node) -> list[int] | None:
    """The axes of a Squeeze or Unsqueeze, which are an attribute or an input."""
    return _numbers(node, 1) if len(node.inputs) > 1 else node.attrs.get("axes")


def split(coupling: Coupling, node: Node) -> str | None:
    """On the channel axis each output gets its part, and says how large it is."""
    source, shape = coupling.of(node.inputs[0]), coupling.shape(node.inputs[0])
    if source is None or shape is None:
        return f"{node.name} splits it by sizes that are not known"
    if int(node.attrs.get("axis", 0)) % len(shape) != source.axis:
        coupling.put(node.outputs, source.axis, source.units)
        return None
    by_input = coupling.graph.opset >= 13
    given = _numbers(node, 1) if by_input and len(node.inputs) > 1 else node.attrs.get("split")
    if given is None and len(node.inputs) > 1 and not node.inputs[1].is_empty():
        return f"{node.name} splits it by sizes that are computed at run time"
    size = -(-source.units.size // len(node.outputs))
    sizes = [size] * (len(node.outputs) - 1) if given is None else [int(one) for one in given[:-1]]
    parts = np.split(source.units, np.cumsum(sizes))
    if len(parts) != len(node.outputs):
        return f"{node.name} splits it into another number of parts than it has outputs"
    for output, part in zip(node.outputs, parts, strict=True):
        coupling.put([output], source.axis, part)

    def adapt(survive: Survivors) -> None:
        counts = [int(survive(part).sum()) for part in parts]
        if not by_input:
            node.attrs["split"] = counts
            return
        node.attrs.pop("num_outputs", None)
        _store(coupling, node, 1, counts)

    coupling.adapts.append(adapt)
    return None


def slice_(coupling: Coupling, node: Node) -> str | None:
    """On the channel axis with step 1, the offsets follow; on other axes nothing changes."""
    source, shape = coupling.of(node.inputs[0]), coupling.shape(node.inputs[0])
    starts, ends = _numbers(node, 1), _numbers(node, 2)
    if source is None or shape is None or starts is None or ends is None:
        return f"{node.name} slices it by offsets that are not known"
    axes = (
        _numbers(node, 3)
        if len(node.inputs) > 3 and not node.inputs[3].is_empty()
        else list(range(len(starts)))
    )
    steps = _numbers(node, 4) if len(node.inputs) > 4 and not node.inputs[4].is_empty() else [1] * len(starts)
    if axes is None or steps is None:
        return f"{node.name} slices it by offsets that are not known"
    places = [index for index, axis in enumerate(axes) if axis % len(shape) == source.axis]
    if not places:
        coupling.put(node.outputs, source.axis, source.units)
        return None
    place, size = places[0], source.units.size
    if len(places) > 1 or steps[place] != 1:
        return f"{node.name} takes every {steps[place]}th of its channels"
    start, end, _ = slice(starts[place], ends[place]).indices(size)
    if start >= end:
        return f"{node.name} takes none of its channels"
    coupling.put(node.outputs, source.axis, source.units[start:end])

    def adapt(survive: Survivors) -> None:
        left = np.concatenate([[0], np.cumsum(survive(source.units))])
        for index, offsets, offset in ((1, starts, start), (2, ends, end)):
            _store(coupling, node, index, [*offsets[:place], int(left[offset]), *offsets[place + 1 :]])

    coupling.adapts.append(adapt)
    return None


def pad(coupling: Coupling, node: Node) -> str | None:
    """Padding of the channel axis makes channels of its own, which may go with others that they are added
    to.
    """
    source, shape = coupling.of(node.inputs[0]), coupling.shape(node.inputs[0])
    pads = _numbers(node, 1) if len(node.inputs) > 1 else None
    if (
        source is None
        or shape is None
        or pads is None
        or (len(node.inputs) > 3 and not node.inputs[3].is_empty())
    ):
        return f"{node.name} pads it by sizes that are not known"
    places = source.axis, source.axis + len(shape)
    counts = [pads[place] for place in places]
    if counts == [0, 0]:
        coupling.put(node.outputs, source.axis, source.units)
        return None
    if min(counts) < 0 or node.attrs.get("mode", "constant") != "constant":
        return f"{node.name} pads its channels with others of them"
    added = [coupling.units.fresh(count) for count in counts]
    coupling.put(node.outputs, source.axis, np.concatenate([added[0], source.units, added[1]]))

    def adapt(survive: Survivors) -> None:
        left = {place: int(survive(units).sum()) for place, units in zip(places, added, strict=True)}
        _store(coupling, node, 1, [left.get(index, size) for index, size in enumerate(pads)])

    coupling.adapts.append(adapt)
    return None


def resize(coupling: Coupling, node: Node) -> str | None:
    """Over axes without channels, by factors or to sizes."""
    source, shape = coupling.of(node.inputs[0]), coupling.shape(node.inputs[0])
    scales_at = 1 if node.op == "Upsample" or coupling.graph.opset < 11 else 2
    if (
        source is None
        or shape is None
        or node.attrs.get("axes")
        or node.attrs.get("keep_aspect_ratio_policy", "stretch") != "stretch"
        or node.attrs.get("coordinate_transformation_mode") == "tf_crop_and_resize"
    ):
        return f"{node.name} resizes axes that are not known"
    if len(node.inputs) > 3 and not node.inputs[3].is_empty():
        sizes = _numbers(node, 3)
        if sizes is None or sizes[source.axis] != source.units.size:
            return f"{node.name} resizes it to sizes that are not known"

        def adapt(survive: Survivors) -> None:
            _store(
                coupling,
                node,
                3,
                [
                    int(survive(source.units).sum()) if axis == source.axis else size
                    for axis, size in enumerate(sizes)
                ],
            )

        coupling.adapts.append(adapt)
    else:
        scales = node.inputs[scales_at] if len(node.inputs) > scales_at else None
        if not isinstance(scales, Constant) or len(scales.shape) != 1 or scales.values[source.axis] != 1:
            return f"{node.name} resizes it by factors that are not known"
    coupling.put(node.outputs, source.axis, source.units)
    return None


def _numbers(node: Node, index: int) -> list[int] | None:
    """The integers of a constant input."""
    tensor = node.inputs[index]
    return [int(value) for value in tensor.values.reshape(-1)] if isinstance(tensor, Constant) else None


def _store(coupling: Coupling, node: Node, index: int, values: Sequence[int]) -> None:
    """A new initializer for the node alone: others may read the one that it had."""
    old = node.inputs[index] if index < len(node.inputs) else None
    if isinstance(old, Constant) and np.array_equal(old.values, values):
        return
    name = free_name(coupling.graph, f"{node.name}_sizes" if old is None or old.is_empty() else old.name)
    new = Constant(name, np.asarray(values, np.int64 if not isinstance(old, Constant) else old.values.dtype))
    if index < len(node.inputs):
        node.inputs[index] = new
    else:
        node.inputs.append(new)
