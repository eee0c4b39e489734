"""Operators that give a tensor other dimensions, repeat it, or read its sizes."""

import numpy as np

from onnx_lathe.runtime.targets.litert.dimensions import is_open
from onnx_lathe.runtime.targets.litert.emitter import INT32, INT64, NARROW, Emitter
from onnx_lathe.runtime.targets.litert.network import Network
from onnx_lathe.runtime.targets.litert.node import Node, Unsupported
from onnx_lathe.runtime.targets.litert.registry import operator

STORED = ("INT8", "INT16")


@operator("Reshape", "Flatten", "Squeeze", "Unsqueeze", integers=STORED, data=(0,))
def reshape(node: Node, net: Network) -> None:
    """To the dimensions that the model's tensor has: what they were asked for as does not matter."""
    emit = Emitter(node, net)
    node.integer("axis")
    node.integers("axes")
    node.integers("shape")
    source, dims = emit.operand(0), emit.given()
    if node.given(1) and not net.is_free(node.inputs[1]):
        raise Unsupported("its shape is computed at run time, from what the input holds")
    if emit.dims(source) == dims:
        net.name_output(node, source)
    elif sum(map(is_open, dims)) <= 1:
        sizes = [-1 if is_open(dim) else dim[0] for dim in dims]
        net.put(node, "RESHAPE", [source, emit.integers(sizes, "shape")], "ReshapeOptions", newShape=sizes)
    elif node.op == "Reshape" and (own := _own_sizes(emit, 1)) is not None:
        net.put(node, "RESHAPE", [source, own], "ReshapeOptions")
    else:
        emit.leave(emit.reshape(source, dims))


def _own_sizes(emit: Emitter, position: int) -> int | None:
    """The sizes of the result as the model computes them, in INT32; None where they are not those of the result."""
    name = emit.node.inputs[position] if emit.node.given(position) else ""
    values, dims = emit.net.values(name), emit.given()
    if values is None or any(
        tuple(one.reshape(-1).tolist()) != tuple(dim[place] for dim in dims)
        for place, one in enumerate(values)
    ):
        return None
    return emit.cast(emit.read(position), INT32)


@operator("Shape", "Size")
def shape(node: Node, net: Network) -> None:
    """Where the sizes of the input are open; else they are a constant."""
    emit = Emitter(node, net)
    source = emit.read()
    rank = emit.rank(source)
    sizes = emit.shape(source, INT64)
    if node.op == "Size":
        emit.leave(emit.reduce("REDUCE_PROD", sizes, [0], keep=False))
        return
    start, end, _ = slice(node.integer("start"), node.attributes.get("end")).indices(rank)
    if (start, end) != (0, rank):
        sizes = emit.gather(sizes, np.arange(start, end), 0)
    emit.leave(sizes)


@operator("Expand")
def expand(node: Node, net: Network) -> None:
    emit = Emitter(node, net)
    source, dims = emit.read(), emit.given()
    if not net.is_free(node.inputs[1]):
        raise Unsupported("its shape is computed at run time, from what the input holds")
    if emit.dims(source) == dims:
        net.name_output(node, source)
        return
    sizes = _own_sizes(emit, 1)
    sizes = emit.run_time_sizes(dims) if sizes is None else sizes
    net.put(node, "BROADCAST_TO", [source, sizes], "BroadcastToOptions")


@operator("Tile", integers=STORED, data=(0,))
def tile(node: Node, net: Network) -> None:
    emit = Emitter(node, net)
    source = emit.operand(0)
    repeats = net.constant(node.inputs[1], "repeats").reshape(-1)
    if np.all(repeats == 1):
        net.name_output(node, source)
        return
    net.put(node, "TILE", [source, emit.integers(repeats, "repeats")], "TileOptions")


@operator("ConstantOfShape")
def constant_of_shape(node: Node, net: Network) -> None:
    """Where the sizes depend on those of the input; else it is a constant."""
    import onnx

    emit = Emitter(node, net)
    given = node.attributes.get("value")
    value = np.zeros(1, np.float32) if given is None else onnx.numpy_helper.to_array(given)
    if not net.is_free(node.inputs[0]):
        raise Unsupported("its shape is computed at run time, from what the input holds")
    sizes, kind = emit.cast(emit.read(0), INT32), net.element(node.outputs[0])
    net.put(node, "FILL", [sizes, emit.number(value.reshape(-1)[0], kind)], "FillOptions")


