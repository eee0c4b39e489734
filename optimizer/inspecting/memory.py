"""Which tensors take memory of their own while a model runs, and how many bytes.

A result counts once: an operator that looks at its input in another shape, or that works element by element on one which
nothing else reads, takes none of its own (a ReLU behind a convolution). Of a Q/DQ pair the integers count.
"""

import math
from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

from onnx_lathe.layout import LAYOUT
from onnx_lathe.optimizer.counting.scopes import Scope
from onnx_lathe.optimizer.inspect import CountedNode
from onnx_lathe.passes.graph.layers import UNFOLDED, is_constant
from onnx_lathe.runtime.files.tensors import bits_of

VIEWS = {*LAYOUT, "Dropout"} - {"Transpose"}
"""Their result is the input in another shape; Dropout, in a model that only runs, is the input."""
_IN_PLACE = """
    Abs Celu Clip Elu Erf Exp Floor Ceil Gelu HardSigmoid HardSwish LeakyRelu Log Mish Neg PRelu Reciprocal
    Relu Round Selu Shrink Sigmoid Sign Softplus Softsign Sqrt Swish Tanh ThresholdedRelu
"""
IN_PLACE = frozenset(_IN_PLACE.split())
SMALL = 64
"""Elements of a shape, or what is computed of one, at most."""


class Key(NamedTuple):
    """A tensor: the number of its scope, and its name there."""

    scope: int
    name: str


class Memory:
    """Of all nodes of a model; figures are of `samples` times what the shapes say."""

    def __init__(
        self, nodes: Sequence[CountedNode], main: Scope, fed: Sequence[str], samples: int = 1
    ) -> None:
        self._samples = samples
        self._scopes = {main.number: main} | {node.scope.number: node.scope for node in nodes}
        self.inputs = [Key(main.number, name) for name in fed]
        self.makers: dict[Key, CountedNode] = {}
        self.readers: dict[Key, list[CountedNode]] = defaultdict(list)
        self._defined = {
            Key(scope.number, value.name)
            for scope in self._scopes.values()
            for value in scope.graph.input
            if scope is not main
        } | {*self.inputs}
        self._ends = {
            Key(scope.number, value.name) for scope in self._scopes.values() for value in scope.graph.output
        }
        self.shares: dict[Key, Key] = {}
        self._bits: dict[Key, int] = {}
        self.of_shapes: set[Key] = set()
        for node in nodes:
            self._define(node)
        for node in nodes:
            for key in self.read_by(node):
                self.readers[key].append(node)
        for node in nodes:
            self._place(node)

    def _define(self, node: CountedNode) -> None:
        if node.node.outputs and is_constant(node.node.outputs[0], UNFOLDED):
            return
        body = any(attribute.HasField("g") for attribute in node.proto.attribute)
        read = self.read_by(node)
        if any(node.proto.input) and not read and not body:
            return  # computed of constants alone
        for name in filter(None, node.proto.output):
            key = Key(node.scope.number, name)
            self._defined.add(key)
            self.makers[key] = node
            if node.proto.op_type in ("Shape", "Size") or self._is_of_shapes(key, read, body):
                self.of_shapes.add(key)

    def _is_of_shapes(self, key: Key, read: Sequence[Key], body: bool) -> bool:
        elements = self.elements(key)
        small = elements is not None and elements <= SMALL * self._samples
        return small and bool(read) and not body and self.of_shapes.issuperset(read)

    def find(self, scope: Scope | None, name: str) -> Key | None:
        """The tensor that a node of the scope reads by this name; None for a constant."""
        while scope is not None:
            if (key := Key(scope.number, name)) in self._defined:
                return key
            scope = scope.outer
        return None

    def read_by(self, node: CountedNode) -> list[Key]:
        """The tensors that the node itself reads, constants left out."""
        found = [self.find(node.scope, name) for name in node.proto.input if name]
        return list(dict.fromkeys(key for key in found if key is not None))

    def made_by(self, node: CountedNode) -> list[Key]:
        keys = [Key(node.scope.number, name) for name in node.proto.output if name]
        return [key for key in keys if key in self.makers]

    def elements(self, key: Key) -> int | None:
        shape = self._scopes[key.scope].shapes.get(key.name)
        if shape is None or not all(isinstance(size, int) for size in shape):
            return None
        return self._samples * math.prod(size for size in shape if isinstance(size, int))

    def type(self, key: Key) -> int:
        """As a number of onnx.TensorProto; 0 if it is not known."""
        return self._scopes[key.scope].types.get(key.name, 0)

    def type_bits(self, key: Key) -> int | None:
        return bits_of(self.type(key))

    def own_bytes(self, key: Key) -> int | None:
        """Of the tensor as the model types it."""
        elements, bits = self.elements(key), self.type_bits(key)
        return None if elements is None or bits is None else -(-elements * bits // 8)

    def held_bytes(self, key: Key) -> int | None:
        """Of the memory that the tensor is in."""
        root = self.root(key)
        if root not in self._bits:
            return self.own_bytes(root)
        elements = self.elements(root)
        return None if elements is None else -(-elements * self._bits[root] // 8)

    def root(self, key: Key) -> Key:
        while key in self.shares:
            key = self.shares[key]
        return key

    def view_root(self, key: Key) -> Key:
        """The tensor that holds the same numbers, whatever its shape."""
        while key in self.shares and self.makers[key].proto.op_type in VIEWS:
            key = self.shares[key]
        return key

    def _place(self, node: CountedNode) -> None:
        op, made = node.proto.op_type, self.made_by(node)
        read = self.find(node.scope, node.proto.input[0]) if node.proto.input else None
        if read is None or not made:
            return
        quantizes = op == "QuantizeLinear"
        looks = op in VIEWS or op == "DequantizeLinear"
        if looks or ((op in IN_PLACE or quantizes) and self._is_last_use(read)):
            self.shares[made[0]] = read
        if quantizes and made[0] in self.shares and (bits := self.type_bits(made[0])):
            self._bits[self.root(read)] = bits

    def _is_last_use(self, key: Key | None) -> bool:
        """Whether nobody else reads the memory that the tensor is in."""
        while key is not None:
            if key not in self.makers or key in self._ends or len(self.readers[key]) != 1:
                return False
            key = self.shares.get(key)
        return True
