"""ConvTranspose of one and two dimensions, with groups or without, in float and on integers.

TRANSPOSE_CONV has neither groups nor dilations: its weight O,H,W,I is filled up with zeros for them.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from onnx_lathe.runtime.targets.litert.dimensions import Dim, is_open, pairs
from onnx_lathe.runtime.targets.litert.emitter import INT32, Emitter
from onnx_lathe.runtime.targets.litert.maps import put_map_as_rows, rows_as_map
from onnx_lathe.runtime.targets.litert.network import Network
from onnx_lathe.runtime.targets.litert.node import Node, Unsupported
from onnx_lathe.runtime.targets.litert.registry import operator

MOST_VALUES = 1 << 24
"""A weight that is filled up with zeros may have so many."""


@dataclass(frozen=True)
class Frame:
    """Sizes of the map that TRANSPOSE_CONV writes, and what is cut off in front. `same`: padding="SAME" cuts."""

    sizes: tuple[int, ...]
    begin: tuple[int, ...]
    same: bool


@operator("ConvTranspose", spatial=True, fuses=True, integers=("INT8", "INT16"), data=(0, 1))
def conv_transpose(node: Node, net: Network) -> None:
    shape = net.constant(node.inputs[1], "weight").shape
    spatial, group = len(shape) - 2, node.integer("group", 1)
    if spatial not in (1, 2):
        raise Unsupported(f"it has {spatial} spatial dimensions; LiteRT's TRANSPOSE_CONV has 1 or 2")
    if int(np.prod(shape)) * group > MOST_VALUES:
        raise Unsupported(
            f"it has {group} groups, which LiteRT has not, and its weight is too large to be filled up with zeros"
        )
    dilations = node.integers("dilations") or [1] * spatial
    source = net.image(node)
    before, after = _image_dims(node, net, node.inputs[0]), _image_dims(node, net, node.outputs[0])
    results = tuple(size for size, _ in after[1:-1])
    strides = tuple(node.integers("strides") or [1] * spatial)
    reach = tuple((extent - 1) * dilation + 1 for extent, dilation in zip(shape[2:], dilations, strict=True))
    frames = [
        _frame(
            node,
            tuple(dim[place] for dim in before[1:-1]),
            tuple(dim[place] for dim in after[1:-1]),
            reach,
            strides,
        )
        for place in (0, 1)
    ]
    frame, other = frames
    if (frame.begin, frame.same) != (other.begin, other.same):
        raise Unsupported("how it is padded depends on the size of the input: build for a fixed size")
    open_sizes = _open_sizes(before, frame, other, strides)
    if spatial == 1:
        source, strides = rows_as_map(net, node, source), (1, *strides)
        frame = Frame((1, *frame.sizes), (0, *frame.begin), frame.same)
    weight = net.weight(node, 1, lambda values: _filled(values, group, dilations), axis=0)
    outputs = net.tensors[weight].shape[0]
    whole = (net.tensors[source].shape[0], *frame.sizes, outputs)
    shape_place = net.ints(whole, "output_shape")
    if open_sizes is not None:
        added = (0,) * (2 - spatial) + open_sizes
        shape_place = _run_time_shape(Emitter(node, net), source, strides, added, outputs)
    inputs = [shape_place, weight, source]
    if node.given(2) or node.on_integers:
        inputs.append(net.bias(node, 2, source, weight, outputs))
    fields = {
        "padding": "SAME" if frame.same else "VALID",
        "strideH": strides[0],
        "strideW": strides[1],
        "fusedActivationFunction": node.activation,
    }
    _put(node, net, inputs, whole, frame, fields, results)


def _put(
    node: Node,
    net: Network,
    inputs: list[int],
    whole: tuple[int, ...],
    frame: Frame,
    fields: dict[str, Any],
    results: tuple[int, ...],
) -> None:
    options, name = "TransposeConvOptions", node.outputs[0]
    wanted = (whole[0], *((1,) * (2 - len(results))), *results, whole[3])
    if wanted == whole and len(results) == 2:
        net.put_image(node, "TRANSPOSE_CONV", inputs, options, **fields)
        return
    if wanted == whole:
        put_map_as_rows(node, net, "TRANSPOSE_CONV", inputs, options, **fields)
        return
    full = net.inner_result(node, "TRANSPOSE_CONV", f"{name}_full", inputs, whole, options, **fields)
    end = [first + size - all_ for first, size, all_ in zip((0, *frame.begin, 0), wanted, whole, strict=True)]
    places = [net.ints(values, "part") for values in ((0, *frame.begin, 0), end, (1,) * 4)]
    # ends count from behind, so that they hold for every size; one of 0 is none
    mask = {"beginMask": 0, "endMask": sum(1 << axis for axis, last in enumerate(end) if not last)}
    options = "StridedSliceOptions"
    if len(results) == 2:
        net.put_image(node, "STRIDED_SLICE", [full, *places], options, **mask)
    else:
        put_map_as_rows(node, net, "STRIDED_SLICE", [full, *places], options, **mask)


def _image_dims(node: Node, net: Network, tensor: str) -> tuple[Dim, ...]:
    """Of the node's input or output, with channels last."""
    dims = pairs(net, tensor)
    return dims if node.channels_last else (dims[0], *dims[2:], dims[1])


