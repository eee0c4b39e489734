"""Layers that ncnn computes in INT8: between an input that is quantized and a weight that is.

    x -> Q -> DQ -> Conv(DQ(w)) + bias        q(x) * q(w) / (scale of x * scale of w) + bias, in float

ncnn's scales multiply: 127 / largest, the inverse of ONNX's. A layer quantizes its input itself, and hands on INT8
only to layers that read nothing else of it (requantize.py).
Source: ncnn, src/layer/convolution.cpp, forward_int8.
"""

import numpy as np

from onnx_lathe.runtime.targets.core.node import Node
from onnx_lathe.runtime.targets.ncnn.dialect import Stored, Value, Weight
from onnx_lathe.runtime.targets.ncnn.network import Network
from onnx_lathe.runtime.targets.ncnn.weights import int8_weight, quantized_input

INT8_TERM = 8
TERMS = {"Convolution": 2, "ConvolutionDepthWise": 1, "InnerProduct": 2}


def int8_scales(net: Network, tensor: str, axis: int = 0) -> tuple[np.ndarray, np.ndarray] | None:
    """(codes of the weight, scale of each output) of a weight that is quantized per output; else None. `axis`: the
    one of the outputs.
    """
    weight = int8_weight(net, tensor)
    if weight is None:
        return None
    outputs = weight.codes.shape[axis]
    if weight.scales.size not in (1, outputs) or (weight.scales.size > 1 and weight.axis not in (axis, None)):
        return None
    if int(weight.codes.min(initial=0)) < -127:  # ncnn clamps what it quantizes to -127 to 127
        return None
    return weight.codes, np.broadcast_to(weight.scales, (outputs,)).copy()


def quantized_layer(
    node: Node, net: Network, kind: str, params: dict[int, Value], bias: np.ndarray | None
) -> tuple[str, list[Weight]] | None:
    """(the tensor that it quantizes, its weights) of a convolution as a layer of INT8, if the model quantizes its input
    and its weight so that ncnn can; `params` says so then.
    """
    source = quantized_input(net, node.inputs[0])
    weight = int8_scales(net, node.inputs[1])
    if source is None or weight is None:
        return None
    codes, scales = weight
    if kind == "ConvolutionDepthWise":
        group = int(params[7])  # type: ignore[arg-type]
        by_group = scales.reshape(group, -1)
        if not np.all(by_group == by_group[:, :1]):  # one scale for all outputs of a group
            return None
        scales = by_group[:, 0].copy()
    tensor, scale = source
    params[INT8_TERM] = TERMS[kind]
    weights = [Weight(Stored(codes.reshape(-1)), tagged=True)]
    if bias is not None:
        weights.append(Weight(Stored(bias)))
    return tensor, [*weights, Weight(Stored(inverse(scales))), Weight(Stored(inverse(np.array([scale]))))]


def inverse(scales: np.ndarray) -> np.ndarray:
    """ncnn's scales; of a weight that is all zero, ncnn's convention for it is 0."""
    wide = scales.astype(np.float64)
    return np.divide(1.0, wide, out=np.zeros_like(wide), where=wide != 0).astype(np.float32)
