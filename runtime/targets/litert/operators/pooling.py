"""Pools over windows, and over whole maps."""

from dataclasses import replace
from typing import Any

import numpy as np

from onnx_lathe.runtime.targets.litert.maps import as_rows, put_map_as_rows, rows_as_map
from onnx_lathe.runtime.targets.litert.network import Network
from onnx_lathe.runtime.targets.litert.node import Node, Unsupported
from onnx_lathe.runtime.targets.litert.registry import operator
from onnx_lathe.runtime.targets.litert.windows import Window, padded, window

STORED = ("INT8", "INT16")


def _window(node: Node, net: Network) -> tuple[int, Window, int]:
    """(the map with channels last, its window, how many dimensions that has)."""
    kernel = node.integers("kernel_shape") or []
    if len(kernel) not in (1, 2):
        raise Unsupported(f"it has {len(kernel)} spatial dimensions; LiteRT's pools have 1 or 2")
    found = window(node, net, kernel)
    if any(step > 1 for step in found.dilations):
        raise Unsupported("its window is dilated, and those of LiteRT's pools are not")
    source = net.image(node)
    if len(kernel) == 1:
        return rows_as_map(net, node, source), as_rows(found), 1
    return source, found, 2


def _fields(found: Window, activation: str) -> dict[str, Any]:
    return {
        "padding": "SAME" if found.same else "VALID",
        "strideH": found.strides[0],
        "strideW": found.strides[1],
        "filterHeight": found.kernel[0],
        "filterWidth": found.kernel[1],
        "fusedActivationFunction": activation,
    }


def _put(
    node: Node, net: Network, code: str, inputs: list[int], options: str, dimensions: int, **fields: Any
) -> None:
    if dimensions == 2:
        net.put_image(node, code, inputs, options, **fields)
    else:
        put_map_as_rows(node, net, code, inputs, options, **fields)


@operator("MaxPool", spatial=True, fuses=True, integers=STORED)
def max_pool(node: Node, net: Network) -> None:
    if any(node.outputs[1:]):
        raise Unsupported("it hands out where its maxima were")
    source, found, dimensions = _window(node, net)
    if not found.same:
        source = padded(net, source, found, node.inputs[0], lowest=True)
    _put(node, net, "MAX_POOL_2D", [source], "Pool2DOptions", dimensions, **_fields(found, node.activation))


@operator("AveragePool", spatial=True, fuses=True, integers=STORED)
def average_pool(node: Node, net: Network) -> None:
    """AVERAGE_POOL_2D leaves padding out of the count under SAME. Else zeros are put around the map, and where the
    model counts fewer values than the window has, the mean of all is scaled up, in float.
    """
    source, found, dimensions = _window(node, net)
    counts = _counts(node, net, found, dimensions)
    inside = _counts(node, net, found, dimensions, padding=False)
    if found.same and (found.valid or np.array_equal(counts, inside)):
        _put(
            node,
            net,
            "AVERAGE_POOL_2D",
            [source],
            "Pool2DOptions",
            dimensions,
            **_fields(found, node.activation),
        )
        return
    found = replace(found, same=False)
    source = padded(net, source, found, node.inputs[0])
    scale = np.prod(found.kernel) / counts
    if np.all(scale == 1.0):
        _put(
            node,
            net,
            "AVERAGE_POOL_2D",
            [source],
            "Pool2DOptions",
            dimensions,
            **_fields(found, node.activation),
        )
        return
    if any(size is None for size in net.sizes(node.inputs[0])[1:]):
        raise Unsupported("how many values its windows count at the edges depends on the size of the input")
    shape = (net.tensors[source].shape[0], *scale.shape, net.tensors[source].shape[-1])
    label = node.outputs[0]
    if node.on_integers:  # a mean that is rounded before it is scaled up would be off by more than a step
        sizes = net.tensors[source].shape
        source = net.inner("DEQUANTIZE", f"{label}_decoded", [source], sizes, type="FLOAT32")
    means = net.inner(
        "AVERAGE_POOL_2D", f"{label}_means", [source], shape, "Pool2DOptions", **_fields(found, "NONE")
    )
    factor = net.floats(scale[None, :, :, None], f"{node.name}_counts")
    last: dict[str, Any] = {"options": "MulOptions", "fusedActivationFunction": node.activation}
    if not node.on_integers:
        _put(node, net, "MUL", [means, factor], dimensions=dimensions, **last)
        return
    scaled = net.inner("MUL", f"{label}_scaled", [means, factor], shape, **last)
    _put(node, net, "QUANTIZE", [scaled], "", dimensions)


def _counts(
    node: Node, net: Network, found: Window, dimensions: int, padding: bool | None = None
) -> np.ndarray:
    """[H, W]: how many values each window of the result counts; those of the padding too if the node counts them."""
    include = bool(node.integer("count_include_pad")) if padding is None else padding
    sizes = net.shape(node.inputs[0])[1:-1] if node.channels_last else net.shape(node.inputs[0])[2:]
    results = net.image_shape(node)[1:-1]
    if dimensions == 1:
        sizes, results = (1, *sizes), (1, *results)
    given = node.integers("pads") or []
    ends = (0,) * (2 - dimensions) + tuple(given[len(given) // 2 :]) if given else found.end
    axes = []
    for axis in range(2):
        first = np.arange(results[axis]) * found.strides[axis] - found.begin[axis]
        low, high = (-found.begin[axis], sizes[axis] + ends[axis]) if include else (0, sizes[axis])
        axes.append(np.minimum(first + found.kernel[axis], high) - np.maximum(first, low))
    return axes[0][:, None] * axes[1][None, :]


@operator("GlobalAveragePool", spatial=True, integers=STORED)
def global_average_pool(node: Node, net: Network) -> None:
    _global(node, net, "MEAN")


@operator("GlobalMaxPool", spatial=True, integers=STORED)
def global_max_pool(node: Node, net: Network) -> None:
    _global(node, net, "REDUCE_MAX")


def _global(node: Node, net: Network, code: str) -> None:
    source = net.image(node)
    axes = net.ints(range(1, len(net.tensors[source].shape) - 1), "axes")
    net.put_image(node, code, [source, axes], "ReducerOptions", keepDims=True)
