"""8-bit integers that come in or go out as they are: computed, since TensorRT quantizes around zero only.

    UINT8 tensor x -> DQ(s, z)          Cast(x, float) -> Sub(z) -> Mul(s)
    Q(s, z) -> UINT8 output             Div(s) -> Round -> Add(z) -> Clip(0, 255) -> Cast(UINT8)

The values are the same: integers up to 255 are exact in 16-bit floats too, and Round rounds halves to even as
QuantizeLinear does.
"""

import numpy as np
import onnx

from onnx_lathe.passes.graph import Constant, Node, Tensor
from onnx_lathe.passes.graph.rewire import disconnect, is_output
from onnx_lathe.passes.lowering.engine_types.parameters import code_type, zero_point
from onnx_lathe.passes.lowering.engine_types.work import Work

_TAKEN = {np.dtype(np.uint8): (0, 255), np.dtype(np.int8): (-128, 127)}


def compute(work: Work, node: Node) -> None:
    """Replaces a quantizer around another value than zero whose integers come from outside, or go there."""
    scale, zero = node.inputs[1], zero_point(node)
    if zero is None and len(node.inputs) > 2 and not node.inputs[2].is_empty():
        return
    kind, shape = code_type(node, zero), _spread(node)
    if kind not in _TAKEN or shape is None or not isinstance(scale, Constant):
        return
    if kind == np.int8 and not np.any(zero):
        return
    values = scale.values.reshape(shape if scale.values.size > 1 else ())
    around = None
    if zero is not None and np.any(zero):
        around = zero.reshape(shape if zero.size > 1 else ()).astype(values.dtype)
    source, result = node.inputs[0], node.outputs[0]
    if node.op == "DequantizeLinear" and not _is_quantized(source):
        _decode(work, node, values, around)
        work.report.edit(node.name, f"'{source.name}' is decoded by arithmetic, to the same values")
    elif node.op == "QuantizeLinear" and is_output(work.graph, result) and not result.outputs:
        _encode(work, node, values, around, np.dtype(kind))
        work.report.edit(node.name, f"'{result.name}' is quantized by arithmetic, to the same values")


def _decode(work: Work, node: Node, scale: np.ndarray, around: np.ndarray | None) -> None:
    source, result = node.inputs[0], node.outputs[0]
    name, kind = result.name, scale.dtype
    disconnect(node)
    to = int(onnx.helper.np_dtype_to_tensor_dtype(kind))
    tensor = work.node("Cast", name, [source], kind, shape=source.shape, to=to)
    if around is not None:
        zero = work.constant(f"{name}_zero_point", around)
        tensor = work.node("Sub", name, [tensor, zero], kind, shape=source.shape)
    work.node("Mul", name, [tensor, work.constant(f"{name}_scale", scale)], kind, result)


def _encode(work: Work, node: Node, scale: np.ndarray, around: np.ndarray | None, codes: np.dtype) -> None:
    source, result = node.inputs[0], node.outputs[0]
    name, kind = result.name, scale.dtype
    disconnect(node)
    divisor = work.constant(f"{name}_scale", scale)
    tensor = work.node("Div", name, [source, divisor], kind, shape=source.shape)
    tensor = work.node("Round", name, [tensor], kind, shape=source.shape)
    if around is not None:
        zero = work.constant(f"{name}_zero_point", around)
        tensor = work.node("Add", name, [tensor, zero], kind, shape=source.shape)
    low, high = _TAKEN[codes]
    ends = [
        work.constant(f"{name}_low", np.array(low, kind)),
        work.constant(f"{name}_high", np.array(high, kind)),
    ]
    tensor = work.node("Clip", name, [tensor, *ends], kind, shape=source.shape)
    work.node("Cast", name, [tensor], codes, result, to=int(onnx.helper.np_dtype_to_tensor_dtype(codes)))


def _is_quantized(tensor: Tensor) -> bool:
    return bool(tensor.inputs) and tensor.inputs[0].op == "QuantizeLinear" and not tensor.inputs[0].domain


def _spread(node: Node) -> list[int] | None:
    """The shape in which parameters per channel broadcast; None if it is not known."""
    scale, shape = node.inputs[1], node.inputs[0].shape or node.outputs[0].shape
    if node.attrs.get("block_size", 0):
        return None
    if isinstance(scale, Constant) and scale.values.size == 1:
        return []
    if not shape:
        return None
    axis = node.attrs.get("axis", 1) % len(shape)
    return [-1 if index == axis else 1 for index in range(len(shape))]
