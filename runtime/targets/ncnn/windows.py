"""The window that a convolution or pooling moves over its input: kernel, steps and padding, outermost dimension first."""

from collections.abc import Sequence
from typing import NamedTuple

from onnx_lathe.runtime.targets.core.node import Node, Unsupported
from onnx_lathe.runtime.targets.ncnn.network import Network

SAME_UPPER, SAME_LOWER = -233, -234
"""ncnn's own words for padding that depends on the size (src/layer/convolution.cpp, make_padding)."""


class Window(NamedTuple):
    kernel: tuple[int, ...]
    dilations: tuple[int, ...]
    strides: tuple[int, ...]
    begin: tuple[int, ...]
    end: tuple[int, ...]


def window(node: Node, net: Network, kernel: Sequence[int]) -> Window:
    """The window of a node whose first input is [N, C, ...]. `auto_pad` becomes numbers, where these do not depend on
    an open size; else ncnn's words for it.
    """
    spatial = len(kernel)
    dilations = tuple(node.integers("dilations") or [1] * spatial)
    strides = tuple(node.integers("strides") or [1] * spatial)
    auto = node.text("auto_pad", "NOTSET")
    if auto in ("SAME_UPPER", "SAME_LOWER"):
        begin, end = _same(node, net, kernel, dilations, strides, auto == "SAME_LOWER")
    else:
        pads = (node.integers("pads") if auto == "NOTSET" else None) or [0] * 2 * spatial
        begin, end = tuple(pads[:spatial]), tuple(pads[spatial:])
    if min((*begin, *end)) < 0 and not {SAME_UPPER, SAME_LOWER}.intersection(begin):
        raise Unsupported("its padding is negative")
    return Window(tuple(kernel), dilations, strides, begin, end)


def _same(
    node: Node,
    net: Network,
    kernel: Sequence[int],
    dilations: Sequence[int],
    strides: Sequence[int],
    lower: bool,
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    totals = []
    for size, taps, dilation, stride in zip(
        net.sizes(node.inputs[0])[2:], kernel, dilations, strides, strict=True
    ):
        extent = dilation * (taps - 1) + 1
        if size is None and stride > 1:
            word = SAME_LOWER if lower else SAME_UPPER
            return (word,) * len(kernel), (word,) * len(kernel)
        known = size or 1  # with stride 1 the padding is that of any size
        totals.append(max((-(-known // stride) - 1) * stride + extent - known, 0))
    small = tuple(total // 2 for total in totals)
    large = tuple(total - half for total, half in zip(totals, small, strict=True))
    return (large, small) if lower else (small, large)
