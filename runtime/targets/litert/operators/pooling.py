"""MaxPool."""

from onnx_lathe.runtime.targets.litert.network import Network
from onnx_lathe.runtime.targets.litert.node import Node, Unsupported
from onnx_lathe.runtime.targets.litert.operators.convolution import as_rows, put_map_as_rows, rows_as_map
from onnx_lathe.runtime.targets.litert.registry import operator
from onnx_lathe.runtime.targets.litert.windows import padded, window


@operator("MaxPool", spatial=True, fuses=True, integers=("INT8", "INT16"))
def max_pool(node: Node, net: Network) -> None:
    kernel = node.integers("kernel_shape") or []
    spatial = len(kernel)
    if spatial not in (1, 2):
        raise Unsupported(f"it has {spatial} spatial dimensions; LiteRT's pools have 1 or 2")
    if any(node.outputs[1:]):
        raise Unsupported("it hands out where its maxima were")
    found = window(node, net, kernel)
    if any(step > 1 for step in found.dilations):
        raise Unsupported("its window is dilated, which LiteRT's pools are not")
    source = net.image(node)
    if spatial == 1:
        source, found = rows_as_map(net, node, source), as_rows(found)
    if not found.same:
        source = padded(net, source, found, node.inputs[0], lowest=True)
    fields = {
        "padding": "SAME" if found.same else "VALID",
        "strideH": found.strides[0],
        "strideW": found.strides[1],
        "filterHeight": found.kernel[0],
        "filterWidth": found.kernel[1],
        "fusedActivationFunction": node.activation,
    }
    put = (
        net.put_image
        if spatial == 2
        else lambda *given, **more: put_map_as_rows(given[0], net, *given[1:], **more)
    )
    put(node, "MAX_POOL_2D", [source], "Pool2DOptions", **fields)
