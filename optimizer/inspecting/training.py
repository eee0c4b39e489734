"""What one step of training holds in memory: activations that the backward pass reads, gradients, and what the optimizer
keeps for each weight.

Which activations each operator keeps is PyTorch's rule (tools/autograd/derivatives.yaml of PyTorch 2): a layer keeps its
input for the gradient of its weight, a ReLU its result, a sum nothing. What several operators keep is one tensor.
"""

from collections.abc import Callable, Iterable, Sequence

from onnx import TensorProto

from onnx_lathe.optimizer.counting.weights import Stored
from onnx_lathe.optimizer.inspect import CountedNode
from onnx_lathe.optimizer.inspecting.memory import IN_PLACE, VIEWS, Key, Memory
from onnx_lathe.optimizer.inspecting.rows import Training
from onnx_lathe.passes.graph.layers import is_constant

STATES = {"sgd": 0, "momentum": 1, "adam": 2}
"""Numbers that an optimizer keeps for each weight."""
WEIGHT_BYTES = 4
"""Weights, their gradients and states are float32, whatever they are stored as."""
INDEX_BYTES = 8
"""MaxPool keeps where each maximum was."""

KEEP_RESULT = frozenset(["Exp", "LogSoftmax", "Reciprocal", "Relu", "Sigmoid", "Softmax", "Sqrt", "Tanh"])
_KEEP_NOTHING = """
    Add Cast Ceil Concat ConstantOfShape DepthToSpace Expand Flatten Floor Gather GatherElements GatherND
    GlobalAveragePool Neg Pad ReduceMean ReduceSum Resize Round Shape Sign Size Slice SpaceToDepth Split Sub
    Sum Tile Transpose Upsample
"""
KEEP_NOTHING = VIEWS | frozenset(_KEEP_NOTHING.split())
KEEP_FACTORS = frozenset(["Conv", "ConvTranspose", "Div", "Einsum", "Gemm", "MatMul", "Mul"])
"""They keep each operand whose partner is a weight or has a gradient."""
_KEEP_INPUT = """
    AveragePool BatchNormalization GroupNormalization InstanceNormalization LayerNormalization Max MaxPool
    Min Pow
"""
KEEP_INPUT = IN_PLACE | frozenset(_KEEP_INPUT.split())


class Kept:
    """Bytes that are kept for the backward pass, by the tensors, and by MaxPool's nodes. `assumed`: operators for which
    no rule is known, whose inputs are counted.
    """

    def __init__(
        self,
        nodes: Sequence[CountedNode],
        memory: Memory,
        trains: "Callable[[CountedNode], object] | None" = None,
    ) -> None:
        """`trains`: which nodes have weights that are trained; unasked those that the file stores."""
        self._memory = memory
        self._trains = trains or trained
        self._tensors: dict[Key, None] = {}
        self._indices: dict[int, int | None] = {}
        self._index_of: dict[Key, int | None] = {}
        self.assumed: dict[str, None] = {}
        self.peak = 0
        """Bytes of the gradients of the largest inputs and results of one node."""
        self.unsized: list[tuple[str, str]] = []
        """(name, operator) of nodes whose inputs and results are not all in `peak`, since a size is open."""
        self._graded: set[Key] = set()
        for node in nodes:
            self._grade(node)
        for node in nodes:
            self._take(node)

    def bytes_of(self, node: CountedNode, made: Iterable[Key]) -> int | None:
        """What is kept of the tensors that the node makes; None if a size is open."""
        sizes = [self._memory.own_bytes(key) for key in made if key in self._tensors]
        sizes.append(self._indices.get(id(node), 0))
        known = [size for size in sizes if size is not None]
        return sum(known) if len(known) == len(sizes) else None

    def by_tensor(self, scope: int) -> dict[str, int]:
        """Bytes kept of each tensor of a scope, where its size is known."""
        sizes = {key.name: self._memory.own_bytes(key) for key in self._tensors if key.scope == scope}
        return {name: size for name, size in sizes.items() if size is not None}

    def indices(self, scope: int) -> dict[str, int]:
        """Result of a pooling -> bytes of where its maxima were."""
        return {
            key.name: size for key, size in self._index_of.items() if key.scope == scope and size is not None
        }

    def of_input(self, key: Key) -> int | None:
        return self._memory.own_bytes(key) if key in self._tensors else 0

    def _grade(self, node: CountedNode) -> None:
        """A result has a gradient if a weight or another such tensor is behind it."""
        reads = any(key in self._graded for key in self._memory.read_by(node))
        for key in self._memory.made_by(node):
            if (reads or self._trains(node)) and _is_float(self._memory, key):
                self._graded.add(key)

    def _take(self, node: CountedNode) -> None:
        op, memory = node.proto.op_type, self._memory
        made = [key for key in memory.made_by(node) if key in self._graded]
        if not made:
            return
        read = memory.read_by(node)
        ends = [key for key in (*read, *made) if key in self._graded]
        sizes = [memory.own_bytes(key) for key in ends]
        self.peak = max(self.peak, sum(size or 0 for size in sizes))
        if None in sizes:
            self.unsized.append((str(node.node.name), op))
        for key in self._kept_by(node, op, read, made):
            if _is_float(memory, key):
                self._tensors[memory.view_root(key)] = None
        if op == "MaxPool":
            elements = memory.elements(made[0])
            self._indices[id(node)] = None if elements is None else INDEX_BYTES * elements
            self._index_of[made[0]] = self._indices[id(node)]

    def _kept_by(self, node: CountedNode, op: str, read: list[Key], made: list[Key]) -> list[Key]:
        if op in KEEP_RESULT:
            return made
        if op in KEEP_NOTHING:
            return []
        if op in KEEP_FACTORS:
            return read if self._trains(node) else [key for key in read if self._has_partner(node, key)]
        if op not in KEEP_INPUT:
            self.assumed[op] = None
        return read

    def _has_partner(self, node: CountedNode, key: Key) -> bool:
        """Whether the operand is multiplied with one that has a gradient, itself included."""
        operands = [self._memory.find(node.scope, name) for name in node.proto.input]
        others = [other for other in operands if other != key] or operands[1:]
        return any(other in self._graded for other in others)


def _is_float(memory: Memory, key: Key) -> bool:
    return memory.type(key) in (
        TensorProto.FLOAT,
        TensorProto.FLOAT16,
        TensorProto.DOUBLE,
        TensorProto.BFLOAT16,
    )


def trained(node: CountedNode) -> list[Stored]:
    """What a training changes: Constant nodes stay."""
    return [one for one in node.weights if is_constant(one.tensor)]


def with_constants(memory: Memory) -> Callable[[CountedNode], bool]:
    """Which nodes have weights, be they stored or computed from constants, as in files that leave random weights out."""

    def trains(node: CountedNode) -> bool:
        inputs = [name for name in node.proto.input if name]
        return len(inputs) > len([name for name in inputs if memory.find(node.scope, name) is not None])

    return trains


def training_of(node: CountedNode, kept: int | None, optimizer: str) -> Training | None:
    """None if what is kept is not known."""
    if kept is None:
        return None
    count = sum(one.elements for one in trained(node))
    if node.proto.op_type == "BatchNormalization":
        count //= 2  # means and variances are no weights
    held = WEIGHT_BYTES * count
    return Training(WEIGHT_BYTES * node.row.parameters, kept, held, STATES[optimizer] * held)
