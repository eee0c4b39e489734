"""The form in which ONNX Runtime loads INT8 pairs from opset 21 on.

    DQ -> Reshape -> reader            DQ -> Reshape -> Q -> DQ -> reader, with one scale
    DQ -> MatMul -> Add(bias [N])      DQ -> MatMul -> Add(bias [1, N])

Behind an operator that moves values, ONNX Runtime writes such a pair by itself. From opset 21 on it then says
of the integers that they are INT8, and takes the zero-point for UINT8: the model does not load. It finds
nothing to write where a QuantizeLinear stands already; the numbers are the same, since what a pair holds is
rounded to itself. A MatMul whose input has another rank than two becomes such a Reshape and a Gemm, unless its
bias has two axes; as a MatMul it is computed on integers, too.
Seen in ONNX Runtime 1.32 (QDQPropagationTransformer, MatMulAddFusion): tests/passes/test_pair_propagation.py
tries the operators.
"""

from collections.abc import Iterator

import numpy as np

from onnx_lathe import metadata
from onnx_lathe.passes.graph import Constant, Graph, Node, Tensor, Variable
from onnx_lathe.passes.graph.initializers import read
from onnx_lathe.passes.graph.model import node_metadata, taken_names, unused_name
from onnx_lathe.passes.graph.rewire import captured_names, is_output, replace_input
from onnx_lathe.passes.graph.shapes import TensorType, infer_types

LOWEST_OPSET = 21
"""The first opset whose QuantizeLinear has an `output_dtype`."""
MOVING = ("MaxPool", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze")


def keep_loadable(graph: Graph) -> None:
    """Brings every pair whose integers are not UINT8 into the form, at opset 21 and above."""
    decoders = [node for node in graph.nodes if _is_pair(node)] if graph.opset >= LOWEST_OPSET else []
    if decoders:
        work = _Work(graph)
        for decoder in decoders:
            work.follow(decoder)
        work.widen_biases(decoders)


def _is_pair(node: Node) -> bool:
    """Whether it decodes integers of another type than UINT8, by one scale and one zero-point that is stated."""
    return (
        node.op == "DequantizeLinear"
        and not node.domain
        and len(node.inputs) > 2
        and all(isinstance(tensor, Constant) and tensor.values.size == 1 for tensor in node.inputs[1:])
        and node.inputs[2].dtype != np.uint8
    )


class _Work:
    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.taken = taken_names(graph)
        self.captured = captured_names(graph)

    def follow(self, decoder: Node) -> None:
        """Writes pairs behind what moves the decoded values, as far as they are moved."""
        for node in list(decoder.outputs[0].outputs):
            if node.op in MOVING and not node.domain and node.inputs[0] is decoder.outputs[0]:
                readers = node.outputs[0].outputs
                if self._is_seen(node.outputs[0]) or any(reader.op != "QuantizeLinear" for reader in readers):
                    self.follow(self._pair(node, decoder))

    def _pair(self, node: Node, decoder: Node) -> Node:
        """The DequantizeLinear of a pair behind `node`, with the parameters of `decoder`. A layer's pair of the
        same scale is not shared: ONNX Runtime would compute the layer in float.
        """
        moved = node.outputs[0]
        source = Variable(self._name(f"{moved.name}_moved"), moved.dtype, moved.shape)
        kind = decoder.inputs[2].dtype
        codes = Variable(self._name(f"{moved.name}_{kind}"), kind, moved.shape)
        node.outputs[0] = source
        for reader in [reader for reader in moved.outputs if reader.op == "QuantizeLinear"]:
            replace_input(reader, moved, source)
        quantize = self._node("QuantizeLinear", moved, [source, *decoder.inputs[1:]], codes)
        if decoder.inputs[0].inputs and (said := node_metadata(decoder.inputs[0].inputs[0])):
            node_metadata(quantize).update({key: said[key] for key in (metadata.RANGE,) if key in said})
        return self._node("DequantizeLinear", moved, [codes, *decoder.inputs[1:]], moved)

    def widen_biases(self, decoders: list[Node]) -> None:
        """Adds an axis to what is added behind a MatMul that ONNX Runtime would make a Gemm with a Reshape of."""
        additions = [found for decoder in decoders for found in _additions(decoder)]
        types = infer_types(self.graph) if additions else {}
        wanted = [
            (add, bias, rank)
            for matmul, add, bias in additions
            if not is_output(self.graph, matmul.outputs[0])
            and (rank := _rank(types, matmul, bias)) not in (None, 2)
        ]
        changed = {id(add) for add, _, rank in wanted if rank != 1}
        rows: dict[int, Tensor] = {}
        for add, bias, rank in wanted:
            if rank == 1:  # a second axis would be one of the result
                add.op = "Sum"
                continue
            if id(bias) not in rows:
                rows[id(bias)] = self._row(bias, changed)
            replace_input(add, bias, rows[id(bias)])

    def _row(self, bias: Tensor, changed: set[int]) -> Tensor:
        """The bias as [1, N], under its name if nobody but the additions `changed`, by identity, reads it."""
        if isinstance(bias, Constant):
            free = not self._is_seen(bias) and all(id(reader) in changed for reader in bias.outputs)
            name = bias.name if free else self._name(f"{bias.name}_row")
            return Constant(name, read(bias).reshape(1, -1))
        row = Variable(self._name(f"{bias.name}_row"), bias.dtype)
        axes = Constant(self._name(f"{bias.name}_axes"), np.zeros(1, np.int64))
        self._node("Unsqueeze", bias, [bias, axes], row)
        return row

    def _is_seen(self, tensor: Tensor) -> bool:
        return is_output(self.graph, tensor) or tensor.name in self.captured

    def _node(self, op: str, near: Tensor, inputs: list[Tensor], output: Tensor) -> Node:
        node = Node(op, self._name(f"{near.name}_{op}"), {}, inputs, [output])
        self.graph.nodes.append(node)
        return node

    def _name(self, wanted: str) -> str:
        name = unused_name(wanted, self.taken)
        self.taken.add(name)
        return name


def _additions(decoder: Node) -> Iterator[tuple[Node, Node, Tensor]]:
    """MatMuls of the decoded values, each with the addition that alone reads its result, and what is added."""
    for matmul in decoder.outputs[0].outputs:
        readers = matmul.outputs[0].outputs if matmul.op == "MatMul" and not matmul.domain else []
        if len(readers) == 1 and readers[0].op == "Add" and matmul.inputs[0] is decoder.outputs[0]:
            other = [tensor for tensor in readers[0].inputs if tensor is not matmul.outputs[0]]
            if other:
                yield matmul, readers[0], other[0]


def _rank(types: dict[str, TensorType], matmul: Node, bias: Tensor) -> int | None:
    """The rank of what the MatMul reads; None where it becomes no Gemm: its sizes are open, or it has no
    vector added.
    """
    shapes = [
        known.shape
        for tensor in (*matmul.inputs, bias)
        if (known := types.get(tensor.name)) is not None and known.shape is not None
    ]
    if len(shapes) < 3 or len(shapes[1]) != 2 or len(shapes[2]) != 1:
        return None
    return None if any(isinstance(size, str) for size in shapes[0]) else len(shapes[0])
