"""Rows [N, L, C] as maps [N, 1, L, C] of height 1, which LiteRT's convolutions and pools take."""

from dataclasses import replace
from typing import Any

from onnx_lathe.runtime.targets.litert.network import Network
from onnx_lathe.runtime.targets.litert.node import Node
from onnx_lathe.runtime.targets.litert.windows import Window


def rows_as_map(net: Network, node: Node, source: int) -> int:
    """[N, L, C] -> [N, 1, L, C]."""
    shape = net.tensors[source].shape
    axis = net.ints(1, "axis")
    return net.inner(
        "EXPAND_DIMS", f"{node.inputs[0]}_map", [source, axis], (shape[0], 1, *shape[1:]), "ExpandDimsOptions"
    )


def put_map_as_rows(
    node: Node, net: Network, code: str, inputs: list[int], options: str, **fields: Any
) -> None:
    """Writes an operator whose result is [N, 1, L, C], of which [N, L, C] is the node's."""
    name = node.outputs[0]
    rows = net.image_shape(node)
    whole = net.inner_result(node, code, f"{name}_map", inputs, (rows[0], 1, *rows[1:]), options, **fields)
    net.put_image(node, "SQUEEZE", [whole], "SqueezeOptions", squeezeDims=[1])


def as_rows(found: Window) -> Window:
    """The window of one dimension as one over a map of height 1."""
    return replace(
        found,
        kernel=(1, *found.kernel),
        strides=(1, *found.strides),
        dilations=(1, *found.dilations),
        begin=(0, *found.begin),
        end=(0, *found.end),
    )
