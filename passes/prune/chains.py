"""Which layer alone reads what another one writes, channel by channel: where a channel can be taken out of
both.

    Conv | Gemm | MatMul -> (activation | pooling | constants | flattening)* -> Conv | Gemm | MatMul     with one reader at every step

A channel that is 0 in front of such a step is finite behind it; so if all weights that read it are zero,
nothing of it reaches the output.
"""

import math
from collections.abc import Collection
from dataclasses import dataclass, replace

import numpy as np

from onnx_lathe.passes.graph import Constant, Graph, Node, Tensor
from onnx_lathe.passes.graph.layers import WEIGHT_INPUT, is_layer, output_axis
from onnx_lathe.passes.graph.rewire import captured_names, is_output
from onnx_lathe.passes.graph.shapes import TensorType, infer_types
from onnx_lathe.passes.numerics.sparsity.hidden_units import Link

BIAS_INPUT = 2
_ELEMENTWISE = frozenset(
    (
        *(
            "Abs",
            "Celu",
            "Clip",
            "Dropout",
            "Elu",
            "Erf",
            "Gelu",
            "HardSigmoid",
            "HardSwish",
            "Identity",
            "LeakyRelu",
            "Mish",
            "Neg",
        ),
        *("PRelu", "Relu", "Selu", "Sigmoid", "Softplus", "Softsign", "Tanh", "ThresholdedRelu"),
    )
)
"""Element by element on the first input, and finite at 0. Other inputs are constants."""

_WITH_CONSTANT = frozenset(("Add", "Mul", "Sub"))
_SPATIAL = frozenset(("AveragePool", "BatchNormalization", "GlobalAveragePool", "GlobalMaxPool", "MaxPool"))
"""On each channel of axis 1 alone."""


@dataclass(frozen=True)
class _Place:
    """Where the channels of a tensor are: on axis 1, on the last axis, or both; `rank` is None where it is
    not known.
    """

    axis_1: bool
    last: bool
    rank: int | None


