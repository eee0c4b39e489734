"""Where a node can have float16 in place of float32, by the type constraints of the ONNX operators."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

import numpy as np
import onnx

from onnx_lathe.passes.graph import Node, Tensor
from onnx_lathe.passes.graph.shapes import TensorType

_FLOAT, _HALF = "tensor(float)", "tensor(float16)"


@dataclass(frozen=True)
class Half:
    """A type of 16 bits: FLOAT16 or BFLOAT16 of onnx.TensorProto."""

    element: int = int(onnx.TensorProto.FLOAT16)

    @property
    def dtype(self) -> np.dtype | int:
        """As onnx-graphsurgeon has it, which knows no NumPy type of bfloat16."""
        return np.dtype(np.float16) if self.element == onnx.TensorProto.FLOAT16 else self.element

    @property
    def kind(self) -> str:
        """As the standard's type constraints write it."""
        return f"tensor({onnx.TensorProto.DataType.Name(self.element).lower()})"

    def of(self, values: np.ndarray) -> np.ndarray:
        """The nearest values of this type."""
        with np.errstate(over="ignore", under="ignore"):
            return values.astype(onnx.helper.tensor_dtype_to_np_dtype(self.element))

    @property
    def smallest(self) -> np.ndarray:
        return np.nextafter(self.of(np.zeros(())), self.of(np.ones(())))


FLOAT_ONLY = frozenset(
    ("If", "Loop", "MeanVarianceNormalization", "Range", "Resize", "Scan", "TopK", "Upsample")
)
"""Operators that stay in float32 though the standard has them in float16: bodies capture tensors of the
graph around them; ranges and positions of pixels are whole numbers, which float16 lacks beyond 2048;
TensorRT refuses it for Range, ONNX Runtime for the fourth.
"""

_SCATTERS = ("ScatterElements", "ScatterND")
"""ONNX Runtime scatters float16, but does not add it up, nor multiply or compare it."""

ANY_TYPE = frozenset(("Cast", "Shape", "Size"))
"""Operators that read a tensor in whatever type it is."""

RETYPED = frozenset(("Cast", "ConstantOfShape"))
"""Operators whose result has the type that an attribute says: a second node gives it in float16."""


QUANTIZERS = ("QuantizeLinear", "DequantizeLinear")


@dataclass(frozen=True)
class Ports:
    """Positions of the float32 inputs and outputs that may be float16. Either all of them are, or none."""

    inputs: frozenset[int]
    outputs: frozenset[int]


def half_ports(
    node: Node, opset: int, types: Mapping[str, TensorType], known: Half | None = None
) -> Ports | str | None:
    """The node's ports; why it must stay in float32; or None if it has nothing to do with float32, or works
    in any type. `known`: of a node that computes in this type already, whatever it is.
    """
    tensors = [*node.inputs, *node.outputs]
    if node.op in ANY_TYPE | RETYPED and not node.domain:
        return None
    if not any(_is_float(tensor, types) for tensor in tensors):
        return None
    if node.domain or not onnx.defs.has(node.op, opset, ""):
        return "it is not an operator of the ONNX standard"
    adds = node.op in _SCATTERS and node.attrs.get("reduction", "none") != "none"
    if known is None and (node.op in FLOAT_ONLY or adds):
        return f"{node.op} stays in float32"
    if any(not tensor.is_empty() and tensor.name not in types for tensor in tensors):
        return "the type of one of its tensors is not known"
    inputs, outputs = _halvable(node.op, opset, _HALF if known is None else known.kind)
    if inputs is None:
        return f"{node.op} works on sequences"
    if (
        node.op == "DequantizeLinear"
    ):  # the type of its result has a variable of its own since opset 23, but follows the scale's
        outputs = tuple(inputs[1] for _ in outputs)
    taken = {
        i: _at(inputs, i)
        for i, tensor in enumerate(node.inputs)
        if _is_float(tensor, types) and _at(inputs, i)
    }
    given = {i: _at(outputs, i) for i, tensor in enumerate(node.outputs) if _is_float(tensor, types)}
    if not taken or not set(given.values()) <= set(taken.values()):
        since = ", which has float16 scales from opset 19 on" if node.op in QUANTIZERS else ""
        return f"{node.op} has no float16 form at opset {opset}{since}"
    return Ports(frozenset(taken), frozenset(given))


def _is_float(tensor: Tensor, types: Mapping[str, TensorType]) -> bool:
    return tensor.name in types and types[tensor.name].element == onnx.TensorProto.FLOAT


def _at(kinds: tuple[str, ...], index: int) -> str:
    """The last formal parameter stands for all that follow."""
    return kinds[min(index, len(kinds) - 1)] if kinds else ""


@cache
def _halvable(op: str, opset: int, half: str) -> tuple[tuple[str, ...] | None, tuple[str, ...]]:
    """Per formal input and output: the type variable that float16 may be bound to, or "". None for
    operators on sequences.
    """
    schema = onnx.defs.get_schema(op, opset, "")
    allowed = {
        constraint.type_param_str: set(constraint.allowed_type_strs) for constraint in schema.type_constraints
    }
    if any(not any(kind.startswith("tensor(") for kind in kinds) for kinds in allowed.values()):
        return None, ()
    names = {name for name, kinds in allowed.items() if {_FLOAT, half} <= kinds}
    inputs, outputs = (
        tuple(port.type_str if port.type_str in names else "" for port in side)
        for side in (schema.inputs, schema.outputs)
    )
    return inputs, outputs
