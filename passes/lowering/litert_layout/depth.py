"""DepthToSpace: the form of it that LiteRT has, and what is one without its name.

    Conv(W) -> DepthToSpace(CRD)                                 Conv(W, output channels in another order) -> DepthToSpace(DCR)
    x [N,C*b*b,H,W] -> Reshape [N,C,b,b,H,W]                     DepthToSpace(CRD)
      -> Transpose(0,1,4,2,5,3) -> Reshape [N,C,H*b,W*b]

CRD (depth, columns, rows) has the places of one output channel beside each other, as PyTorch's pixel_shuffle has; DCR
those of one place.
"""

import numpy as np

from onnx_lathe.passes.graph import Constant, Node, Tensor
from onnx_lathe.passes.graph.initializers import read
from onnx_lathe.passes.graph.rewire import disconnect, is_output
from onnx_lathe.passes.lowering.litert_layout.work import Work

SHUFFLE = [0, 1, 4, 2, 5, 3]
"""The Transpose of a pixel shuffle."""
CARRYING = ("Clip", "DequantizeLinear", "LeakyRelu", "QuantizeLinear", "Relu", "Sigmoid", "Tanh")
"""What may stand between the convolution and the DepthToSpace: the same for every channel."""


def write_depth_to_space(work: Work, node: Node) -> None:
    """Makes a DepthToSpace of the Reshapes around a Transpose that shuffles pixels."""
    if list(node.attrs.get("perm") or ()) != SHUFFLE:
        return
    before = node.inputs[0].inputs[0] if node.inputs[0].inputs else None
    readers = node.outputs[0].outputs
    if before is None or before.op != "Reshape" or len(readers) != 1 or readers[0].op != "Reshape":
        return
    if len(node.inputs[0].outputs) != 1 or any(
        _is_seen(work, one) for one in (node.inputs[0], node.outputs[0])
    ):
        return
    behind = readers[0]
    source, between, result = (
        work.shape(one) for one in (before.inputs[0], before.outputs[0], behind.outputs[0])
    )
    if source is None or between is None or result is None or len(source) != 4 or len(result) != 4:
        return
    block, channels = between[2], between[1]
    if not isinstance(block, int) or not isinstance(channels, int) or block != between[3] or block < 2:
        return
    if source[:2] != (between[0], channels * block * block) or between[4:] != source[2:]:
        return
    if result[1] != channels or not all(map(_multiplied, source[2:], result[2:], (block, block))):
        return
    name, image, written = behind.name, before.inputs[0], behind.outputs[0]
    disconnect(behind)
    made = work.node("DepthToSpace", name, [image], [written], blocksize=block, mode="CRD")
    work.report.edit(node.name, "is a DepthToSpace, with the Reshapes around it")
    order_channels(work, made)


def _multiplied(before: int | str | None, after: int | str | None, block: int) -> bool:
    """Whether a size is that many times another, as far as both are known."""
    return not isinstance(before, int) or not isinstance(after, int) or after == before * block


def order_channels(work: Work, node: Node) -> None:
    """Turns CRD into DCR where the convolution that computes the channels can have them in the other order."""
    block, convolution = node.attrs["blocksize"], _convolution(work, node.inputs[0])
    if convolution is None:
        return
    parameters = [convolution.inputs[1], *convolution.inputs[2:3]]
    stored = [_stored(one) for one in parameters]
    if any(one is None for one in stored) or convolution.attrs.get("group", 1) != 1:
        return
    channels = int(read(stored[0][0]).shape[0])  # type: ignore[index]
    places = np.arange(channels).reshape(-1, block * block).T.reshape(-1)
    for index, tensor in enumerate(parameters):
        convolution.inputs[1 + index] = _reordered(work, tensor, places)
    node.attrs["mode"] = "DCR"
    work.report.edit(convolution.name, f"has its output channels in the order that {node.name} reads")


def _convolution(work: Work, tensor: Tensor) -> Node | None:
    """The Conv that computes the tensor, through operators that are the same for every channel, and for nobody else."""
    while tensor.inputs and len(tensor.outputs) == 1 and not _is_seen(work, tensor):
        node = tensor.inputs[0]
        if node.domain or (node.op != "Conv" and node.op not in CARRYING):
            return None
        if node.op == "Conv":
            return node
        if any(isinstance(one, Constant) and one.values.size > 1 for one in node.inputs[1:]):
            return None
        tensor = node.inputs[0]
    return None


def _is_seen(work: Work, tensor: Tensor) -> bool:
    return is_output(work.graph, tensor) or tensor.name in work.captured


def _stored(tensor: Tensor) -> list[Constant] | None:
    """The tensor, if it is an initializer, or what a DequantizeLinear decodes it from."""
    if isinstance(tensor, Constant):
        return [tensor]
    node = tensor.inputs[0] if tensor.inputs else None
    if node is None or node.op != "DequantizeLinear" or node.attrs.get("block_size", 0):
        return None
    return list(node.inputs) if all(isinstance(one, Constant) for one in node.inputs) else None


def _reordered(work: Work, tensor: Tensor, places: np.ndarray) -> Tensor:
    """The parameter with its first axis in this order."""
    if isinstance(tensor, Constant):
        return work.constant(f"{tensor.name}_ordered", read(tensor)[places])
    node = tensor.inputs[0]
    inputs = [
        work.constant(f"{one.name}_ordered", read(one)[places]) if index == 0 or one.values.size > 1 else one
        for index, one in enumerate(node.inputs)
    ]
    made = work.variable(f"{tensor.name}_ordered", tensor, tensor.shape)
    work.node(node.op, f"{node.name}_ordered", inputs, [made], **node.attrs)
    return made
