"""MaxPool and AveragePool over one, two or three dimensions.

ncnn's Pooling pads as it is told (pad_mode 1), or adds what the last window lacks (pad_mode 0). ONNX's ceil_mode adds
it too, but leaves out a window that would begin in the padding; where sizes are known, the padding at the end is made
such that exactly ONNX's windows fit.
Source: ncnn, src/layer/pooling*.cpp; ONNX Runtime, core/providers/cpu/nn/pool_attributes.h. (The shape inference of
onnx 1.23 counts a window too many there.)
"""

from typing import NamedTuple

from onnx_lathe.runtime.targets.core.node import Node, Unsupported
from onnx_lathe.runtime.targets.ncnn.arithmetic import refuse_integers
from onnx_lathe.runtime.targets.ncnn.dialect import Value
from onnx_lathe.runtime.targets.ncnn.network import Network
from onnx_lathe.runtime.targets.ncnn.registry import operator
from onnx_lathe.runtime.targets.ncnn.windows import SAME_LOWER, SAME_UPPER, Window, window

MAX, MEAN = 0, 1
AS_NEEDED, AS_TOLD, UPPER, LOWER = 0, 1, 2, 3
"""pad_mode."""
KIND, PAD_MODE, COUNT_PADDING = 0, 5, 6
KERNEL, STRIDE, BEGIN = (1, 11, 21), (2, 12, 22), (3, 13, 23)
END = (14, 15, 16)
"""Keys of w, h and d."""
LAYERS = {1: "Pooling1D", 2: "Pooling", 3: "Pooling3D"}


class Padding(NamedTuple):
    """What Pooling adds itself."""

    mode: int
    begin: tuple[int, ...]
    end: tuple[int, ...]


@operator("MaxPool")
def max_pool(node: Node, net: Network) -> None:
    if any(node.outputs[1:]):
        raise Unsupported("its indices are read; ncnn's pooling gives the largest values alone")
    _pool(node, net, MAX, count_padding=False)


@operator("AveragePool")
def average_pool(node: Node, net: Network) -> None:
    _pool(node, net, MEAN, node.integer("count_include_pad") == 1)


def _pool(node: Node, net: Network, kind: int, count_padding: bool) -> None:
    refuse_integers(net, node.inputs[0])
    found = window(node, net, node.integers("kernel_shape") or [])
    _refuse_shapes(node, net, found)
    axes = tuple(range(1, len(found.kernel) + 2))
    source = net.form(node.inputs[0], axes).name
    padding = _padding(node, net, found)
    if count_padding and padding.mode in (AS_NEEDED, AS_TOLD):
        source, padding = _padded_before(node, net, found, source, padding)
        count_padding = False
    elif kind == MEAN and padding.mode in (UPPER, LOWER) and not count_padding:
        raise Unsupported("its padding depends on the size of the input, and ncnn would count it in")
    params: dict[int, Value] = {KIND: kind, PAD_MODE: padding.mode, COUNT_PADDING: int(count_padding)}
    for keys, values in (
        (KERNEL, found.kernel),
        (STRIDE, found.strides),
        (BEGIN, padding.begin),
        (END, padding.end),
    ):
        params |= dict(zip(keys, reversed(values), strict=False))
    net.put(node, LAYERS[len(found.kernel)], [source], params, axes=axes)


def _refuse_shapes(node: Node, net: Network, found: Window) -> None:
    if len(found.kernel) not in LAYERS:
        raise Unsupported(f"it has {len(found.kernel)} spatial dimensions; ncnn's pooling has 1, 2 or 3")
    if net.sizes(node.inputs[0])[0] != 1:
        raise Unsupported("it takes several samples at once, which are no batch of the model's input")
    if max(found.dilations) > 1:
        raise Unsupported("its window has gaps (dilations); ncnn's has none")


def _padding(node: Node, net: Network, found: Window) -> Padding:
    none = (0,) * len(found.kernel)
    word = {SAME_UPPER: UPPER, SAME_LOWER: LOWER}.get(found.begin[0])
    if word is not None:
        if any(kernel < stride for kernel, stride in zip(found.kernel, found.strides, strict=True)):
            raise Unsupported("its steps are wider than its window, and how much it pads depends on the size")
        return Padding(word, none, none)
    if not node.integer("ceil_mode") or node.text("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        return Padding(AS_TOLD, found.begin, found.end)
    sizes = net.sizes(node.inputs[0])[2:]
    if None in sizes:
        return _open_padding(found)
    end = tuple(_end(size or 0, found, at) for at, size in enumerate(sizes))
    return Padding(AS_TOLD, found.begin, end)


def _end(size: int, found: Window, at: int) -> int:
    """The padding behind a dimension of this size with which exactly the windows of ceil_mode fit."""
    kernel, stride, begin = found.kernel[at], found.strides[at], found.begin[at]
    windows = -(-(size + begin + found.end[at] - kernel) // stride) + 1
    if (windows - 1) * stride >= size + begin:
        windows -= 1
    return max((windows - 1) * stride + kernel - size - begin, 0)


def _open_padding(found: Window) -> Padding:
    """ncnn adds what the last window lacks. That window never begins in the padding if a step from the last whole one
    does not lead there.
    """
    for kernel, stride, end in zip(found.kernel, found.strides, found.end, strict=True):
        if stride > kernel - end:
            raise Unsupported(
                "whether its last window begins in the padding depends on the size of the input"
            )
    return Padding(AS_NEEDED, found.begin, found.end)


def _padded_before(
    node: Node, net: Network, found: Window, source: str, padding: Padding
) -> tuple[str, Padding]:
    """The model's own padding in a layer before, whose zeros count as values; what ceil_mode adds does not count."""
    none = (0,) * len(found.kernel)
    keys = {1: ((2, 3),), 2: ((0, 1), (2, 3)), 3: ((7, 8), (0, 1), (2, 3))}[len(found.kernel)]
    params: dict[int, Value] = {4: 0, 5: 0.0}
    for (first, last), begin, end in zip(keys, found.begin, found.end, strict=True):
        params |= {first: begin, last: end}
    if any((*found.begin, *found.end)):
        source = net.inner("Padding", f"{node.name}_padded", [source], params)
    beyond = tuple(max(all_ - own, 0) for all_, own in zip(padding.end, found.end, strict=True))
    return source, Padding(padding.mode, none, none if padding.mode == AS_NEEDED else beyond)