@dataclass
class _Search:
    graph: Graph
    captured: Collection[str]
    types: dict[str, TensorType] | None = None
    """Inferred when first asked for: it takes a copy of the model."""

    def link(self, first: Node) -> Link | None:
        if not all(isinstance(source, Constant) or source.is_empty() for source in first.inputs[BIAS_INPUT:]):
            return None  # more than the weight writes the units
        node, place = first, _written(first)
        while place is not None:
            tensor = self.single_reader(node)
            if tensor is None:
                return None
            reader = tensor.outputs[0]
            if is_layer(reader):
                return self.joined(first, reader, tensor, place)
            node, place = reader, self.behind(reader, tensor, place)
        return None

    def single_reader(self, node: Node) -> Tensor | None:
        """The node's only output that is read, if it is read once, by a node of this graph."""
        tensor = node.outputs[0]
        seen = is_output(self.graph, tensor) or tensor.name in self.captured
        extra = any(other.outputs or is_output(self.graph, other) for other in node.outputs[1:])
        return None if seen or extra or len(tensor.outputs) != 1 else tensor

    def behind(self, node: Node, tensor: Tensor, place: _Place) -> _Place | None:
        """Where the channels are behind a node; None where they are no longer apart."""
        others = [source for source in node.inputs if source is not tensor and not source.is_empty()]
        once = sum(source is tensor for source in node.inputs) == 1
        if node.domain or not once or not all(isinstance(source, Constant) for source in others):
            return None
        if node.op in _WITH_CONSTANT:
            rank = len(others[0].shape) if others else 0
            return place if place.rank is None or rank <= place.rank else None
        if node.inputs[0] is not tensor:
            return None
        if node.op in _ELEMENTWISE:
            return place
        if not place.axis_1:
            return None
        if node.op in _SPATIAL:
            return None if node.attrs.get("training_mode", 0) else place
        flat = _Place(True, True, 2)
        if node.op == "Flatten":
            return flat if node.attrs.get("axis", 1) == 1 else None
        if node.op == "Reshape":
            return flat if self.flattens(node, tensor) else None
        return self.reduced(node, others, place) if node.op in ("ReduceMean", "Squeeze") else None

    def flattens(self, node: Node, tensor: Tensor) -> bool:
        """Whether a Reshape keeps axis 0 and joins all others."""
        shape = [int(size) for size in node.inputs[1].values.reshape(-1)]
        if len(shape) != 2:
            return False
        if shape[0] == 0 and not node.attrs.get("allowzero", 0):
            return True
        if self.types is None:
            self.types = infer_types(self.graph)
        known = self.types.get(tensor.name)
        if known is None or known.shape is None:
            return False
        batch, *rest = known.shape
        sizes = [size for size in rest if isinstance(size, int)]
        return len(sizes) == len(rest) and (
            shape[1] == math.prod(sizes) or (shape[1] == -1 and shape[0] == batch)
        )

    def reduced(self, node: Node, others: list[Constant], place: _Place) -> _Place | None:
        """Behind a mean over axes, or without them; none of which may be the channels' or the samples'."""
        axes = others[0].values.reshape(-1).tolist() if others else node.attrs.get("axes", [])
        if place.rank is None or not axes or any(axis % place.rank < 2 for axis in axes):
            return None
        if node.op == "ReduceMean" and node.attrs.get("keepdims", 1):
            return place
        rank = place.rank - len(axes)
        return replace(place, last=rank == 2, rank=rank)

    def joined(self, first: Node, second: Node, tensor: Tensor, place: _Place) -> Link | None:
        weight, reading = first.inputs[WEIGHT_INPUT], second.inputs[WEIGHT_INPUT]
        if not isinstance(reading, Constant) or not self.alone(reading) or reading.dtype != np.float32:
            return None
        if sum(source is tensor for source in second.inputs) > 1 or second.inputs[0] is not tensor:
            return None
        convolves = second.op in ("Conv", "ConvTranspose")
        if (
            not (place.axis_1 if convolves else place.last)
            or (second.op == "MatMul" and len(reading.shape) != 2)
            or second.attrs.get("transA", 0)
        ):
            return None
        axis = 1 if second.op == "Conv" or second.attrs.get("transB", 0) else 0
        groups = int(second.attrs.get("group", 1)) if second.op == "Conv" else 1
        output = output_axis(first, len(weight.shape))
        units, inputs = int(weight.shape[output]), int(reading.shape[axis]) * groups
        if inputs % units or (convolves and inputs != units):
            return None
        return Link(
            weight.name, reading.name, self.bias(first, units), units, output, axis, inputs // units, groups
        )

    def bias(self, node: Node, units: int) -> str | None:
        if len(node.inputs) <= BIAS_INPUT or not isinstance(node.inputs[BIAS_INPUT], Constant):
            return None
        bias = node.inputs[BIAS_INPUT]
        if not self.alone(bias) or bias.dtype != np.float32:
            return None
        return str(bias.name) if math.prod(bias.shape) == bias.shape[-1] == units else None

    def alone(self, stored: Constant) -> bool:
        """Whether one node reads it and nobody else."""
        return (
            len(stored.outputs) == 1
            and not is_output(self.graph, stored)
            and stored.name not in self.captured
        )


def find_links(graph: Graph, names: Collection[str]) -> list[Link]:
    """Every link whose first weight is among `names`, in graph order."""
    search = _Search(graph, captured_names(graph))
    layers = [node for node in graph.nodes if is_layer(node) and node.inputs[WEIGHT_INPUT].name in names]
    found = (search.link(node) for node in layers if len(node.inputs[WEIGHT_INPUT].outputs) == 1)
    return [link for link in found if link is not None]


def _written(layer: Node) -> _Place | None:
    """Where a layer writes its channels."""
    rank = len(layer.inputs[WEIGHT_INPUT].shape)
    if layer.op == "MatMul":
        return _Place(False, True, None) if rank == 2 else None
    if layer.op == "ConvTranspose" and layer.attrs.get("group", 1) != 1:
        return None
    return _Place(True, layer.op == "Gemm", rank)
