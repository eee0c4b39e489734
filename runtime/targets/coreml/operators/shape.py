"""Operators that hand values on: as they are, in another type, or with other dimensions."""

import onnx

from onnx_lathe.runtime.targets.core.node import Node, Unsupported
from onnx_lathe.runtime.targets.coreml.dimensions import target
from onnx_lathe.runtime.targets.coreml.network import Network, type_name
from onnx_lathe.runtime.targets.coreml.registry import operator

FLOATS = (
    onnx.TensorProto.FLOAT,
    onnx.TensorProto.FLOAT16,
    onnx.TensorProto.BFLOAT16,
    onnx.TensorProto.DOUBLE,
)
WIDE = (onnx.TensorProto.INT32, onnx.TensorProto.INT64)


@operator("Identity", "Dropout")
def identity(node: Node, net: Network) -> None:
    """Dropout does nothing outside training."""
    if any(node.outputs[1:]):
        raise Unsupported("its mask is read")
    node.number("ratio", 0.5)
    net.leave(node, net.variable(node.inputs[0]))


@operator("Cast", "CastLike")
def cast(node: Node, net: Network) -> None:
    """int32 stands for integers of all widths: a cast to fewer bits than that could wrap round."""
    source, element = net.variable(node.inputs[0]), net.element(node.outputs[0])
    if node.op == "Cast":
        element = node.integer("to")
    if element in FLOATS:
        kind = net.form.cast
    elif element == onnx.TensorProto.BOOL:
        kind = "bool"
    elif element in WIDE or (element and type_name(source) == "bool"):
        kind = "int32"
    else:
        named = onnx.TensorProto.DataType.Name(element).lower() if element else "an unknown type"
        raise Unsupported(f"it casts to {named}; MIL's operations take int32, floats and bool")
    net.leave(node, net.cast(source, kind, node.outputs[0]))


@operator("Reshape", "Flatten")
def reshape(node: Node, net: Network) -> None:
    node.integer("axis", 1)
    source = net.variable(node.inputs[0])
    pairs = net.pairs(node.outputs[0])
    if not pairs:
        net.put(node, "squeeze", x=source)
        return
    net.leave(
        node, net.reshaped(source, node.outputs[0], target(net, node.inputs[0], source, pairs, node.name))
    )


@operator("Squeeze")
def squeeze(node: Node, net: Network) -> None:
    axes = _axes(node, net)
    if axes is None:
        axes = [axis for axis, pair in enumerate(net.pairs(node.inputs[0])) if pair == (1, 1)]
    source = net.variable(node.inputs[0])
    if axes:
        net.put(node, "squeeze", x=source, axes=axes)
    else:
        net.leave(node, source)


@operator("Unsqueeze")
def unsqueeze(node: Node, net: Network) -> None:
    rank = net.rank(node.outputs[0])
    axes = sorted(axis % rank for axis in _axes(node, net) or [])
    net.put(node, "expand_dims", x=net.variable(node.inputs[0]), axes=axes)


def _axes(node: Node, net: Network) -> list[int] | None:
    """An attribute up to opset 12, an input since."""
    if node.given(1):
        return [int(axis) for axis in net.constant(node.inputs[1], "axes").reshape(-1)]
    return node.integers("axes")


@operator("Transpose")
def transpose(node: Node, net: Network) -> None:
    order = node.integers("perm") or list(range(net.rank(node.inputs[0])))[::-1]
    net.put(node, "transpose", x=net.variable(node.inputs[0]), perm=order)


@operator("DepthToSpace")
def depth_to_space(node: Node, net: Network) -> None:
    size, source = node.integer("blocksize"), net.variable(node.inputs[0])
    if node.text("mode", "DCR") == "CRD":
        net.put(node, "pixel_shuffle", x=source, upscale_factor=size)
    else:
        net.put(node, "depth_to_space", x=source, block_size=size)


@operator("SpaceToDepth")
def space_to_depth(node: Node, net: Network) -> None:
    net.put(node, "space_to_depth", x=net.variable(node.inputs[0]), block_size=node.integer("blocksize"))
