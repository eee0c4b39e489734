"""The form in which ONNX Runtime loads INT8 pairs from opset 21 on.

    DQ -> Reshape -> reader            DQ -> Reshape -> Q -> DQ -> reader, with one scale
    DQ -> MatMul -> Add(bias [N])      DQ -> MatMul -> Add(bias [1, N])

Behind an operator that moves values, ONNX Runtime writes such a pair by itself. From opset 21 on it then says
of the integers that they are INT8, and takes the zero-point for UINT8: the model does not load. It finds
nothing to write where a QuantizeLinear stands already; the numbers are the same, since what a pair holds is
rounded to itself. A MatMul whose input has another rank than two becomes such a Reshape and a Gemm, unless its
bias has two axes; as a MatMul it is computed on integers, too. What ONNX Runtime takes out first, such as an
Identity, is looked through. INT8 constants, other types and pairs without a zero-point load as they are.
Seen in ONNX Runtime 1.32 (QDQPropagationTransformer, MatMulAddFusion): tests/passes/test_pair_propagation.py
tries the operators.
"""

from collections.abc import Iterator

import numpy as np
import onnx

from onnx_lathe import metadata
from onnx_lathe.passes.graph import Constant, Graph, Node, Tensor, Variable
from onnx_lathe.passes.graph.initializers import read
from onnx_lathe.passes.graph.layers import is_constant
from onnx_lathe.passes.graph.model import node_metadata, taken_names, unused_name
from onnx_lathe.passes.graph.rewire import captured_names, is_output, replace_input
from onnx_lathe.passes.graph.shapes import TensorType, infer_types

LOWEST_OPSET = 21
"""The first opset whose QuantizeLinear has an `output_dtype`."""
MOVING = ("MaxPool", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze")


def keep_loadable(graph: Graph) -> None:
    """Brings every pair of INT8 activations into the form, at opset 21 and above."""
    decoders = [node for node in graph.nodes if _is_pair(node)] if graph.opset >= LOWEST_OPSET else []
    if decoders:
        work = _Work(graph)
        work.widen_biases([one for decoder in decoders for one in work.follow(decoder)])


def _is_pair(node: Node) -> bool:
    """Whether it decodes INT8 activations, by one scale and one zero-point that is stated."""
    return (
        node.op == "DequantizeLinear"
        and not node.domain
        and len(node.inputs) > 2
        and all(isinstance(tensor, Constant) and tensor.values.size == 1 for tensor in node.inputs[1:])
        and node.inputs[2].dtype == np.int8
        and not is_constant(node.inputs[0])
    )


class _Work:
    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.taken = taken_names(graph)
        self.captured = captured_names(graph)

    def follow(self, decoder: Node) -> list[Node]:
        """Writes pairs behind what moves the decoded values, as far as they are moved. Returns the decoders of
        these values: `decoder`, and those written.
        """
        found, kind = [decoder], decoder.inputs[1].dtype
        for tensor in list(self._same(decoder.outputs[0], kind)):
            for node in list(tensor.outputs):
                if (
                    node.op in MOVING
                    and not node.domain
                    and node.inputs[0] is tensor
                    and self._is_read(node.outputs[0], kind)
                ):
                    found += self.follow(self._pair(node, decoder))
        return found

    def _same(self, tensor: Tensor, kind: np.dtype) -> Iterator[Tensor]:
        """The tensor of type `kind`, and what equals it behind operators that ONNX Runtime takes out."""
        yield tensor
        for node in tensor.outputs:
            if self._is_taken_out(node, kind) and node.inputs[0] is tensor:
                yield from self._same(node.outputs[0], kind)

    def _is_taken_out(self, node: Node, kind: np.dtype) -> bool:
        if node.domain:
            return False
        if node.op == "Cast":
            return onnx.helper.tensor_dtype_to_np_dtype(node.attrs["to"]) == kind
        if node.op == "Dropout":
            training = node.inputs[2:]
            return not any(mask.outputs or self._is_seen(mask) for mask in node.outputs[1:]) and all(
                flag.is_empty() or (isinstance(flag, Constant) and not np.any(read(flag)))
                for flag in training
            )
        return node.op == "Identity"

    def _readers(self, tensor: Tensor, kind: np.dtype) -> list[Node]:
        """Who reads the tensor once ONNX Runtime has taken out what it does."""
        return [
            node
            for same in self._same(tensor, kind)
            for node in same.outputs
            if not (self._is_taken_out(node, kind) and node.inputs[0] is same)
        ]

    def _is_read(self, tensor: Tensor, kind: np.dtype) -> bool:
        """Whether anybody reads the tensor unquantized."""
        return any(node.op != "QuantizeLinear" for node in self._readers(tensor, kind)) or any(
            self._is_seen(same) for same in self._same(tensor, kind)
        )

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
        additions = [found for decoder in decoders for found in self._additions(decoder)]
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

    def _additions(self, decoder: Node) -> Iterator[tuple[Node, Node, Tensor]]:
        """MatMuls of the decoded values, each with the addition that alone reads its result, and what is
        added.
        """
        kind = decoder.inputs[1].dtype
        for tensor in self._same(decoder.outputs[0], kind):
            for matmul in tensor.outputs:
                if matmul.op != "MatMul" or matmul.domain or matmul.inputs[0] is not tensor:
                    continue
                readers = self._readers(matmul.outputs[0], kind)
                if len(readers) == 1 and readers[0].op == "Add":
                    product = {id(same) for same in self._same(matmul.outputs[0], kind)}
                    for other in [added for added in readers[0].inputs if id(added) not in product]:
                        yield matmul, readers[0], other

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
