"""Parts of a tensor: Slice, Split and the Gather family, and values put into one (ScatterND)."""

import numpy as np

from onnx_lathe.runtime.targets.litert.dimensions import Dim, fixed, is_open
from onnx_lathe.runtime.targets.litert.emitter import BOOL, INT32, INT64, Emitter
from onnx_lathe.runtime.targets.litert.network import Network
from onnx_lathe.runtime.targets.litert.node import Node, Unsupported
from onnx_lathe.runtime.targets.litert.registry import operator

STORED = ("INT8", "INT16")
FARTHEST = 2**31 - 1


@operator("Slice", integers=STORED, data=(0,))
def slice_(node: Node, net: Network) -> None:
    """STRIDED_SLICE: ends and negative numbers mean the same as in ONNX; an end beyond all is left open by its mask."""
    emit = Emitter(node, net)
    source, dims = emit.operand(0), emit.given()
    rank = emit.rank(source)
    begin, end, stride = [0] * rank, [0] * rank, [1] * rank
    begin_mask = end_mask = 2**rank - 1
    for axis, start, stop, step in _parts(node, net, emit.dims(source)):
        begin[axis], end[axis], stride[axis] = start, stop, step
        if not (start >= FARTHEST and step < 0):
            begin_mask &= ~(1 << axis)
        if abs(stop) < FARTHEST:
            end_mask &= ~(1 << axis)
        else:
            end[axis] = 0
        begin[axis] = max(min(begin[axis], FARTHEST), -FARTHEST)
    if emit.dims(source) == dims and all(step == 1 for step in stride):
        net.name_output(node, source)
        return
    inputs = [source, *(emit.integers(values, "part") for values in (begin, end, stride))]
    fields = {"beginMask": begin_mask, "endMask": end_mask}
    net.put(node, "STRIDED_SLICE", inputs, "StridedSliceOptions", **fields)


def _parts(node: Node, net: Network, dims: tuple[Dim, ...]) -> list[tuple[int, int, int, int]]:
    """(axis, start, end, step); of an axis whose size is fixed start and end lie within it."""
    if node.opset < 10:
        starts, ends, axes = (node.integers(name) for name in ("starts", "ends", "axes"))
        strides = None
    else:
        starts, ends, axes, strides = (
            net.constant(node.inputs[place], what).reshape(-1).tolist() if node.given(place) else None
            for place, what in ((1, "starts"), (2, "ends"), (3, "axes"), (4, "steps"))
        )
    starts, ends = starts or [], ends or []
    axes = axes or list(range(len(starts)))
    strides = strides or [1] * len(starts)
    found = []
    for axis, start, end, step in zip(axes, starts, ends, strides, strict=True):
        axis %= len(dims)
        if not is_open(dims[axis]):
            taken = range(*slice(start, end, step).indices(dims[axis][0]))
            if not len(taken):
                raise Unsupported(f"it takes nothing along axis {axis}")
            start = taken[0]
            end = taken[-1] + (1 if step > 0 else -1)
            end = -FARTHEST if end < 0 else end
        found.append((axis, start, end, step))
    return found


@operator("Split", integers=STORED, data=(0,))
def split(node: Node, net: Network) -> None:
    emit = Emitter(node, net)
    source = emit.operand(0)
    axis = node.integer("axis") % emit.rank(source)
    node.integers("split")
    if is_open(emit.dims(source)[axis]):
        raise Unsupported(f"the size of its axis {axis} depends on the size of the input")
    sizes = _parts_of_split(node, net, emit.dims(source)[axis][0])
    if len(sizes) == 1:
        net.name_output(node, source)
    elif emit.type(source) == BOOL:
        _split_truths(emit, source, axis, sizes)
    elif len(set(sizes)) == 1:
        net.put(node, "SPLIT", [emit.scalar(axis), source], "SplitOptions", numSplits=len(sizes))
    else:
        inputs = [source, emit.integers(sizes, "sizes"), emit.scalar(axis)]
        net.put(node, "SPLIT_V", inputs, "SplitVOptions", numSplits=len(sizes))


