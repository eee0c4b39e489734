"""Which operands of which nodes are quantized: what int8 puts Q/DQ pairs in front of, for the targets of
the request.

Every quantized layer reads its input quantized. TensorRT wants no more than the other operand of a residual
addition (`joins`). A target whose kernels write integers (`results`, `operators`) wants every tensor
between two such kernels quantized, for all its readers: then what lies between two convolutions is integers
too, and a ReLU or a Clip at 0 is the lower end of the range.
"""

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from onnx_lathe import metadata
from onnx_lathe.passes.core.report import PassReport
from onnx_lathe.passes.graph import Constant, Graph, Node, Tensor, rewire
from onnx_lathe.passes.graph.gates import clip_range, split_hard_swish
from onnx_lathe.passes.graph.initializers import read
from onnx_lathe.passes.graph.layers import is_constant, is_layer
from onnx_lathe.passes.graph.model import node_metadata
from onnx_lathe.passes.graph.quantization import pairs
from onnx_lathe.passes.graph.shapes import TensorType, infer_types
from onnx_lathe.placement import Placement

Operand = tuple[Node, int]
"""An input of a node, by position."""

PAD_VALUE_INPUT = 2
WIDE = "it reads activations of 16 bits, with which this target computes no layer: it stays float"
QUANTIZERS = ("QuantizeLinear", "DequantizeLinear")


class Rows:
    """Which layers read one row of each sample. Shapes are inferred when the first one is asked for."""

    def __init__(self, graph: Graph) -> None:
        self._graph = graph
        self._types: Mapping[str, TensorType] | None = None

    def is_single(self, node: Node) -> bool:
        """Whether the node reads [1, ..., 1, inputs] when the network is given one sample; False if that is not
        known.
        """
        if self._types is None:
            self._types = infer_types(self._graph, one_sample=True)
        found = self._types.get(node.inputs[0].name)
        if found is None or not found.shape:
            return False
        return all(size == 1 for size in found.shape[:-1])


def float_reason(node: Node, weight_shape: Sequence[int], placement: Placement, rows: Rows) -> str | None:
    """Why no target of the request runs this layer in INT8. A layer that a user asked for (`lathe.int8`)
    may be depthwise.
    """
    if not placement.wide and pairs.is_wide(node.inputs[0]):
        return WIDE
    if node.op not in placement.layers and node.op in placement.single_rows:
        return None if rows.is_single(node) else f"{node.op} on several rows stays float"
    if node.op not in placement.layers:
        return (
            "a transposed convolution stays float" if node.op == "ConvTranspose" else f"{node.op} stays float"
        )
    if (
        is_depthwise(node, weight_shape)
        and not placement.depthwise
        and metadata.INT8 not in node_metadata(node)
    ):
        return "a depthwise convolution stays float"
    return None


def is_depthwise(node: Node, weight_shape: Sequence[int]) -> bool:
    return bool(node.op == "Conv" and node.attrs.get("group", 1) > 1 and weight_shape[1] == 1)


def split_gates(graph: Graph, placement: Placement, report: PassReport) -> None:
    """Splits HardSwish where a target computes its two parts on integers, and not the whole."""
    if not {"HardSigmoid", "Mul"} <= placement.operators or "HardSwish" in placement.operators:
        return
    for node in list(graph.nodes):
        if node.op == "HardSwish" and not node.domain:
            split_hard_swish(graph, node)
            report.edit(node.name, "HardSwish written as a product with a HardSigmoid")


def operands(graph: Graph, layers: Sequence[Node], placement: Placement) -> list[Operand]:
    """All that has to be quantized for `layers` to run in INT8, each once. Constants and what is quantized
    already are not among it.
    """
    found = [(node, 0) for node in layers]
    if placement.joins:
        found += residual_operands(graph, layers)
    if placement.operators or placement.results:
        found += Flow(graph, layers, placement).operands()
    wanted = {(id(node), index): (node, index) for node, index in found}
    return [(node, index) for node, index in wanted.values() if not pairs.is_dequantized(node.inputs[index])]


class Shared(NamedTuple):
    """A tensor that is handed on in parts, as to the steps of an unrolled recurrent cell. `chain`: what the
    operators between read; `parts`: what the kernels read. Quantized as a whole it is quantized once.
    """

    chain: list[Operand]
    parts: list[Tensor]


def shared_parts(graph: Graph, layers: Sequence[Node], placement: Placement) -> list[Shared]:
    """Tensors of which several kernels read parts, and nobody else reads anything."""
    if not (placement.operators or placement.results):
        return []
    return Flow(graph, layers, placement).shared()