@operator("Range")
def range_(node: Node, net: Network) -> None:
    emit = Emitter(node, net)
    if not all(map(net.is_free, node.inputs)):
        raise Unsupported("how many numbers it counts is computed at run time, from what the input holds")
    operands = [emit.read(position) for position in range(3)]
    if emit.type(operands[0]) in NARROW:
        raise Unsupported("its numbers have fewer than 32 bits: cast them to int32")
    net.put(node, "RANGE", operands, "RangeOptions")


@operator("OneHot")
def one_hot(node: Node, net: Network) -> None:
    """An index below 0 counts from the end, and one beyond depth gives no 1 anywhere."""
    emit = Emitter(node, net)
    places, depth = emit.read(0), int(net.constant(node.inputs[1], "depth").reshape(-1)[0])
    values = net.constant(node.inputs[2], "values").reshape(-1)
    kind = net.element(node.outputs[0])
    if kind == "INT16":
        raise Unsupported("it writes integers of 16 bits, for which LiteRT has no kernel")
    places = emit.cast(places, INT32)
    below = emit.pair("LESS", places, emit.number(0, INT32))
    places = emit.select(below, emit.add(places, emit.number(depth, INT32)), places)
    rank = emit.rank(places)
    axis = node.integer("axis", -1) % (rank + 1)
    on, off = (emit.number(values[place], kind) for place in (1, 0))
    net.put(
        node,
        "ONE_HOT",
        [places, emit.scalar(depth), on, off],
        "OneHotOptions",
        axis=-1 if axis == rank else axis,
    )


@operator("Transpose", integers=STORED)
def transpose(node: Node, net: Network) -> None:
    """One that moves axes of size 1 alone is a RESHAPE."""
    emit = Emitter(node, net)
    source = emit.operand(0)
    dims = emit.dims(source)
    perm = node.integers("perm") or list(reversed(range(len(dims))))
    long = [axis for axis in perm if dims[axis] != (1, 1)]
    if perm == sorted(perm):
        net.name_output(node, source)
    elif long == sorted(long) and sum(map(is_open, dims)) <= 1:
        sizes = [-1 if is_open(dims[axis]) else dims[axis][0] for axis in perm]
        net.put(node, "RESHAPE", [source, emit.integers(sizes, "shape")], "ReshapeOptions", newShape=sizes)
    else:
        net.put(node, "TRANSPOSE", [source, emit.integers(perm, "order")], "TransposeOptions")


@operator("DepthToSpace", spatial=True, integers=("INT8",))
def depth_to_space(node: Node, net: Network) -> None:
    """LiteRT's has the channels of one place next to each other (DCR); of CRD they are brought there first."""
    block = node.integer("blocksize")
    emit = Emitter(node, net)
    image = net.image(node)
    if node.text("mode", "DCR") == "CRD":
        channels = net.tensors[image].shape[-1]
        order = np.arange(channels).reshape(-1, block, block).transpose(1, 2, 0).reshape(-1)
        image = _reordered(emit, image, order)
    net.put_image(node, "DEPTH_TO_SPACE", [image], "DepthToSpaceOptions", blockSize=block)


def _reordered(emit: Emitter, image: int, order: np.ndarray) -> int:
    shape = emit.net.tensors[image].shape
    places = emit.constant(order.astype(np.int32), "order")
    return emit.net.inner(
        "GATHER",
        f"{emit.label}_ordered",
        [image, places],
        shape,
        "GatherOptions",
        axis=len(shape) - 1,
        batchDims=0,
    )


@operator("SpaceToDepth", spatial=True, integers=("INT8",))
def space_to_depth(node: Node, net: Network) -> None:
    block = node.integer("blocksize")
    net.put_image(node, "SPACE_TO_DEPTH", [net.image(node)], "SpaceToDepthOptions", blockSize=block)
