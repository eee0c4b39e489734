"""The window that a convolution or a pooling moves over its input: kernel, steps and padding, outermost dimension first."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from onnx_lathe.runtime.targets.core.node import Node, Unsupported
from onnx_lathe.runtime.targets.coreml.knowledge import Knowledge

SAME = {"SAME_UPPER": "same", "SAME_LOWER": "same_lower"}


@dataclass(frozen=True)
class Window:
    """`word`: MIL's, for padding that depends on the size of the input; else it is `begin` and `end`."""

    kernel: tuple[int, ...]
    dilations: tuple[int, ...]
    strides: tuple[int, ...]
    begin: tuple[int, ...]
    end: tuple[int, ...]
    word: str = ""

    def padding(self) -> dict[str, Any]:
        """As MIL's operations take it."""
        if self.word:
            return {"pad_type": self.word}
        return {"pad_type": "custom", "pad": paddings(self.begin, self.end)}


def paddings(begin: Sequence[int], end: Sequence[int]) -> list[int]:
    """Before and after, axis by axis."""
    return [pad for both in zip(begin, end, strict=True) for pad in both]


def window(node: Node, net: Knowledge, kernel: Sequence[int]) -> Window:
    """The window of a node whose first input is [N, C, ...]."""
    spatial = len(kernel)
    dilations = tuple(node.integers("dilations") or [1] * spatial)
    strides = tuple(node.integers("strides") or [1] * spatial)
    auto, word = node.text("auto_pad", "NOTSET"), ""
    if auto in SAME:
        begin, end, word = _same(node, net, kernel, dilations, strides)
    else:
        pads = (node.integers("pads") if auto == "NOTSET" else None) or [0] * 2 * spatial
        begin, end = tuple(pads[:spatial]), tuple(pads[spatial:])
    if min((*begin, *end)) < 0:
        raise Unsupported("its padding is negative")
    return Window(tuple(kernel), dilations, strides, begin, end, word)


def _same(
    node: Node, net: Knowledge, kernel: Sequence[int], dilations: Sequence[int], strides: Sequence[int]
) -> tuple[tuple[int, ...], tuple[int, ...], str]:
    """As many results as steps: numbers, where they do not depend on an open size, else MIL's word for it."""
    none = (0,) * len(kernel)
    auto = node.text("auto_pad", "NOTSET")
    totals = []
    for size, taps, dilation, stride in zip(
        net.sizes(node.inputs[0])[2:], kernel, dilations, strides, strict=True
    ):
        if size is None and stride > 1:
            return none, none, SAME[auto]
        known = size or 1  # with stride 1 the padding is that of any size
        totals.append(max((-(-known // stride) - 1) * stride + dilation * (taps - 1) + 1 - known, 0))
    small = tuple(total // 2 for total in totals)
    large = tuple(total - half for total, half in zip(totals, small, strict=True))
    return (large, small, "") if auto == "SAME_LOWER" else (small, large, "")
