"""Conv and ConvTranspose over one, two or three dimensions."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from onnx_lathe.runtime.targets.core.node import Node, Unsupported
from onnx_lathe.runtime.targets.coreml.network import Network
from onnx_lathe.runtime.targets.coreml.registry import operator
from onnx_lathe.runtime.targets.coreml.windows import paddings, window

MOST_SPATIAL = 3


@operator("Conv")
def conv(node: Node, net: Network) -> None:
    kernel = net.shape(node.inputs[1])[2:]
    _refuse_dimensions(kernel)
    found = window(node, net, kernel)
    if net.is_free(node.inputs[1]):
        weight = net.weight(node.inputs[1])
    elif max(found.dilations) > 1:
        raise Unsupported("its weight is computed at run time and its window has gaps (dilations)")
    else:
        weight = net.variable(node.inputs[1])
    inputs = {
        "x": net.variable(node.inputs[0]),
        "weight": weight,
        "strides": list(found.strides),
        "dilations": list(found.dilations),
        "groups": node.integer("group", 1),
        **found.padding(),
    }
    _with_bias(node, net, "conv", inputs, net.shape(node.inputs[1])[0])


@operator("ConvTranspose")
def conv_transpose(node: Node, net: Network) -> None:
    """Where padding differs on two sides, or rows are added (output_padding), the whole result is computed and cut."""
    weight_shape = net.shape(node.inputs[1])
    kernel, group = weight_shape[2:], node.integer("group", 1)
    _refuse_dimensions(kernel)
    strides = node.integers("strides") or [1] * len(kernel)
    dilations = node.integers("dilations") or [1] * len(kernel)
    begin, end = _cuts(node, net, kernel, strides, dilations)
    inputs = {
        "x": net.variable(node.inputs[0]),
        "weight": net.weight(node.inputs[1]),
        "strides": list(strides),
        "dilations": list(dilations),
        "groups": group,
    }
    if begin == end and min(begin) >= 0:
        inputs |= {"pad_type": "custom", "pad": paddings(begin, end)}
        _with_bias(node, net, "conv_transpose", inputs, weight_shape[1] * group)
        return
    if min(begin) < 0:
        raise Unsupported("its output_shape is larger than what it computes")
    rank, added = len(kernel) + 2, [max(-cut, 0) for cut in end]
    whole = net.op("conv_transpose", f"{node.name}_whole", pad_type="valid", **inputs)
    if any(added):
        pads = [0, 0, 0, 0, *paddings([0] * len(kernel), added)]
        whole = net.op("pad", f"{node.name}_added", x=whole, pad=pads, constant_val=net.number(0.0))
        end = [max(cut, 0) for cut in end]
    bias = _bias(node, net, weight_shape[1] * group)
    if bias is not None:
        column = net.reshaped(bias, f"{node.name}_bias", [1, -1, *[1] * len(kernel)])
        whole = net.op("add", f"{node.name}_biased", x=whole, y=column)
    net.put(
        node,
        "slice_by_index",
        x=whole,
        begin=[0, 0, *begin],
        end=[0, 0, *(-cut for cut in end)],
        begin_mask=[True, True] + [False] * len(kernel),
        end_mask=[True, True] + [not cut for cut in end],
        stride=[1] * rank,
    )


def _refuse_dimensions(kernel: Sequence[int]) -> None:
    if not 1 <= len(kernel) <= MOST_SPATIAL:
        raise Unsupported(f"it has {len(kernel)} spatial dimensions; Core ML's convolutions have 1, 2 or 3")


def _with_bias(node: Node, net: Network, kind: str, inputs: dict[str, Any], outputs: int) -> None:
    """A bias that is computed at run time is added behind."""
    if not node.given(2) or net.is_free(node.inputs[2]):
        net.put(node, kind, bias=_bias(node, net, outputs), **inputs)
        return
    plain = net.op(kind, f"{node.name}_plain", **inputs)
    rank = net.rank(node.inputs[0])
    shape = [1, outputs, *[1] * (rank - 2)]
    bias = net.reshaped(net.variable(node.inputs[2]), f"{node.name}_bias", shape)
    net.put(node, "add", x=plain, y=bias)


def _bias(node: Node, net: Network, outputs: int) -> Any:
    if not node.given(2):
        return None
    values = np.broadcast_to(net.constant(node.inputs[2], "bias").astype(np.float32), (outputs,))
    return net.stored(node.inputs[2], values.copy())


def _cuts(
    node: Node, net: Network, kernel: Sequence[int], strides: Sequence[int], dilations: Sequence[int]
) -> tuple[list[int], list[int]]:
    """What is cut off the whole result on each side; less than nothing where rows are added."""
    added = node.integers("output_padding") or [0] * len(kernel)
    wanted, auto = node.integers("output_shape"), node.text("auto_pad", "NOTSET")
    if not wanted and auto in ("NOTSET", "VALID"):
        pads = (node.integers("pads") if auto == "NOTSET" else None) or [0] * 2 * len(kernel)
        spatial = len(kernel)
        return pads[:spatial], [pad - more for pad, more in zip(pads[spatial:], added, strict=True)]
    begin, end = [], []
    for axis, size in enumerate(net.sizes(node.inputs[0])[2:]):
        if wanted and size is None:
            raise Unsupported("its output_shape is for one size of the input, which is open")
        target = wanted[axis] if wanted else strides[axis] * (size or 1)
        whole = strides[axis] * ((size or 1) - 1) + added[axis] + (kernel[axis] - 1) * dilations[axis] + 1
        total = whole - target
        half = total // 2
        begin.append(half if auto == "SAME_UPPER" else total - half)
        end.append(total - begin[-1] - added[axis])
    return begin, end