def _parts_of_split(node: Node, net: Network, whole: int) -> list[int]:
    given = node.integers("split")
    if node.opset >= 13 and node.given(1):
        given = net.constant(node.inputs[1], "split").reshape(-1).tolist()
    if given:
        return given
    each = -(-whole // len(node.outputs))
    return [min(each, whole - place * each) for place in range(len(node.outputs))]


def _split_truths(emit: Emitter, source: int, axis: int, sizes: list[int]) -> None:
    """SPLIT has no kernel for them."""
    start = 0
    for position, size in enumerate(sizes):
        if emit.node.outputs[position]:
            emit.leave(emit.gather(source, np.arange(start, start + size), axis), position)
        start += size


@operator("Gather", integers=STORED, data=(0,))
def gather(node: Node, net: Network) -> None:
    emit = Emitter(node, net)
    source = emit.operand(0)
    axis = node.integer("axis") % emit.rank(source)
    places = _places(emit, 1, [emit.dims(source)[axis]])
    net.put(node, "GATHER", [source, places], "GatherOptions", axis=axis, batchDims=0)


def _places(emit: Emitter, position: int, dims: list[Dim]) -> int:
    """Indices, with none below 0: these count from the end, which LiteRT refuses. `dims`: of the axes that the last
    dimension of the indices has a place in, or of the one that all are places in.
    """
    node, net = emit.node, emit.net
    known = net.value(node.inputs[position])
    if known is not None and not any(map(is_open, dims)):
        sizes = np.array([size for size, _ in dims], known.dtype)
        behind = np.where(known < 0, known + sizes, known).reshape(known.shape)
        return emit.constant(behind.astype(np.int32), "places")
    places = emit.read(position)
    if known is not None and bool(np.all(known >= 0)):
        return places
    if any(map(is_open, dims)):
        raise Unsupported(
            "its indices may count from the end of an axis whose size depends on that of the input"
        )
    whole = [size for size, _ in dims]
    added = (
        emit.number(whole[0], INT64) if len(whole) == 1 else emit.constant(np.array(whole, np.int64), "sizes")
    )
    places = emit.cast(places, INT64)
    below = emit.pair("LESS", places, emit.number(0, INT64))
    return emit.select(below, emit.add(places, added), places)


@operator("GatherND")
def gather_nd(node: Node, net: Network) -> None:
    emit = Emitter(node, net)
    source = emit.read(0)
    dims, count = emit.dims(source), node.integer("batch_dims")
    index_dims = pairs_of(emit, 1)
    width = index_dims[-1][0]
    places = _places(emit, 1, list(dims[count : count + width]))
    if count:
        places = _with_batch(emit, places, index_dims, count)
    net.put(node, "GATHER_ND", [source, places], "GatherNdOptions")


def pairs_of(emit: Emitter, position: int) -> tuple[Dim, ...]:
    return emit.dims(emit.read(position))


def _with_batch(emit: Emitter, places: int, dims: tuple[Dim, ...], count: int) -> int:
    """Indices with the place in each of the first `count` axes in front."""
    if any(map(is_open, dims[:-1])):
        raise Unsupported("its indices are of a batch whose size depends on that of the input")
    shape = [size for size, _ in dims[:-1]]
    grid = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1)[..., :count]
    kind = np.int64 if emit.type(places) == INT64 else np.int32
    return emit.concat([emit.constant(grid.astype(kind), "batch"), places], len(dims) - 1)


@operator("GatherElements")
def gather_elements(node: Node, net: Network) -> None:
    """GATHER_ND of the place of each element."""
    emit = Emitter(node, net)
    source = emit.read(0)
    places = _element_places(emit, source, 1, node.integer("axis"))
    net.put(node, "GATHER_ND", [source, places], "GatherNdOptions")


def _element_places(emit: Emitter, source: int, position: int, axis: int) -> int:
    """[..., rank]: the whole place of each element, of which the indices have that along one axis."""
    axis %= emit.rank(source)
    along = _places(emit, position, [emit.dims(source)[axis]])
    dims = pairs_of(emit, position)
    if any(map(is_open, dims)):
        raise Unsupported("the sizes of its indices depend on the size of the input: build for a fixed size")
    shape = [size for size, _ in dims]
    known = emit.net.tensors[along].values
    grid = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1)
    if known is not None:
        grid[..., axis] = known
        return emit.constant(grid.astype(np.int32), "places")
    kind = np.int64 if emit.type(along) == INT64 else np.int32
    grid = grid.astype(kind)
    pieces = [emit.reshape(along, (*dims, (1, 1)))]
    if axis:
        pieces.insert(0, emit.constant(np.ascontiguousarray(grid[..., :axis]), "before"))
    if axis + 1 < grid.shape[-1]:
        pieces.append(emit.constant(np.ascontiguousarray(grid[..., axis + 1 :]), "behind"))
    return emit.concat(pieces, len(dims))


@operator("ScatterND")
def scatter_nd(node: Node, net: Network) -> None:
    emit = Emitter(node, net)
    data, updates = emit.read(0), emit.read(2)
    width = pairs_of(emit, 1)[-1][0]
    places = _places(emit, 1, list(emit.dims(data)[:width]))
    _scatter(emit, data, places, updates)


@operator("ScatterElements", "Scatter")
def scatter_elements(node: Node, net: Network) -> None:
    emit = Emitter(node, net)
    data, updates = emit.read(0), emit.read(2)
    places = _element_places(emit, data, 1, node.integer("axis"))
    _scatter(emit, data, places, updates)


def _scatter(emit: Emitter, data: int, places: int, updates: int) -> None:
    """SCATTER_ND adds up what goes to one place, in a tensor of zeros: that is the sum for reduction "add". Without one,
    where a second tensor of ones has any, the data is replaced.
    """
    reduction = emit.node.text("reduction", "none")
    if reduction not in ("none", "add"):
        raise Unsupported(f"its reduction is '{reduction}'; LiteRT's SCATTER_ND has none but 'add'")
    kind = emit.type(data)
    if kind == "INT16":
        raise Unsupported("it scatters integers of 16 bits, for which LiteRT has no kernel")
    dims = emit.dims(data)
    places = emit.cast(places, INT32)
    sizes = emit.run_time_sizes(dims)

    def scattered(what: int) -> int:
        return emit.op("SCATTER_ND", [places, what, sizes], dims, emit.type(what), "ScatterNdOptions")

    if reduction == "add":
        emit.leave(emit.add(data, scattered(updates)))
        return
    shape = fixed(*emit.net.tensors[updates].shape)
    if emit.dims(updates) != tuple(shape):
        raise Unsupported(
            "how many values it replaces depends on the size of the input: build for a fixed size"
        )
    ones = emit.constant(np.ones([size for size, _ in shape], np.int32), "ones")
    hit = emit.pair("GREATER", scattered(ones), emit.number(0, INT32))
    emit.leave(emit.select(hit, scattered(updates), data))
