"""Which initializers are trained: decided by how they are used, never by their names.

| operator | trained inputs | condition |
|---|---|---|
| Conv, ConvTranspose, DeformConv | weight, bias | |
| Gemm, MatMul, Einsum | every constant operand | |
| BatchNormalization, InstanceNormalization, GroupNormalization, LayerNormalization, RMSNormalization | scale, bias | not mean, variance |
| PRelu | slope | |
| LSTM, GRU, RNN | W, R, B | not initial states |
| Add | a bias: rank >= 1, at most one dimension > 1 | added to an activation; values that differ are not all whole numbers |
| Mul | a factor: exactly one dimension > 1 | the same |
| Add | an embedding of positions: [N, D], [1, N, D] or [N, 1, D] | added to tokens, see below |
| Concat | tokens [..., D], also behind an Expand to the batch's size | joined to tokens, see below |
| Gather | table | indices are computed from the model's input (an embedding) |
| Gather with constant indices (a codebook) | table | as what its result is used for |
| QuantizeLinear, DequantizeLinear, and what moves values (Reshape, Concat, Slice, ...) | data | as what their result is used for |
| Add, Mul of two constants | both | as what their result is used for |
| Shape, Size, the model of CastLike | - | does not matter |

An activation is what some layer computed: not the model's input, even if it was moved, cast, or combined
with constants (normalization of the input), and not what is known from shapes alone. Strides and
coordinates that a detector multiplies with or adds are whole numbers. MatMul, Gemm and Einsum train no
operand whose partner is known from shapes (the frequencies of a rotary embedding).

Tokens are activations [..., N, D] that are normalized over D, or multiplied by a [D, M] weight, before
anything but sums, joins and moves that keep the last axis is done to them. Scores that a mask is added to
go to a Softmax instead. To be safe, what can be no learned embedding stays as it is, too: values that are
not finite, or -100 and less, or at most two different ones (masks, padding), or all whole numbers; and a
table of sines and cosines, whose rows all have the mean square 1/2.

Mean and variance of a BatchNormalization are no parameters, but `statistics` lists those that a module may
keep up to date: each an initializer that this one node reads, and nothing else.

Any other use (a scale, of which `scales.py` knows more, a zero-point, a bound, a padding value, an
exponent, operands of Sub and Div) keeps the initializer as it is, even if it is also used in a trained
role. Only floats are trained.
"""

from collections import defaultdict
from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx

from onnx_lathe.layout import LAYOUT
from onnx_lathe.runtime.torch_bridge.arrays import FLOATS

_STANDARD = ("", "ai.onnx")
_WEIGHT_AND_BIAS = frozenset((1, 2))
_TRAINED: Mapping[str, frozenset[int]] = {
    "Conv": _WEIGHT_AND_BIAS,
    "ConvTranspose": _WEIGHT_AND_BIAS,
    "DeformConv": frozenset((1, 3)),
    "Einsum": frozenset(range(8)),
    "Gemm": frozenset((0, 1, 2)),
    "MatMul": frozenset((0, 1)),
    "BatchNormalization": _WEIGHT_AND_BIAS,
    "InstanceNormalization": _WEIGHT_AND_BIAS,
    "GroupNormalization": _WEIGHT_AND_BIAS,
    "LayerNormalization": _WEIGHT_AND_BIAS,
    "RMSNormalization": frozenset((1,)),
    "PRelu": frozenset((1,)),
    **dict.fromkeys(("GRU", "LSTM", "RNN"), frozenset((1, 2, 3))),
}
_DECODERS = frozenset(
    (
        *LAYOUT,
        *("Cast", "CastLike", "DequantizeLinear", "Expand", "Gather", "Pad", "QuantizeLinear"),
        *("Slice", "Split", "Tile"),
    )
)


_PREPARED = _DECODERS | {
    "Add",
    "Clip",
    "Concat",
    "DepthToSpace",
    "Div",
    "Mul",
    "Resize",
    "SpaceToDepth",
    "Sub",
}
"""What is done to the model's input before the first layer."""
_ALIKE = frozenset(("Cast", "DequantizeLinear", "Expand", "Identity", "QuantizeLinear"))
"""Decoders whose result has the last dimension of their input, and its values but for rounding."""
_MASKED = -100.0
"""No learned embedding has so small a value; a mask has one."""


def trainable(graph: onnx.GraphProto) -> set[str]:
    """Names of the initializers to train, by the table above."""
    return _Uses(graph).trainable()


def statistics(graph: onnx.GraphProto) -> dict[str, tuple[str, str]]:
    """Output of a BatchNormalization -> its running mean and variance, if both can be written back."""
    uses = _Uses(graph)
    found = {}
    for node in graph.node:
        if (
            node.op_type == "BatchNormalization"
            and node.domain in _STANDARD
            and node.input[0] in uses.computed
        ):
            mean, variance = node.input[3:5]
            if all(
                name in uses.stored and len(uses.readers[name]) == 1 and name not in uses.outputs
                for name in (mean, variance)
            ):
                found[node.output[0]] = mean, variance
    return found


