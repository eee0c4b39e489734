"""The window that a convolution or pool slides over a map, and how LiteRT pads for it."""

from collections.abc import Sequence
from dataclasses import dataclass

from onnx_lathe.runtime.targets.litert.network import Network
from onnx_lathe.runtime.targets.litert.node import Node, Unsupported


@dataclass(frozen=True)
class Window:
    """One entry for each spatial dimension. `begin` and `end`: rows of padding that a window reaches. `same`: whether
    padding="SAME" is that: ceil(size / stride) windows, and what is missing for them in halves, the larger behind.
    """

    kernel: tuple[int, ...]
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    begin: tuple[int, ...]
    end: tuple[int, ...]
    same: bool

    @property
    def valid(self) -> bool:
        return not any(self.begin) and not any(self.end)


def window(node: Node, net: Network, kernel: Sequence[int]) -> Window:
    """Of a node of one input and one output that are maps."""
    count = len(kernel)
    strides = tuple(node.integers("strides") or [1] * count)
    dilations = tuple(node.integers("dilations") or [1] * count)
    sizes, results = (_spatial(node, net.shape(name)) for name in (node.inputs[0], node.outputs[0]))
    is_open = [size is None for size in _spatial(node, net.sizes(node.inputs[0]))]
    begin, end = _pads(node, kernel, strides, dilations, sizes, is_open)
    ceil = bool(node.integer("ceil_mode"))
    ends, same = [], True
    for axis in range(count):
        reach = (results[axis] - 1) * strides[axis] + (kernel[axis] - 1) * dilations[axis] + 1
        half = max(reach - sizes[axis], 0) // 2
        if is_open[axis]:
            if ceil and strides[axis] > 1:
                raise Unsupported("how it rounds up depends on the size of the input")
            fits = strides[axis] == 1 and end[axis] - begin[axis] in (0, 1)
            ends.append(end[axis])
        else:
            fits = begin[axis] == half
            ends.append(max(reach - sizes[axis] - begin[axis], 0))
        same = same and fits and results[axis] == -(-sizes[axis] // strides[axis])
    return Window(tuple(kernel), strides, dilations, begin, tuple(ends), same)


def _spatial(node: Node, shape: Sequence[int | None]) -> list[int]:
    """None stays None, for an open size."""
    return list(shape[1:-1] if node.channels_last else shape[2:])  # type: ignore[arg-type]


def _pads(
    node: Node,
    kernel: Sequence[int],
    strides: Sequence[int],
    dilations: Sequence[int],
    sizes: Sequence[int],
    is_open: Sequence[bool],
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    auto = node.text("auto_pad", "NOTSET")
    pads = node.integers("pads") or [0] * (2 * len(kernel))
    count = len(kernel)
    if auto == "NOTSET":
        if min(pads) < 0:
            raise Unsupported("its padding is negative")
        return tuple(pads[:count]), tuple(pads[count:])
    if auto == "VALID":
        return (0,) * count, (0,) * count
    begin, end = [], []
    for size, extent, stride, dilation, free in zip(sizes, kernel, strides, dilations, is_open, strict=True):
        if free and stride > 1:
            raise Unsupported(f"its padding, auto_pad={auto}, depends on the size of the input")
        total = max((-(-size // stride) - 1) * stride + (extent - 1) * dilation + 1 - size, 0)
        small, large = total // 2, total - total // 2
        begin.append(small if auto == "SAME_UPPER" else large)
        end.append(large if auto == "SAME_UPPER" else small)
    return tuple(begin), tuple(end)


def padded(net: Network, source: int, found: Window, label: str, lowest: bool = False) -> int:
    """The map with the window's padding: of zeros, in integers the zero point; or of the lowest value, as a maximum wants
    it.
    """
    if found.valid:
        return source
    one = net.tensors[source]
    amounts = [(0, 0), *zip(found.begin, found.end, strict=True), (0, 0)]
    shape = [size + sum(pair) for size, pair in zip(one.shape, amounts, strict=True)]
    pads = net.ints(amounts, "pads")
    if not lowest or net.lowest_is_zero(source):  # XNNPACK takes PAD, and not PADV2
        return net.inner("PAD", f"{label}_padded", [source, pads], shape, "PadOptions")
    fill = net.lowest(source)
    return net.inner("PADV2", f"{label}_padded", [source, pads, fill], shape, "PadV2Options")
