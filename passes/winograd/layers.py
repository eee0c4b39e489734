"""Convolutions that have a choice of algorithm: 3 x 3, stride 1, dilation 1, one group, with a stored weight."""

from collections.abc import Iterator, Mapping
from typing import NamedTuple

import numpy as np

from onnx_lathe.kernels import Profile
from onnx_lathe.macs import OpenShape
from onnx_lathe.passes.core.report import PassReport
from onnx_lathe.passes.graph import Graph, Node
from onnx_lathe.passes.graph.layers import WEIGHT_INPUT, constant_value, is_constant
from onnx_lathe.passes.graph.quantization.pairs import is_dequantized
from onnx_lathe.passes.numerics import winograd as numerics
from onnx_lathe.tiles import TAPS


class Layer(NamedTuple):
    """An eligible convolution: weight [outputs, inputs, 3, 3], its result's batch, height and width, and whether its
    input and weight are quantized.
    """

    node: Node
    weight: np.ndarray
    batch: int
    height: int
    width: int
    int8: bool = False

    @property
    def name(self) -> str:
        return str(self.node.name)

    def able(self, profile: Profile) -> tuple[int, ...]:
        """What a processor's runtime can be made to take, its own choice first, as m."""
        outputs, inputs = self.weight.shape[:2]
        return profile.able(inputs, outputs, self.height, self.width, self.int8)

    def tiles(self, m: int) -> int:
        return self.batch * -(-self.height // m) * -(-self.width // m)

    def products(self, m: int) -> int:
        size = (self.height, self.width)
        return numerics.tiled_products(m, TAPS, self.weight.shape[:2], self.batch, size)


def eligible(graph: Graph, shapes: Mapping[str, OpenShape], report: PassReport) -> Iterator[Layer]:
    """The layers in graph order; why a Conv is none of them goes into the report."""
    for node in graph.nodes:
        if node.op != "Conv" or node.domain:
            continue
        weight = node.inputs[WEIGHT_INPUT]
        shape = shapes.get(node.outputs[0].name, ())
        if not is_constant(weight):
            report.skip(node.name, "its weight is computed at run time")
        elif reason := not_eligible(node, constant_value(weight, graph.opset).shape):
            report.skip(node.name, reason)
        elif len(shape) != 4 or not all(isinstance(size, int) for size in shape[2:]):
            report.skip(node.name, "the size of its result is not known before the model runs")
        else:
            values = constant_value(weight, graph.opset).astype(np.float32)
            batch = shape[0] if isinstance(shape[0], int) else 1
            int8 = is_dequantized(node.inputs[0]) and is_dequantized(weight)
            yield Layer(node, values, batch, int(shape[2]), int(shape[3]), int8)


def not_eligible(node: Node, shape: tuple[int, ...]) -> str | None:
    """Why a Conv whose weight has this shape has no choice."""
    if shape[2:] != (TAPS, TAPS):
        return f"its kernel is {' x '.join(map(str, shape[2:]))}, not 3 x 3"
    for name in ("strides", "dilations"):
        if any(step != 1 for step in node.attrs.get(name, (1,))):
            return f"its {name} are {list(node.attrs[name])}"
    return "it has groups" if node.attrs.get("group", 1) != 1 else None


def pads(node: Node, size: tuple[int, ...]) -> list[tuple[int, int]]:
    if node.attrs.get("auto_pad", "NOTSET") in ("SAME_UPPER", "SAME_LOWER"):
        return [(1, 1)] * len(size)
    pads = node.attrs.get("pads", [0] * 4) if node.attrs.get("auto_pad") != "VALID" else [0] * 4
    return [(pads[0], pads[2]), (pads[1], pads[3])]
