"""QuantizeLinear and DequantizeLinear that stand by themselves: between float and integers, and from one scale to another."""

import numpy as np

from onnx_lathe.runtime.targets.litert.emitter import FLOAT, Emitter
from onnx_lathe.runtime.targets.litert.network import Network
from onnx_lathe.runtime.targets.litert.node import Node, Unsupported
from onnx_lathe.runtime.targets.litert.registry import operator

UNKNOWN = "its scale is computed at run time or of blocks, or its integers are of a type that LiteRT has not"


@operator("QuantizeLinear")
def quantize(node: Node, net: Network) -> None:
    if node.outputs[0] not in net.stored.activations:
        raise Unsupported(UNKNOWN)
    source = net.stored.decoded.get(node.inputs[0], node.inputs[0])
    net.put(node, "QUANTIZE", [net.read(source)])


@operator("DequantizeLinear")
def dequantize(node: Node, net: Network) -> None:
    """Of a tensor that was stored with another scale or zero point, which is the one that the file has: what is decoded
    with that becomes (q - zero) * scale.
    """
    _, own = net.stored.activations.get(node.inputs[0], ("", None))
    scale = net.value(node.inputs[1])
    zero = net.value(node.inputs[2]) if node.given(2) else np.zeros((), np.int8)
    if own is None or own.per_channel or scale is None or zero is None or (scale.size, zero.size) != (1, 1):
        raise Unsupported(UNKNOWN)
    emit = Emitter(node, net)
    step = float(scale.reshape(()))
    shift = (own.zero_points[0] - int(zero.reshape(()))) * step
    decoded = emit.op("DEQUANTIZE", [emit.read()], None, FLOAT)
    scaled = emit.mul(decoded, emit.number(step / own.scales[0]))
    emit.leave(emit.add(scaled, emit.number(shift)) if shift else scaled)
