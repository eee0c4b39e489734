"""Constant nodes to initializers, and nodes that can be computed now because all they read is constant."""

import math
from collections.abc import Collection

import numpy as np
import onnx

from onnx_lathe.errors import LatheError
from onnx_lathe.passes.graph import Constant, Graph, Node, Tensor
from onnx_lathe.passes.graph.evaluate import REFUSALS, Evaluator, evaluate, node_model
from onnx_lathe.passes.graph.initializers import size_bytes, stored_tensor, to_initializer

_FOLDABLE = """
Abs Add And Cast CastLike Ceil Concat ConstantOfShape Cos Div Equal Erf Exp Expand Flatten Floor Gather GatherElements GatherND Gemm
Greater GreaterOrEqual Less LessOrEqual Log MatMul Max Mean Min Mod Mul Neg NonZero Not Or Pow Range Reciprocal ReduceMax ReduceMean
ReduceMin ReduceProd ReduceSum Reshape Round ScatterND Shape Sigmoid Sign Sin Size Slice Split Sqrt Squeeze Sub Sum Tanh Tile Transpose
Unsqueeze Where Xor
"""

FOLDABLE = frozenset(_FOLDABLE.split())
"""Deterministic operators whose reference implementation agrees with ONNX Runtime (tests compare each).
DequantizeLinear and QuantizeLinear are not among them: folding them would undo or hide compressed
storage.
"""

_KEPT = """
Bernoulli Constant DequantizeLinear Dropout DynamicQuantizeLinear If Loop Multinomial Optional OptionalGetElement OptionalHasElement
QuantizeLinear RandomNormal RandomNormalLike RandomUniform RandomUniformLike Scan
"""

KEPT = frozenset(_KEPT.split())
"""Operators that are not computed now: random ones, those with bodies, and those of compressed storage."""

LOWEST_OPSET = 7
"""Broadcasting of older opsets is an attribute, which the reference implementation does not know."""

PLAIN = "biuf"
"""Kinds of NumPy's own types: no bfloat16, 8-bit floats, 4-bit integers or strings."""


def constant_to_initializer(node: Node) -> bool:
    """Turns the output of a Constant node into an initializer, bit for bit. False for a form without a
    dense tensor.
    """
    proto = _constant_proto(node)
    if proto is None:
        return False
    tensor = node.outputs[0]
    node.outputs.clear()
    to_initializer(tensor, proto)
    return True


def _constant_proto(node: Node) -> onnx.TensorProto | None:
    for name, element in (
        ("value_float", onnx.TensorProto.FLOAT),
        ("value_int", onnx.TensorProto.INT64),
        ("value_string", onnx.TensorProto.STRING),
    ):
        if name in node.attrs:
            return onnx.helper.make_tensor("", element, [], [node.attrs[name]])
        if name + "s" in node.attrs:
            return onnx.helper.make_tensor("", element, [len(node.attrs[name + "s"])], node.attrs[name + "s"])
    value = node.attrs.get("value")
    if isinstance(value, Constant):
        return stored_tensor(value)
    return None


def value(tensor: Tensor) -> np.ndarray | None:
    """Of an initializer, or of a Constant node that stays one; None for what is no constant."""
    if isinstance(tensor, Constant):
        return np.asarray(tensor.values)
    node = tensor.inputs[0] if len(tensor.inputs) == 1 else None
    proto = None if node is None or node.op != "Constant" or node.domain else _constant_proto(node)
    return None if proto is None else onnx.numpy_helper.to_array(proto)


def is_foldable(graph: Graph, node: Node, sparse: Collection[str], any_operator: bool = False) -> bool:
    """Whether the node may be computed now: deterministic, all inputs constant and of a plain type, and not
    a decoder of stored weights.

    Without `any_operator`, it must be one that the reference implementation computes as ONNX Runtime does.
    A tensor named in `sparse` keeps its place, because the name says whose zeros must stay.
    """
    known = node.op in FOLDABLE or (any_operator and _is_computable(node, graph.opset))
    if not known or node.domain or graph.opset < LOWEST_OPSET:
        return False
    inputs = [tensor for tensor in node.inputs if not tensor.is_empty()]
    if not inputs or not all(
        isinstance(t, Constant) and is_plain(t) and t.name not in sparse for t in inputs
    ):
        return False
    return not decodes_storage(node)


def _is_computable(node: Node, opset: int) -> bool:
    """Whether the standard has the operator, deterministic and on tensors alone."""
    if node.op in KEPT or node.domain or not onnx.defs.has(node.op, opset, ""):
        return False
    schema = onnx.defs.get_schema(node.op, opset, "")
    kinds = [kind for constraint in schema.type_constraints for kind in constraint.allowed_type_strs]
    return all(kind.startswith("tensor(") for kind in kinds)


def decodes_storage(node: Node) -> bool:
    """Whether a node of constants expands what is stored small: a narrow type, or one value (or a tile) for
    a whole float tensor.

    ONNX Runtime computes these when it loads a model, so only the file would change: it would grow.
    """
    if node.op in ("Cast", "CastLike"):
        dtype = np.dtype(node.inputs[0].dtype)
        return dtype != np.bool_ and dtype.itemsize < 4 and math.prod(node.inputs[0].shape) > 1
    if node.op == "ConstantOfShape":
        return (
            "value" not in node.attrs
            or not is_plain(node.attrs["value"])
            or np.dtype(node.attrs["value"].dtype).kind == "f"
        )
    return node.op in ("Expand", "Tile") and np.dtype(node.inputs[0].dtype).kind == "f"


def is_plain(tensor: Constant) -> bool:
    """Whether NumPy computes with the element type."""
    return isinstance(tensor.dtype, np.dtype | type) and np.dtype(tensor.dtype).kind in PLAIN


def compute(node: Node, opset: int, evaluator: Evaluator | None = None) -> list[np.ndarray] | str:
    """The node's outputs, or why they cannot be computed. `evaluator` computes what is not in FOLDABLE."""
    arrays = [None if tensor.is_empty() else tensor.values for tensor in node.inputs]
    try:
        if node.op in FOLDABLE or evaluator is None:
            with np.errstate(all="ignore"):
                values = evaluate(node, arrays, opset)
        else:
            values = evaluator.evaluate(*node_model(node, arrays, opset))
    except (*REFUSALS, LatheError) as error:
        return f"it cannot be computed: {' '.join(str(error).split())}"
    for tensor, value in zip(node.outputs, values, strict=True):
        declared = tensor.dtype
        if value.dtype.kind not in PLAIN or (
            declared is not None and (isinstance(declared, int) or np.dtype(declared) != value.dtype)
        ):
            return f"it computes to {value.dtype}, which is not what the model declares"
    return values


def freed_bytes(graph: Graph, node: Node) -> int:
    """Size of the initializers that nobody reads once this node is gone."""
    sources = {id(t): t for t in node.inputs if isinstance(t, Constant)}
    outputs = {id(t) for t in graph.outputs}
    return sum(
        size_bytes(tensor)
        for key, tensor in sources.items()
        if key not in outputs and all(reader is node for reader in tensor.outputs)
    )


def store(node: Node, values: list[np.ndarray]) -> None:
    """The node's outputs become initializers of the same names; the node is disconnected."""
    outputs: list[Tensor] = list(node.outputs)
    node.inputs.clear()
    node.outputs.clear()
    for tensor, value in zip(outputs, values, strict=True):
        tensor.to_constant(np.ascontiguousarray(value).reshape(value.shape))