class Flow:
    """The kernels that compute on integers, and the tensors that lie between them. `layers`: those that are
    to run in INT8.
    """

    def __init__(self, graph: Graph, layers: Sequence[Node], placement: Placement) -> None:
        self.placement = placement
        self.outputs = {id(tensor) for tensor in graph.outputs}
        self.captured = rewire.captured_names(graph)
        self.layers = list({id(node): node for node in [*layers, *quantized_layers(graph)]}.values())
        self.kernels = {id(node): node for node in self.layers}
        self._grow(
            [
                node
                for node in graph.nodes
                if node.op in placement.operators and not node.domain and self._can_join(node)
            ]
        )

    def operands(self) -> list[Operand]:
        """What has to be quantized besides the inputs of the layers."""
        found: list[Operand] = []
        for node in self.kernels.values():
            if node.op in self.placement.operators:
                found += [(node, index) for index in range(len(node.inputs))]
            if node.op in self.placement.operators or node.op in self.placement.results:
                result = self.result(node)
                if not self.is_seen(result):
                    found += [
                        (reader, i)
                        for reader in result.outputs
                        for i, t in enumerate(reader.inputs)
                        if t is result
                    ]
        for node in self.kernels.values():
            found += self._between(node)
        return [(node, index) for node, index in found if node.op != "QuantizeLinear"]

    def _between(self, node: Node) -> list[Operand]:
        """What operators that hand values on read, where several lie between two kernels: a target would
        quantize there itself.
        """
        chain = []
        for tensor in self._inputs(node):
            above = list(handing_on(tensor, self.placement))
            top = above[-1].inputs[0] if above else tensor
            if len(above) > 1 and self._source(top) in self.kernels and not self._are_seen(above):
                chain += above
        return [(one, 0) for one in chain]

    def shared(self) -> list[Shared]:
        """By the tensor that the parts are of."""
        found: dict[int, Shared] = {}
        for node in self.kernels.values():
            for part in self._inputs(node):
                above = list(handing_on(part, self.placement))
                if above and self._is_parted(above[-1].inputs[0]) and not self._are_seen(above):
                    one = found.setdefault(id(above[-1].inputs[0]), Shared([], []))
                    one.chain.extend((mover, 0) for mover in above)
                    one.parts.append(part)
        return list(found.values())

    def _inputs(self, node: Node) -> list[Tensor]:
        return list(node.inputs if node.op in self.placement.operators else node.inputs[:1])

    def _are_seen(self, nodes: Sequence[Node]) -> bool:
        return any(self.is_seen(output) for node in nodes for output in node.outputs)

    def _is_parted(self, tensor: Tensor) -> bool:
        """Whether several kernels read the tensor's values where they are quantized, and nobody else does: a
        Gemm's addend is none of them.
        """
        read = [(node, part) for node, part in self._readings(tensor) if node.op not in ("Shape", "Size")]
        return len(read) > 1 and all(
            id(node) in self.kernels
            and sum(one is part for one in node.inputs) == sum(one is part for one in self._inputs(node))
            for node, part in read
        )

    def result(self, node: Node) -> Tensor:
        """What the kernel writes: its output, or that of the ReLU behind it if nothing else reads the
        output.
        """
        tensor = node.outputs[0]
        while len(tensor.outputs) == 1 and not self.is_seen(tensor) and is_floor(tensor.outputs[0]):
            tensor = tensor.outputs[0].outputs[0]
        return tensor

    def is_seen(self, tensor: Tensor) -> bool:
        """Whether somebody reads the tensor by name, as float: a caller, or a body of If or Loop."""
        return id(tensor) in self.outputs or tensor.name in self.captured

    def _grow(self, candidates: list[Node]) -> None:
        """Adds the largest set of operators of which each lies between kernels."""
        self.kernels |= {id(node): node for node in candidates}
        while outside := [node for node in candidates if not self._is_between(node)]:
            for node in outside:
                del self.kernels[id(node)]
            candidates = [node for node in candidates if id(node) in self.kernels]

    def _can_join(self, node: Node) -> bool:
        return not any(
            tensor.is_empty() or is_constant(tensor) for tensor in node.inputs
        ) and not self.is_seen(self.result(node))

    def _is_between(self, node: Node) -> bool:
        """An addition may take one operand from elsewhere, such as the input of the network's first block."""
        come = [self._source(tensor) in self.kernels for tensor in node.inputs]
        goes = any(id(reader) in self.kernels for reader, _ in self._readings(node.outputs[0]))
        return goes and (any(come) if node.op == "Add" else all(come))

    def _source(self, tensor: Tensor) -> int:
        """Identity of the node whose values, unchanged but for place and floor, the tensor holds; 0 for an
        input of the network.
        """
        while tensor.inputs and self._is_transparent(tensor.inputs[0]):
            tensor = tensor.inputs[0].inputs[0]
        return id(tensor.inputs[0]) if tensor.inputs else 0

    def _readings(self, tensor: Tensor) -> Iterator[tuple[Node, Tensor]]:
        """Who reads the tensor's values, and in which tensor."""
        for node in tensor.outputs:
            if self._is_transparent(node) and node.inputs[0] is tensor:
                for output in node.outputs:
                    yield from self._readings(output)
            else:
                yield node, tensor

    def _is_transparent(self, node: Node) -> bool:
        return is_floor(node) or hands_on(node, self.placement) or (node.op in QUANTIZERS and not node.domain)