def _open_sizes(
    before: tuple[Dim, ...], frame: Frame, other: Frame, strides: tuple[int, ...]
) -> tuple[int, ...] | None:
    """How much larger the map that is written is than the stride times what is read, where either is open; None where all
    sizes are fixed.
    """
    if not any(map(is_open, before[:-1])) and frame.sizes == other.sizes:
        return None
    added = [
        tuple(
            size - dim[place] * stride
            for size, dim, stride in zip(one.sizes, before[1:-1], strides, strict=True)
        )
        for place, one in enumerate((frame, other))
    ]
    if added[0] != added[1]:
        raise Unsupported(
            "its result depends on the size of the input, in a way that is not clear: build for a fixed size"
        )
    return added[0]


def _run_time_shape(
    emit: Emitter, source: int, strides: tuple[int, ...], added: tuple[int, ...], outputs: int
) -> int:
    """INT32 [N, H, W, C] of what TRANSPOSE_CONV writes for a source of sizes that are open."""
    sizes = emit.gather(emit.shape(source, INT32), np.arange(3), 0)
    larger = emit.mul(sizes, emit.integers([1, *strides], "strides"))
    whole = emit.add(larger, emit.integers([0, *added], "added"))
    return emit.concat([whole, emit.integers([outputs], "outputs")], 0)


def _frame(
    node: Node,
    sizes: tuple[int, ...],
    results: tuple[int, ...],
    reach: tuple[int, ...],
    strides: tuple[int, ...],
) -> Frame:
    """For maps of `sizes` to become maps of `results`."""
    whole = tuple((size - 1) * stride + far for size, stride, far in zip(sizes, strides, reach, strict=True))
    begin = _begin(node, whole, results)
    missing = [max(full - size, 0) for full, size in zip(whole, results, strict=True)]
    same = all(
        first == less // 2 and size == -(-result // stride)
        for first, less, size, result, stride in zip(begin, missing, sizes, results, strides, strict=True)
    )
    if same:
        return Frame(results, begin, True)
    # rows behind the full result, which output_padding adds, hold the bias alone
    return Frame(
        tuple(max(full, first + size) for full, first, size in zip(whole, begin, results, strict=True)),
        begin,
        False,
    )


def _begin(node: Node, whole: tuple[int, ...], results: tuple[int, ...]) -> tuple[int, ...]:
    """What is cut off in front along each dimension."""
    auto, count = node.text("auto_pad", "NOTSET"), len(whole)
    added = node.integers("output_padding") or [0] * count
    node.integers("output_shape")
    if auto == "VALID":
        return (0,) * count
    if auto == "NOTSET" and "output_shape" not in node.attributes:
        return tuple((node.integers("pads") or [0] * (2 * count))[:count])
    found = []
    for full, size, more in zip(whole, results, added, strict=True):
        total = max(full + more - size, 0)
        found.append(total // 2 if auto == "SAME_UPPER" else total - total // 2)
    return tuple(found)


def _filled(weight: np.ndarray, group: int, dilations: list[int]) -> np.ndarray:
    """[I, O / group, H, W] -> [O, H, W, I], zero between groups and where a dilation skips."""
    inputs, outputs = weight.shape[0], weight.shape[1]
    spread = np.zeros(
        (
            *weight.shape[:2],
            *((n - 1) * step + 1 for n, step in zip(weight.shape[2:], dilations, strict=True)),
        ),
        weight.dtype,
    )
    spread[(slice(None), slice(None), *(slice(None, None, step) for step in dilations))] = weight
    if weight.ndim == 3:
        spread = spread[:, :, None]
    whole = np.zeros((inputs, outputs * group, *spread.shape[2:]), weight.dtype)
    rows = inputs // group
    for index in range(group):
        whole[index * rows : (index + 1) * rows, index * outputs : (index + 1) * outputs] = spread[
            index * rows : (index + 1) * rows
        ]
    return whole.transpose(1, 2, 3, 0)
