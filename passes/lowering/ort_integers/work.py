"""What the steps of the lowering share: the graph, its activation pairs, new names, and the report."""

from typing import Any, NamedTuple

import numpy as np
import onnx

from onnx_lathe.passes.core.report import PassReport
from onnx_lathe.passes.graph import Constant, Graph, Node, Tensor
from onnx_lathe.passes.graph.layers import is_constant
from onnx_lathe.passes.graph.model import taken_names, unused_name
from onnx_lathe.passes.graph.quantization.placement import Rows, hands_on, is_floor
from onnx_lathe.passes.graph.rewire import captured_names, is_output
from onnx_lathe.passes.graph.shapes import infer_types
from onnx_lathe.placement import Placement

PER_CHANNEL_OPSET = 13
"""The first whose DequantizeLinear has a scale per channel."""


class ActivationPair(NamedTuple):
    """An activation's QuantizeLinear and all DequantizeLinear nodes behind it."""

    quantize: Node
    dequantize: list[Node]

    @property
    def source(self) -> Tensor:
        return self.quantize.inputs[0]

    @property
    def nodes(self) -> list[Node]:
        return [self.quantize, *self.dequantize]


class Work:
    """A graph on its way to integer kernels, and the report of what was done to it."""

    def __init__(self, graph: Graph, placement: Placement) -> None:
        self.graph, self.placement = graph, placement
        self.report = PassReport()
        self.captured = captured_names(graph)
        self.taken = taken_names(graph)
        self.rows = Rows(graph)
        self._ranks: dict[str, int] | None = None

    def rank(self, tensor: Tensor) -> int:
        """Number of its axes; 0 if it is not known. A tensor keeps that while the graph changes."""
        if self._ranks is None:
            types = infer_types(self.graph).items()
            self._ranks = {name: len(found.shape) for name, found in types if found.shape is not None}
        return self._ranks.get(tensor.name, 0)

    def is_seen(self, tensor: Tensor) -> bool:
        return is_output(self.graph, tensor) or tensor.name in self.captured

    def pairs(self) -> list[ActivationPair]:
        """Pairs per tensor with constant parameters, of which others read no more than the result."""
        found = []
        for node in self.graph.nodes:
            if node.op != "QuantizeLinear" or node.domain or not node.outputs or is_constant(node.inputs[0]):
                continue
            pair = ActivationPair(node, list(node.outputs[0].outputs))
            known = all(
                isinstance(tensor, Constant) and tensor.values.size == 1
                for part in pair.nodes
                for tensor in part.inputs[1:]
            )
            alone = all(part.op == "DequantizeLinear" and not part.domain for part in pair.dequantize)
            if (
                known
                and alone
                and pair.dequantize
                and _gives_back(pair)
                and not self.is_seen(node.outputs[0])
            ):
                found.append(pair)
        return found

    def lands(self, tensor: Tensor) -> bool:
        """Whether every reader of the tensor quantizes it, behind nothing but what ONNX Runtime does on
        integers.
        """
        return (
            bool(tensor.outputs)
            and not self.is_seen(tensor)
            and all(self._lands_in(reader, tensor) for reader in tensor.outputs)
        )

    def _lands_in(self, reader: Node, tensor: Tensor) -> bool:
        if reader.op == "QuantizeLinear":
            return True
        through = is_floor(reader) or hands_on(reader, self.placement)
        return through and reader.inputs[0] is tensor and all(map(self.lands, reader.outputs))

    def constant(self, name: str, values: np.ndarray) -> Constant:
        return Constant(self.name(name), values)

    def name(self, wanted: str) -> str:
        name = unused_name(wanted, self.taken)
        self.taken.add(name)
        return name


def _gives_back(pair: ActivationPair) -> bool:
    """Whether the pair returns what it was given, as far as its steps allow."""
    scales = {float(node.inputs[1].values.item()) for node in pair.nodes}
    zeros = {int(node.inputs[2].values.item()) if len(node.inputs) > 2 else 0 for node in pair.nodes}
    return len(scales) == len(zeros) == 1


def scale_and_zero(node: Node) -> tuple[np.float32, np.integer[Any]]:
    """(scale, zero-point) of a Q per tensor."""
    scale = np.float32(node.inputs[1].values.item())
    if len(node.inputs) > 2:
        return scale, node.inputs[2].values.reshape(-1)[0]
    kind = onnx.helper.tensor_dtype_to_np_dtype(node.attrs.get("output_dtype", 0) or onnx.TensorProto.UINT8)
    return scale, kind.type(0)
