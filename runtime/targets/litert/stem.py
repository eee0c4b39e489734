"""A convolution that strides over a map of few channels, on integers, with neighbouring pixels as its channels.

    x[N,H,W,C] -> PAD -> CONV_2D(w[O,kh,kw,C], strides h,s)
    x[N,H,W,C] -> PAD -> RESHAPE[N,H,W/s,s*C] -> CONV_2D(w[O,kh,ceil(kw/s),s*C], strides h,1)

is the same sum: the weight has zeros where the last group reaches beyond it. With channels last the RESHAPE moves nothing.
XNNPACK's kernels on integers take the channels of a pixel by LANES, the last ones filled up with zeros: of 3 channels 5 of 8
products are of those, of 6 there are 2.
"""

from dataclasses import replace

import numpy as np

from onnx_lathe.runtime.targets.litert.network import Network
from onnx_lathe.runtime.targets.litert.node import Node
from onnx_lathe.runtime.targets.litert.windows import Window, padded

LANES = 8
"""Integers that a kernel multiplies at a time: of x86, and of ARM with i8mm. ARM with dot products alone takes 4."""


def folds(node: Node, net: Network, source: int, found: Window) -> bool:
    """Whether the convolution, of one group over two dimensions, is to be folded, and can be."""
    one = net.tensors[source]
    if not net.fold_stem or not node.on_integers or one.type != "INT8":
        return False
    if found.strides[1] == 1 or found.dilations[1] > 1 or None in net.sizes(node.inputs[0])[1:]:
        return False
    groups, step, channels = _groups(found), found.strides[1], one.shape[-1]
    cheaper = groups * _filled(step * channels) < found.kernel[1] * _filled(channels)
    return cheaper and _missing(net, node, source, found) >= 0


def folded_map(net: Network, node: Node, source: int, found: Window) -> tuple[int, Window]:
    """(the padded map [N,H,W/s,s*C], the window over it)."""
    step = found.strides[1]
    end = (found.end[0], _missing(net, node, source, found))
    whole = padded(net, source, replace(found, end=end), node.inputs[0])
    batch, (_, height, width, channels) = net.sizes(node.inputs[0])[0], net.tensors[whole].shape
    sizes = (batch, height, width // step, step * channels)
    kernel, strides = (found.kernel[0], _groups(found)), (found.strides[0], 1)
    window = Window(kernel, strides, (found.dilations[0], 1), (0, 0), (0, 0), False)
    return net.reshaped(whole, f"{node.inputs[0]}_folded", sizes), window


def folded_weight(values: np.ndarray, found: Window) -> np.ndarray:
    """[O,C,kh,kw] -> [O,kh,ceil(kw/s),s*C]."""
    step, groups = found.strides[1], _groups(found)
    rows = values.transpose(0, 2, 3, 1)
    rows = np.pad(rows, ((0, 0), (0, 0), (0, groups * step - rows.shape[2]), (0, 0)))
    return rows.reshape(*rows.shape[:2], groups, step * rows.shape[3])


def _groups(found: Window) -> int:
    return -(-found.kernel[1] // found.strides[1])


def _missing(net: Network, node: Node, source: int, found: Window) -> int:
    """Columns behind the map up to where the last group ends; below zero where the map has more."""
    results = net.image_shape(node)[2]
    return found.strides[1] * (results - 1 + _groups(found)) - found.begin[1] - net.tensors[source].shape[2]


def _filled(channels: int) -> int:
    return -(-channels // LANES) * LANES
