"""The graph while its layout is chosen and written: shapes, names, and constants of other storages."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx

from onnx_lathe.passes.core.report import PassReport
from onnx_lathe.passes.graph import Constant, Graph, Node, Tensor, Variable
from onnx_lathe.passes.graph.constants import value
from onnx_lathe.passes.graph.initializers import read
from onnx_lathe.passes.graph.layers import constant_value, is_constant
from onnx_lathe.passes.graph.model import taken_names, unused_name
from onnx_lathe.passes.graph.rewire import captured_names
from onnx_lathe.passes.graph.shapes import TensorType
from onnx_lathe.passes.lowering.litert_layout.sizes import infer, invented
from onnx_lathe.passes.lowering.litert_layout.storage import Size, Storage

UNKNOWN_SIZE = 32
"""What a dimension of unknown size, other than the batch, counts as when bytes are compared."""


@dataclass
class Work:
    graph: Graph
    report: PassReport = field(default_factory=PassReport)

    def __post_init__(self) -> None:
        self.graph.toposort()
        self.taken = taken_names(self.graph)
        self.captured = captured_names(self.graph)
        self.invented: set[Size] = set()
        """Names of sizes that are open in the file."""
        self.types = infer(self.graph)
        self.invented.update(
            invented(tensor.name, axis)
            for tensor in self.graph.inputs
            for axis in range(len(tensor.shape or ()))
        )
        self._stored: dict[tuple[int, Storage], Tensor] = {}
        self.sizes: dict[int, tuple[Size, ...]] = {}
        """By id of a tensor of the new graph the shape that is stored."""
        self.stored: Callable[[Tensor, Storage], Tensor] = lambda tensor, storage: tensor
        """What holds a tensor of the original graph in a storage; the writer knows."""

    @property
    def opset(self) -> int:
        return int(self.graph.opset)

    def type_of(self, tensor: Tensor) -> TensorType | None:
        return self.types.get(tensor.name)

    def shape(self, tensor: Tensor) -> tuple[Size, ...] | None:
        """The shape in the original graph; None if its rank is unknown. Unknown sizes that nothing names get the name
        of tensor and axis.
        """
        if isinstance(tensor, Constant):
            return tuple(tensor.shape)
        known = self.types.get(tensor.name)
        if known is None or known.shape is None:
            return None
        return tuple(
            self._invent(tensor, axis) if size is None else size for axis, size in enumerate(known.shape)
        )

    def _invent(self, tensor: Tensor, axis: int) -> str:
        name = invented(tensor.name, axis)
        self.invented.add(name)
        return name

    def rank(self, tensor: Tensor) -> int | None:
        shape = self.shape(tensor)
        return None if shape is None else len(shape)

    def size_bytes(self, tensor: Tensor) -> int:
        """Of the whole tensor, with a batch of 1, and a guess for what else is unknown."""
        known = self.types.get(tensor.name)
        if known is None or known.shape is None:
            return UNKNOWN_SIZE**3
        itemsize = 8 if known.element == onnx.TensorProto.STRING else _itemsize(known.element)
        sizes = [
            size if isinstance(size, int) else UNKNOWN_SIZE if axis else 1
            for axis, size in enumerate(known.shape)
        ]
        return math.prod(sizes) * itemsize

    def name(self, wanted: str) -> str:
        found = unused_name(wanted, self.taken)
        self.taken.add(found)
        return found

    def variable(self, wanted: str, like: Tensor, sizes: Sequence[Size] | None) -> Variable:
        """A new tensor of the element type of another."""
        made = Variable(self.name(wanted), like.dtype)
        if sizes is not None:
            self.set_sizes(made, sizes)
        return made

    def set_sizes(self, tensor: Tensor, sizes: Sequence[Size]) -> None:
        """The shape that is stored. Sizes that have a name only here are open in the file."""
        self.sizes[id(tensor)] = tuple(sizes)
        tensor.shape = [None if one in self.invented else one for one in sizes]

    def node(
        self, op: str, wanted: str, inputs: Sequence[Tensor], outputs: Sequence[Tensor], **attrs: Any
    ) -> Node:
        """A new node of the graph."""
        node = Node(op, self.name(wanted), attrs, list(inputs), list(outputs))
        self.graph.nodes.append(node)
        return node

    def constant(self, wanted: str, values: np.ndarray) -> Constant:
        return Constant(self.name(wanted), values)

    def integers(self, wanted: str, values: Sequence[int]) -> Constant:
        return self.constant(wanted, np.array(values, np.int64))

    def stored_constant(self, tensor: Tensor, storage: Storage) -> Tensor:
        """A constant operand that is broadcast against tensors of this storage; each only once."""
        key = (id(tensor), storage)
        if key not in self._stored:
            self._stored[key] = self._store(tensor, storage)
        return self._stored[key]

    def _store(self, tensor: Tensor, storage: Storage) -> Tensor:
        if isinstance(tensor, Constant):
            values = read(tensor)
            if values.size == 1 and values.ndim < 2:
                return tensor
            return self.constant(f"{tensor.name}_nhwc", storage.array(values))
        node = tensor.inputs[0]
        if node.op == "DequantizeLinear" and not storage.flat and self._is_plain_decoder(node):
            codes = storage.array(read(node.inputs[0]))
            lacking = storage.rank - len(node.inputs[0].shape)
            attrs = dict(node.attrs)
            if node.inputs[1].values.size > 1:
                axis = attrs.get("axis", 1) % len(node.inputs[0].shape) + lacking
                attrs["axis"] = storage.axis(axis) - (storage.rank - codes.ndim)
            made = self.variable(f"{tensor.name}_nhwc", tensor, codes.shape)
            stored = self.constant(f"{node.inputs[0].name}_nhwc", codes)
            self.node(node.op, f"{node.name}_nhwc", [stored, *node.inputs[1:]], [made], **attrs)
            return made
        return self.constant(f"{tensor.name}_nhwc", storage.array(constant_value(tensor, self.opset)))

    def _is_plain_decoder(self, node: Node) -> bool:
        return all(isinstance(one, Constant) for one in node.inputs) and not node.attrs.get("block_size", 0)

    def gathered(self, vector: Tensor, places: Sequence[int]) -> Tensor:
        """The vector with its elements in this order: a constant, or computed by a Gather."""
        known = value(vector)
        if known is not None:
            return self.constant(f"{vector.name}_nhwc", np.asarray(known)[list(places)])
        made = self.variable(f"{vector.name}_nhwc", vector, [len(places)])
        indices = self.integers(f"{vector.name}_order", places)
        self.node("Gather", f"{vector.name}_Gather", [vector, indices], [made], axis=0)
        return made

    def is_operand(self, tensor: Tensor) -> bool:
        """Whether the tensor is constant and can be stored in another order now."""
        return is_constant(tensor)


def _itemsize(element: int) -> int:
    return int(onnx.helper.tensor_dtype_to_np_dtype(element).itemsize)
