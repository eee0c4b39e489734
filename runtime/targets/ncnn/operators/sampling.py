"""GridSample of images: ncnn's layer of that name."""

from onnx_lathe.runtime.targets.core.node import Node, Unsupported
from onnx_lathe.runtime.targets.ncnn.network import Network
from onnx_lathe.runtime.targets.ncnn.registry import operator

IMAGE = (1, 2, 3)
WAYS = {"bilinear": 1, "linear": 1}
EDGES = {"zeros": 1, "border": 2}
"""ncnn rounds a place half-way between two pixels up, where ONNX takes the even one, and reflects at other places."""


@operator("GridSample")
def grid_sample(node: Node, net: Network) -> None:
    mode, edges = node.text("mode", "linear"), node.text("padding_mode", "zeros")
    if mode not in WAYS or edges not in EDGES:
        raise Unsupported(
            f"Lathe writes no sampling of mode '{mode}' with '{edges}' around the image for ncnn"
        )
    if net.rank(node.inputs[0]) != 4 or net.sizes(node.inputs[0])[0] != 1:
        raise Unsupported("it samples something else than one image of two dimensions")
    params = {0: WAYS[mode], 1: EDGES[edges], 2: node.integer("align_corners"), 3: 0}
    bottoms = [net.form(name, IMAGE).name for name in node.inputs[:2]]
    net.put(node, "GridSample", bottoms, params, axes=IMAGE)
