"""The weight values that the nodes of a graph read, whatever they are stored as: every float constant but single
numbers, and the integers of quantized operators.

A weight that is decoded from a codebook or from INT8 counts as what it is decoded to. A tensor that several nodes
read, or read transposed or reshaped, counts once. Scales of Q/DQ pairs and of Resize are no weights.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np
import onnx

from onnx_lathe.layout import LAYOUT
from onnx_lathe.passes.graph import Constant, Graph, Node, Tensor
from onnx_lathe.passes.graph.bodies import Part, parts
from onnx_lathe.passes.graph.evaluate import REFUSALS
from onnx_lathe.passes.graph.initializers import is_unread, read, size_bytes
from onnx_lathe.passes.graph.keeping import is_optional_input
from onnx_lathe.passes.graph.layers import OPTIONAL, UNFOLDED, constant_value, is_constant, zeros_of

_PARAMETERS = {
    "QuantizeLinear": (1, 2),
    "DequantizeLinear": (1, 2),
    "Resize": (1, 2),
    "Upsample": (1,),
    "QLinearConv": (1, 2, 4, 5, 6, 7),
    "QLinearMatMul": (1, 2, 4, 5, 6, 7),
    "Dropout": (1,),
    "Clip": (1, 2),
    "Pad": (2,),
    "OneHot": (2,),
}
"""Inputs that set how an operator computes."""
_INTEGER = {
    "ConvInteger": (1, 3, 0),
    "MatMulInteger": (1, 3, -1),
    "QLinearConv": (3, 5, 0),
    "QLinearMatMul": (3, 5, -1),
}
"""Operator -> inputs with the weight and its zero-point, and the axis of a zero-point per channel."""


@dataclass(frozen=True)
class Stored:
    """One weight that a node reads. `elements` is 0 if a node before it has counted the same values. `zeros` is None
    where the data is in another file that was not read. `tensor` is what the node reads.
    """

    shape: tuple[int, ...]
    elements: int
    zeros: int | None
    size_bytes: int
    tensor: Tensor = field(compare=False, repr=False)

    @property
    def matrix(self) -> bool:
        """Whether sparsity is about it: a vector, such as a bias, is not what pruning is for."""
        return len(self.shape) > 1

    @property
    def read_bytes(self) -> int:
        """As `size_bytes`, of every node that reads it."""
        return sum(map(_bytes, leaves(self.tensor)))


def stored_weights(
    graph: Graph, refuse: Callable[[Node, str], None]
) -> Iterator[tuple[Part, Node, list[Stored]]]:
    """Every node of the graph and its bodies with what it reads. `refuse` is called for weights that cannot be
    counted, with the reason.
    """
    counted: set[int] = set()
    for part in parts(graph):
        for node in part.graph.nodes:
            yield part, node, list(_read_by(node, graph.opset, counted, refuse))


def _read_by(
    node: Node, opset: int, counted: set[int], refuse: Callable[[Node, str], None]
) -> Iterator[Stored]:
    if node.outputs and is_constant(node.outputs[0], UNFOLDED):
        return  # its reader counts what it decodes
    standard = node.domain in (None, "", "ai.onnx")
    for index, tensor in enumerate(node.inputs):
        integer = standard and node.op in _INTEGER and index == _INTEGER[node.op][0]
        if is_optional_input(tensor) and _is_float_matrix(tensor):
            refuse(node, OPTIONAL)
        if tensor.is_empty() or not is_constant(tensor, UNFOLDED):
            continue
        if index in _PARAMETERS.get(node.op, ()):
            continue
        if not integer and not _is_float(tensor):
            if not standard and len(_shape(tensor) or ()) > 1:
                refuse(node, f"{node.domain}.{node.op} stores them in a form of its own")
            continue
        source = _source(tensor)
        if id(source) in counted:
            yield Stored(_shape(tensor) or (), 0, 0, 0, tensor)
            continue
        try:
            zeros, shape = _zeros(tensor, opset, node if integer else None)
        except REFUSALS as error:
            refuse(node, f"'{tensor.name}' cannot be computed: {' '.join(str(error).split())}")
            continue
        counted.add(id(source))
        if shape:  # a single number is part of a formula, such as an epsilon
            size = sum(map(_bytes, leaves(tensor)))
            yield Stored(_shape(tensor) or shape, math.prod(shape), zeros, size, tensor)


def _is_float_matrix(tensor: Tensor) -> bool:
    return tensor.dtype is not None and _floating(tensor.dtype) and len(tensor.shape or ()) > 1


def _source(tensor: Tensor) -> Tensor:
    """What the tensor holds the values of, in whatever layout."""
    while not isinstance(tensor, Constant) and tensor.inputs and tensor.inputs[0].op in LAYOUT:
        tensor = tensor.inputs[0].inputs[0]
    return tensor


def _is_float(tensor: Tensor) -> bool:
    stored = _held(tensor)
    if stored is not None:
        return _floating(stored.dtype)
    node = tensor.inputs[0]
    if node.op == "Cast":
        return int(node.attrs["to"]) in _FLOATS
    if node.op == "Constant":
        return "value_float" in node.attrs or "value_floats" in node.attrs
    return node.op == "DequantizeLinear" or (node.op != "QuantizeLinear" and _is_float(node.inputs[0]))


_FLOATS = {
    number
    for name, number in onnx.TensorProto.DataType.items()
    if name in ("FLOAT", "DOUBLE") or name.startswith(("FLOAT16", "BFLOAT", "FLOAT8", "FLOAT4"))
}


def _floating(dtype: np.dtype | int) -> bool:
    """onnx-graphsurgeon gives the number of an element type that NumPy has no name for, such as bfloat16."""
    number = dtype if isinstance(dtype, int) else onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
    return number in _FLOATS


def _held(tensor: Tensor) -> Constant | None:
    """The constant itself: an initializer, or the tensor of a Constant node."""
    if isinstance(tensor, Constant):
        return tensor
    node = tensor.inputs[0]
    value = node.attrs.get("value") if node.op == "Constant" else None
    return value if isinstance(value, Constant) else None


def _shape(tensor: Tensor) -> tuple[int, ...] | None:
    stored = _held(tensor)
    shape = tensor.shape if stored is None else stored.shape
    return None if shape is None or not all(isinstance(size, int) for size in shape) else tuple(shape)


def _zeros(tensor: Tensor, opset: int, integer: Node | None) -> tuple[int | None, tuple[int, ...]]:
    """How many of the values are zero, of integers at the zero-point of the node that reads them, and their shape. Data
    that has not been read says nothing of its zeros.
    """
    if any(map(is_unread, leaves(tensor))):
        return None, _unread_shape(tensor)
    if integer is not None:
        zero = _zero_point(integer, opset)
        values = np.asarray(constant_value(tensor, opset))
        return int(np.count_nonzero(values == zero)), tuple(values.shape)
    stored = _held(tensor)
    stored = _centred(tensor) if stored is None else stored
    return zeros_of(tensor if stored is None else stored, opset)


def _unread_shape(tensor: Tensor) -> tuple[int, ...]:
    """Of the decoded values, without them: indices and levels have the shape of what they stand for."""
    shape = _shape(tensor)
    return shape or max((tuple(leaf.shape) for leaf in leaves(tensor)), key=math.prod)


def _centred(tensor: Tensor) -> Constant | None:
    """The integers of a weight whose zero-points and no scales are 0: what decodes to zero is 0 there already."""
    node = tensor.inputs[0]
    if node.op != "DequantizeLinear":
        return None
    levels, scale, *zeros = [
        _held(source) if is_constant(source, UNFOLDED) else None for source in node.inputs
    ]
    if scale is None or not np.all(read(scale)) or any(zero is None or np.any(read(zero)) for zero in zeros):
        return None
    return levels


def _zero_point(node: Node, opset: int) -> np.ndarray:
    weight, place, axis = _INTEGER[node.op]
    given = len(node.inputs) > place and not node.inputs[place].is_empty()
    if not given or not is_constant(node.inputs[place], UNFOLDED):
        return np.zeros((), np.int32)
    zero = np.asarray(constant_value(node.inputs[place], opset)).reshape(-1)
    rank = len(_shape(node.inputs[weight]) or ())
    if zero.size == 1 or not rank:
        return zero[:1].reshape(())
    return zero.reshape([-1 if place == axis % rank else 1 for place in range(rank)])


def leaves(tensor: Tensor) -> list[Constant]:
    """The stored tensors that a constant tensor is decoded from; itself, if it is one."""
    stored = _held(tensor)
    if stored is not None:
        return [stored]
    found = [leaf for source in tensor.inputs[0].inputs if not source.is_empty() for leaf in leaves(source)]
    return list({id(leaf): leaf for leaf in found}.values())


def _bytes(leaf: Constant) -> int:
    number = (
        leaf.dtype
        if isinstance(leaf.dtype, int)
        else onnx.helper.np_dtype_to_tensor_dtype(np.dtype(leaf.dtype))
    )
    names = onnx.TensorProto
    if number in (names.INT4, names.UINT4, names.FLOAT4E2M1):
        return -(-math.prod(leaf.shape) // 2)
    return size_bytes(leaf)