def quantized_layers(graph: Graph) -> list[Node]:
    """Layers that read input and weight from a DequantizeLinear."""
    return [
        node for node in graph.nodes if is_layer(node) and all(map(pairs.is_dequantized, node.inputs[:2]))
    ]


def hands_on(node: Node, placement: Placement) -> bool:
    """Whether the node's result holds values of its first input, or averages of neighbours, and no others."""
    return (
        node.op in placement.passed
        and not node.domain
        and bool(node.outputs)
        and bool(node.inputs)
        and not is_constant(node.inputs[0])
        and node.attrs.get("mode", "nearest") not in ("cubic", "wrap")
        and not _pads_with_others(node)
    )


def _pads_with_others(node: Node) -> bool:
    """Whether a Pad adds values that need not lie in the range of what it pads: another constant than 0."""
    if node.op != "Pad" or node.attrs.get("mode", "constant") != "constant":
        return False
    value = node.inputs[PAD_VALUE_INPUT] if len(node.inputs) > PAD_VALUE_INPUT else None
    if value is None or value.is_empty():
        return bool(node.attrs.get("value", 0.0))
    return not isinstance(value, Constant) or bool(np.any(read(value)))


def handing_on(tensor: Tensor, placement: Placement) -> Iterator[Node]:
    """The operators above the tensor that hand values on, from it upwards."""
    while tensor.inputs and hands_on(tensor.inputs[0], placement):
        yield tensor.inputs[0]
        tensor = tensor.inputs[0].inputs[0]


def is_floor(node: Node) -> bool:
    """Whether the node is a ReLU, or a Clip between constants around 0, or from 0 up: what a quantizer of
    its range does by itself.
    """
    if node.domain or node.op not in ("Relu", "Clip"):
        return False
    low, high = floor_range(node)
    return low == 0 or (low is not None and high is not None and low < 0 < high)


def floor_range(node: Node) -> tuple[float | None, float | None]:
    """(lowest, highest) value of a ReLU or Clip; None for an end that is computed at run time."""
    return (0.0, math.inf) if node.op == "Relu" else clip_range(node)


def residual_operands(graph: Graph, layers: Sequence[Node]) -> list[Operand]:
    """Additions of two activations of equal shape, one the result of a quantized convolution alone: the
    position of the other one.
    """
    convolutions = {id(node) for node in layers if node.op == "Conv"}
    found = []
    for node in graph.nodes:
        if node.op in ("Add", "Sum") and not node.domain and len(node.inputs) == 2:
            ends = [_is_result(graph, tensor, convolutions) for tensor in node.inputs]
            other = node.inputs[1 - ends.index(True)] if any(ends) else None
            if other is not None and not is_constant(other) and not pairs.is_dequantized(other):
                found.append((node, 1 - ends.index(True)))
    types = infer_types(graph) if found else {}
    return [
        (add, index)
        for add, index in found
        if _same_shape(types.get(add.inputs[0].name), types.get(add.inputs[1].name))
    ]


def _same_shape(first: TensorType | None, second: TensorType | None) -> bool:
    """Whether two tensors may have one shape, as far as inference knows: a dimension without a number
    equals any.
    """
    if first is None or second is None or first.shape is None or second.shape is None:
        return True
    sizes = zip(first.shape, second.shape, strict=False)
    return len(first.shape) == len(second.shape) and all(
        a == b or not (isinstance(a, int) and isinstance(b, int)) for a, b in sizes
    )


def _is_result(graph: Graph, tensor: Tensor, convolutions: Collection[int]) -> bool:
    """Whether the tensor is what one of the convolutions computes, batch normalization included, for one
    reader.
    """
    if len(tensor.outputs) != 1 or len(tensor.inputs) != 1 or rewire.is_output(graph, tensor):
        return False
    producer = tensor.inputs[0]
    if producer.op == "BatchNormalization":
        return _is_result(graph, producer.inputs[0], convolutions)
    return id(producer) in convolutions
