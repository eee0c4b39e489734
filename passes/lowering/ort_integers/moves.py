"""Operators that only move values, computed on integers.

    x_int8 -> DQ -> Pad, Split, Slice, ... -> Q -> DQ        x_int8 -> Pad, Split, Slice, ... -> DQ

with one scale and zero-point on both sides. ONNX Runtime does so by itself for some of them, and leaves
others, such as Pad and DepthToSpace, between two layers in float.
"""

import numpy as np

from onnx_lathe.passes.graph import Constant, Node, Tensor, Variable
from onnx_lathe.passes.graph.quantization.pairs import is_dequantized
from onnx_lathe.passes.graph.quantization.placement import PAD_VALUE_INPUT
from onnx_lathe.passes.graph.rewire import disconnect, replace_input
from onnx_lathe.passes.lowering.ort_integers.work import Work, scale_and_zero

MOVES = ("DepthToSpace", "Expand", "Gather", "Pad", "Slice", "SpaceToDepth", "Split", "Tile")
"""What ONNX Runtime 1.32 has a kernel for UINT8 and INT8 for; it leaves the fewest of them between pairs."""


def move_integers(work: Work) -> None:
    """Lets the operators in graph order read integers; a QuantizeLinear of the same scale behind goes."""
    for node in list(work.graph.nodes):
        if node.op not in MOVES or node.domain or not is_dequantized(node.inputs[0]):
            continue
        decoder = node.inputs[0].inputs[0]
        if not _is_plain(decoder) or any(map(work.is_seen, node.outputs)) or not _is_quantized(node, decoder):
            continue
        if node.op == "Pad" and not _pad_with_level(work, node, decoder):
            continue
        _sink(work, node, decoder)
        work.report.edit(node.name, "moves integers")


def _is_plain(decoder: Node) -> bool:
    """Whether it has one scale and one zero-point, of UINT8 or INT8."""
    return decoder.inputs[0].dtype in (np.uint8, np.int8) and all(
        isinstance(tensor, Constant) and tensor.values.size == 1 for tensor in decoder.inputs[1:]
    )


def _is_quantized(node: Node, decoder: Node) -> bool:
    """Whether some reader makes the same integers of what the node moves."""
    return any(_is_inverse(reader, decoder) for output in node.outputs for reader in output.outputs)


def _is_inverse(reader: Node, decoder: Node) -> bool:
    if reader.op != "QuantizeLinear" or reader.domain:
        return False
    constants = all(isinstance(tensor, Constant) and tensor.values.size == 1 for tensor in reader.inputs[1:])
    return constants and _parameters(reader) == _parameters(decoder)


def _parameters(node: Node) -> tuple[float, int, np.dtype]:
    """Scale, zero-point and type of the integers of a Q or DQ per tensor."""
    if node.op == "QuantizeLinear":
        scale, written = scale_and_zero(node)
        return float(scale), int(written), np.dtype(written.dtype)
    zero = int(node.inputs[2].values.item()) if len(node.inputs) > 2 else 0
    return float(node.inputs[1].values.item()), zero, np.dtype(node.inputs[0].dtype)


def _pad_with_level(work: Work, node: Node, decoder: Node) -> bool:
    """Gives a Pad the integer that its value is quantized to. Returns whether its value is known."""
    if work.graph.opset < 11:
        return False
    if node.attrs.get("mode", "constant") != "constant":
        return True
    given = node.inputs[PAD_VALUE_INPUT] if len(node.inputs) > PAD_VALUE_INPUT else None
    value = 0.0
    if given is not None and not given.is_empty():
        if not isinstance(given, Constant) or given.values.size != 1:
            return False
        value = float(given.values.item())
    scale, zero, kind = _parameters(decoder)
    limits = np.iinfo(kind)
    level = np.clip(np.rint(np.float64(value) / scale) + zero, limits.min, limits.max).astype(kind)
    stored = work.constant(f"{node.name}_level", np.asarray(level))
    if given is None:
        node.inputs.append(stored)
    else:
        node.inputs[PAD_VALUE_INPUT] = stored
    return True


def _sink(work: Work, node: Node, decoder: Node) -> None:
    """Lets the node read the integers, and decodes what it writes."""
    codes = decoder.inputs[0]
    node.inputs[0] = codes
    for index, result in enumerate(list(node.outputs)):
        moved = Variable(work.name(f"{result.name}_moved"), codes.dtype, result.shape)
        node.outputs[index] = moved
        for reader in list(result.outputs):
            if _is_inverse(reader, decoder):
                _hand_over(reader, moved)
        if result.outputs:
            decode = Node(
                "DequantizeLinear", work.name(f"{result.name}_DQ"), {}, [moved, *decoder.inputs[1:]], [result]
            )
            work.graph.nodes.append(decode)


def _hand_over(quantize: Node, integers: Tensor) -> None:
    """Whoever read the integers of the QuantizeLinear reads these."""
    old = quantize.outputs[0]
    for reader in list(old.outputs):
        replace_input(reader, old, integers)
    disconnect(quantize)
