"""Which initializers are trained: decided by how they are used, never by their names.

| operator | trained inputs | condition |
|---|---|---|
| Conv, ConvTranspose | weight, bias | |
| Gemm, MatMul | every constant operand | |
| BatchNormalization, InstanceNormalization, GroupNormalization, LayerNormalization, RMSNormalization | scale, bias | not mean, variance |
| PRelu | slope | |
| Add | a bias: rank >= 1, at most one dimension > 1 | added to an activation, not to the model's input (that is normalization) |
| Mul | a factor: exactly one dimension > 1 | the same |
| Gather | table | indices are computed from the model's input (an embedding) |
| Gather with constant indices (a codebook) | table | as what its result is used for |
| QuantizeLinear, DequantizeLinear, and what moves values (Reshape, Concat, Slice, ...) | data | as what their result is used for |
| Add, Mul of two constants | both | as what their result is used for |
| Shape, Size, the model of CastLike | - | does not matter |

Any other use (a scale or zero-point, a bound, a padding value, an exponent, operands of Sub and Div) keeps the initializer as it is, even
if it is also used in a trained role. Only floats are trained.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence

import onnx

from runtime.torch_bridge.arrays import FLOATS

_WEIGHT_AND_BIAS = frozenset((1, 2))
_TRAINED: Mapping[str, frozenset[int]] = {
    "Conv": _WEIGHT_AND_BIAS,
    "ConvTranspose": _WEIGHT_AND_BIAS,
    "Gemm": frozenset((0, 1, 2)),
    "MatMul": frozenset((0, 1)),
    "BatchNormalization": _WEIGHT_AND_BIAS,
    "InstanceNormalization": _WEIGHT_AND_BIAS,
    "GroupNormalization": _WEIGHT_AND_BIAS,
    "LayerNormalization": _WEIGHT_AND_BIAS,
    "RMSNormalization": frozenset((1,)),
    "PRelu": frozenset((1,)),
}
_DECODERS = frozenset(
    (
        *("Cast", "CastLike", "DequantizeLinear", "Expand", "Flatten", "Gather", "Identity", "Pad", "QuantizeLinear", "Reshape"),
        *("Slice", "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze"),
    )
)


def trainable(graph: onnx.GraphProto) -> set[str]:
    """Names of the initializers to train, by the table above."""
    return _Uses(graph).trainable()


class _Uses:
    def __init__(self, graph: onnx.GraphProto) -> None:
        self.shapes = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer if tensor.data_type in FLOATS}
        initializers = {tensor.name for tensor in graph.initializer}
        self.inputs = {value.name for value in graph.input} - initializers
        self.outputs = {value.name for value in graph.output}
        self.readers: dict[str, list[tuple[onnx.NodeProto, int]]] = defaultdict(list)
        self.computed = set(self.inputs)
        """Tensors that depend on the model's input."""
        self.known: dict[str, bool | None] = {}
        for node in graph.node:
            for position, name in enumerate(node.input):
                self.readers[name].append((node, position))
            if any(name in self.computed for name in node.input):
                self.computed.update(node.output)

    def trainable(self) -> set[str]:
        return {name for name in self.shapes if self.role(name, self.shapes[name])}

    def role(self, name: str, shape: Sequence[int] | None) -> bool | None:
        """True if a constant is trained, False if some use forbids it, None if nothing reads it. `shape` is None if not known."""
        if name not in self.known:
            uses = [self.use(node, position, shape) for node, position in self.readers[name]]
            if name in self.outputs:
                uses.append(False)
            self.known[name] = None if not uses or set(uses) == {None} else False not in uses
        return self.known[name]

    def use(self, node: onnx.NodeProto, position: int, shape: Sequence[int] | None) -> bool | None:
        if node.domain not in ("", "ai.onnx"):
            return False
        if node.op_type in ("Shape", "Size") or (node.op_type == "CastLike" and position == 1):
            return None
        if position in _TRAINED.get(node.op_type, ()):
            return True
        static = all(name not in self.computed for name in node.output)
        if (node.op_type in _DECODERS and position == 0) or node.op_type == "Concat":
            return self.result(node) if static else node.op_type == "Gather"
        if node.op_type in ("Add", "Mul"):
            if static:
                return self.result(node)
            wide = sum(size > 1 for size in shape) if shape else -1
            other = node.input[1 - position]
            return other not in self.inputs and (wide == 1 or (wide == 0 and node.op_type == "Add"))
        return False

    def result(self, node: onnx.NodeProto) -> bool | None:
        roles = {self.role(name, None) for name in node.output if name} - {None}
        return None if not roles else False not in roles
