"""MaxPool and AveragePool over one, two or three dimensions, and pooling over whole maps.

ONNX's ceil_mode adds what the last window lacks, and leaves out a window that would begin in the padding. Where sizes
are known, the padding at the end is made such that exactly ONNX's windows fit.
Source: ONNX Runtime, core/providers/cpu/nn/pool_attributes.h.
"""

import numpy as np

from onnx_lathe.runtime.targets.core.node import Node, Unsupported
from onnx_lathe.runtime.targets.coreml.network import Network
from onnx_lathe.runtime.targets.coreml.registry import operator
from onnx_lathe.runtime.targets.coreml.windows import Window, paddings, window


@operator("MaxPool", "AveragePool")
def pool(node: Node, net: Network) -> None:
    found = window(node, net, node.integers("kernel_shape") or [])
    _refuse(node, found)
    source, mean = net.variable(node.inputs[0]), node.op == "AveragePool"
    counted = mean and node.integer("count_include_pad") == 1
    begin, end = found.begin, _end(node, net, found)
    beyond = tuple(max(whole - own, 0) for whole, own in zip(end, found.end, strict=True))
    if counted and any(beyond):  # what ceil_mode adds does not count, the model's own padding does
        pads = [0, 0, 0, 0, *paddings(found.begin, found.end)]
        if any(pads):
            source = net.op("pad", f"{node.name}_padded", x=source, pad=pads, constant_val=net.number(0.0))
        begin, end, counted = (0,) * len(begin), beyond, False
    padding = found.padding() if found.word else {"pad_type": "custom", "pad": paddings(begin, end)}
    inputs = {
        "kernel_sizes": list(found.kernel),
        "strides": list(found.strides),
        **padding,
        "ceil_mode": False,
    }
    if mean:
        inputs["exclude_padding_from_average"] = not counted
    net.put(node, "avg_pool" if mean else "max_pool", x=source, **inputs)


def _refuse(node: Node, found: Window) -> None:
    if any(node.outputs[1:]):
        raise Unsupported("its indices are read; Core ML's pooling gives the largest values alone")
    if not 1 <= len(found.kernel) <= 3:
        raise Unsupported(f"it has {len(found.kernel)} spatial dimensions; Core ML's pooling has 1, 2 or 3")
    if max(found.dilations) > 1:
        raise Unsupported("its window has gaps (dilations); Core ML's has none")


def _end(node: Node, net: Network, found: Window) -> tuple[int, ...]:
    """The padding behind each dimension."""
    if not node.integer("ceil_mode") or found.word:
        return found.end
    ends = [
        {_needed(size, found, axis) for size in pair}
        for axis, pair in enumerate(net.pairs(node.inputs[0])[2:])
    ]
    sizes = net.sizes(node.inputs[0])[2:]
    if any(size is None and found.strides[axis] > 1 for axis, size in enumerate(sizes)):
        raise Unsupported(
            "it rounds sizes up (ceil_mode), and how much it pads depends on the size of the input"
        )
    return tuple(one.pop() for one in ends)


def _needed(size: int, found: Window, axis: int) -> int:
    kernel, stride, begin = found.kernel[axis], found.strides[axis], found.begin[axis]
    windows = -(-(size + begin + found.end[axis] - kernel) // stride) + 1
    if (windows - 1) * stride >= size + begin:
        windows -= 1
    needed = max((windows - 1) * stride + kernel - size - begin, 0)
    return max(needed, 0)


@operator("GlobalAveragePool", "GlobalMaxPool")
def global_pool(node: Node, net: Network) -> None:
    rank = net.rank(node.inputs[0])
    kind = "reduce_mean" if node.op == "GlobalAveragePool" else "reduce_max"
    axes = np.arange(2, rank, dtype=np.int32)
    net.put(node, kind, x=net.variable(node.inputs[0]), axes=axes, keep_dims=True)
