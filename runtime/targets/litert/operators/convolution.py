"""Conv and ConvTranspose of one and two dimensions, with groups or without, in float and on integers.

Weights in the file: CONV_2D O,H,W,I; DEPTHWISE_CONV_2D 1,H,W,C*multiplier; TRANSPOSE_CONV O,H,W,I. A convolution of one
dimension is one over maps of height 1.
"""

from typing import Any

import numpy as np

from onnx_lathe.runtime.targets.litert.maps import as_rows, put_map_as_rows, rows_as_map
from onnx_lathe.runtime.targets.litert.network import Network
from onnx_lathe.runtime.targets.litert.node import Node, Unsupported
from onnx_lathe.runtime.targets.litert.registry import operator
from onnx_lathe.runtime.targets.litert.stem import folded_map, folded_weight, folds
from onnx_lathe.runtime.targets.litert.windows import Window, padded, window

STORED = ("INT8", "INT16")


@operator("Conv", spatial=True, fuses=True, integers=STORED, data=(0, 1))
def conv(node: Node, net: Network) -> None:
    shape = net.constant(node.inputs[1], "weight").shape
    spatial = len(shape) - 2
    if spatial not in (1, 2):
        raise Unsupported(f"it has {spatial} spatial dimensions; LiteRT's CONV_2D has 1 or 2")
    group = node.integer("group", 1)
    found = window(node, net, shape[2:])
    source = net.image(node)
    if spatial == 1:
        source, found = rows_as_map(net, node, source), as_rows(found)
    if spatial == 2 and group == 1 and folds(node, net, source, found):
        _folded(node, net, source, found)
        return
    if not found.same:
        source = padded(net, source, found, node.inputs[0])
    if group > 1 and group == net.tensors[source].shape[-1] and shape[1] == 1:
        _depthwise(node, net, source, found, spatial)
    else:
        _grouped(node, net, source, found, spatial)


def _depthwise(node: Node, net: Network, source: int, found: Window, spatial: int) -> None:
    outputs, channels = net.constant(node.inputs[1], "weight").shape[0], net.tensors[source].shape[-1]
    weight = net.weight(node, 1, lambda values: _two_dimensions(values).transpose(1, 2, 3, 0), axis=3)
    bias = net.bias(node, 2, source, weight, outputs)
    fields = {**_fields(found), "depthMultiplier": outputs // channels}
    _put(node, net, "DEPTHWISE_CONV_2D", [source, weight, bias], "DepthwiseConv2DOptions", fields, spatial)


def _grouped(node: Node, net: Network, source: int, found: Window, spatial: int) -> None:
    weight = net.weight(node, 1, lambda values: _two_dimensions(values).transpose(0, 2, 3, 1))
    bias = net.bias(node, 2, source, weight, net.tensors[weight].shape[0])
    _put(node, net, "CONV_2D", [source, weight, bias], "Conv2DOptions", _fields(found), spatial)


def _folded(node: Node, net: Network, source: int, found: Window) -> None:
    weight = net.weight(node, 1, lambda values: folded_weight(values, found))
    source, window = folded_map(net, node, source, found)
    bias = net.bias(node, 2, source, weight, net.tensors[weight].shape[0])
    _put(node, net, "CONV_2D", [source, weight, bias], "Conv2DOptions", _fields(window), 2)


def _two_dimensions(weight: np.ndarray) -> np.ndarray:
    return weight[:, :, None] if weight.ndim == 3 else weight


def _fields(found: Window) -> dict[str, Any]:
    return {
        "padding": "SAME" if found.same else "VALID",
        "strideH": found.strides[0],
        "strideW": found.strides[1],
        "dilationHFactor": found.dilations[0],
        "dilationWFactor": found.dilations[1],
    }


def _put(
    node: Node,
    net: Network,
    code: str,
    inputs: list[int],
    options: str,
    fields: dict[str, Any],
    spatial: int,
) -> None:
    fields["fusedActivationFunction"] = node.activation
    if spatial == 2:
        net.put_image(node, code, inputs, options, **fields)
    else:
        put_map_as_rows(node, net, code, inputs, options, **fields)