class _Uses:
    def __init__(self, graph: onnx.GraphProto) -> None:
        self.stored = {tensor.name: tensor for tensor in graph.initializer if tensor.data_type in FLOATS}
        initializers = {tensor.name for tensor in graph.initializer}
        inputs = {value.name for value in graph.input} - initializers
        self.outputs = {value.name for value in graph.output}
        self.readers: dict[str, list[tuple[onnx.NodeProto, int]]] = defaultdict(list)
        self.computed = set(inputs)
        """Tensors that depend on the model's input."""
        self.shaped: set[str] = set()
        """Those of them that depend on shapes alone."""
        self.prepared = set(inputs)
        """Those of them that no layer has touched."""
        self.known: dict[str, bool | None] = {}
        self.tokens: dict[tuple[str, int], bool] = {}
        for node in graph.node:
            for position, name in enumerate(node.input):
                self.readers[name].append((node, position))
            if any(name in self.computed for name in node.input):
                self._classify(node)

    def _classify(self, node: onnx.NodeProto) -> None:
        sources = self.computed.intersection(node.input)
        self.computed.update(node.output)
        embeds = node.op_type == "Gather" and node.input[0] not in sources
        if node.op_type in ("Shape", "Size") or sources <= self.shaped:
            self.shaped.update(node.output)
        elif node.op_type in _PREPARED and sources <= self.prepared | self.shaped and not embeds:
            self.prepared.update(node.output)

    def trainable(self) -> set[str]:
        return {name for name, tensor in self.stored.items() if self.role(name, tensor)}

    def role(self, name: str, tensor: onnx.TensorProto | None) -> bool | None:
        """True if a constant is trained, False if some use forbids it, None if nothing reads it.

        `tensor` is the initializer whose values and last dimension it has, None if it was decoded in some
        other way.
        """
        if name not in self.known:
            uses = [self.use(node, position, tensor) for node, position in self.readers[name]]
            if name in self.outputs:
                uses.append(False)
            self.known[name] = None if not uses or set(uses) == {None} else False not in uses
        return self.known[name]

    def use(self, node: onnx.NodeProto, position: int, tensor: onnx.TensorProto | None) -> bool | None:
        if node.domain not in _STANDARD:
            return False
        if node.op_type in ("Shape", "Size") or (node.op_type == "CastLike" and position == 1):
            return None
        sources = self.computed.intersection(node.input)
        if position in _TRAINED.get(node.op_type, ()):
            return (
                node.op_type not in ("MatMul", "Gemm", "Einsum") or not sources or not sources <= self.shaped
            )
        if node.op_type in _DECODERS and position == 0:
            static = not sources or (node.op_type == "Expand" and sources <= self.shaped)
            return self.result(node, tensor) if static else node.op_type == "Gather"
        if node.op_type not in ("Add", "Mul", "Concat"):
            return False
        if not sources:
            return self.result(node, None)
        if tensor is None or sources <= self.prepared | self.shaped:
            return False
        wide = sum(size > 1 for size in tensor.dims) if tensor.dims else -1
        if node.op_type == "Concat":
            return _attribute(node, "axis") not in (-1, len(tensor.dims) - 1) and self._embeds(node, tensor)
        if wide == 2 and node.op_type == "Add" and len(tensor.dims) < 4:
            return self._embeds(node, tensor)
        return (wide == 1 or (wide == 0 and node.op_type == "Add")) and not _is_whole(_values(tensor))

    def result(self, node: onnx.NodeProto, tensor: onnx.TensorProto | None) -> bool | None:
        alike = tensor if node.op_type in _ALIKE else None
        roles = {self.role(name, alike) for name in node.output if name} - {None}
        return None if not roles else False not in roles

    def _embeds(self, node: onnx.NodeProto, tensor: onnx.TensorProto) -> bool:
        """Whether a node gives tokens, and an operand of it can be a learned embedding."""
        width = tensor.dims[-1] if tensor.dims else 1
        return (
            width > 1
            and self._are_tokens(node.output[0], width)
            and _is_embedding(_values(tensor).reshape(-1, width))
        )

    def _are_tokens(self, name: str, width: int) -> bool:
        key = name, width
        if key not in self.tokens:
            self.tokens[key] = any(
                self._reads_tokens(node, position, width) for node, position in self.readers[name]
            )
        return self.tokens[key]

    def _reads_tokens(self, node: onnx.NodeProto, position: int, width: int) -> bool:
        if node.op_type in ("LayerNormalization", "RMSNormalization", "MatMul"):
            weight = self.stored.get(node.input[1])
            return position == 0 and weight is not None and list(weight.dims[:1]) == [width]
        if node.op_type == "ReduceMean":  # a normalization written out
            return _attribute(node, "axes") in ([-1], [2])
        order = _attribute(node, "perm") or []
        moved = node.op_type == "Transpose" and order[-1:] == [len(order) - 1]
        joined = node.op_type == "Concat" and _attribute(node, "axis") not in (-1, 2)
        passed = node.op_type in _ALIKE - {"Expand"} | {"Dropout"} and position == 0
        return (moved or joined or passed or node.op_type == "Add") and self._are_tokens(
            node.output[0], width
        )


def _attribute(node: onnx.NodeProto, name: str) -> Any:
    return next(
        (
            onnx.helper.get_attribute_value(attribute)
            for attribute in node.attribute
            if attribute.name == name
        ),
        None,
    )


def _values(tensor: onnx.TensorProto) -> np.ndarray:
    return onnx.numpy_helper.to_array(tensor).astype(np.float64)


def _is_whole(values: np.ndarray) -> bool:
    """Whether values are strides or coordinates: whole numbers, and not all the same, as those of a layer
    before training are.
    """
    return (
        bool((values == np.round(values)).all() and (values != values.flat[0]).any())
        if values.size
        else False
    )


def _is_embedding(rows: np.ndarray) -> bool:
    """Whether rows of D values can have been learned."""
    if (
        not np.isfinite(rows).all()
        or rows.min(initial=0) <= _MASKED
        or len(np.unique(rows)) < 3
        or _is_whole(rows)
    ):
        return False
    squares = np.square(rows).mean(1)
    return len(rows) == 1 or not np.allclose(squares[squares > 0], 0.5, atol=1e-3)
