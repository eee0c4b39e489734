"""The ranges of activations that calibration chose, as a model holds them."""

import json
import math

from onnx_lathe import metadata
from onnx_lathe.optimizer.pairing import Network
from onnx_lathe.passes.graph import Constant, Node
from onnx_lathe.passes.graph.initializers import read
from onnx_lathe.passes.graph.model import node_metadata
from onnx_lathe.passes.graph.quantization.ranges import said_ranges

LEVELS = 127
"""Of INT8 with zero-point 0, per sign."""


def calibrated(side: Network) -> dict[str, list[float]]:
    """Tensor -> the range that calibration chose for it: `lathe.range` of its QuantizeLinear or of what makes it,
    or what the scale of its Q/DQ pair reaches.
    """
    found: dict[str, list[float]] = {}
    for node in side.graph.nodes:
        text = node_metadata(node).get(metadata.RANGE)
        if node.op == "QuantizeLinear" and not isinstance(node.inputs[0], Constant):
            limits = _range(text) or _reach(node)
            if limits:
                found[node.inputs[0].name] = limits
    for name, ends in said_ranges(side.graph).items():
        found.setdefault(name, list(ends))
    return found


def _range(text: str | None) -> list[float] | None:
    """The range that an entry of QuantizeLinear holds; None of what is not of that form."""
    try:
        value = json.loads(text or "[]")
    except ValueError:
        return None
    if isinstance(value, list) and len(value) == 2 and all(map(_is_number, value)):
        return [float(end) for end in value]
    return None


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _reach(node: Node) -> list[float] | None:
    scale = node.inputs[1]
    if not isinstance(scale, Constant) or math.prod(scale.shape) != 1:
        return None
    size = float(read(scale).reshape(-1)[0])
    zero = node.inputs[2] if len(node.inputs) > 2 else None
    if zero is not None and isinstance(zero, Constant) and str(zero.dtype) == "uint8":
        offset = int(read(zero).reshape(-1)[0])
        return [-offset * size, (255 - offset) * size]
    return [-LEVELS * size, LEVELS * size]
