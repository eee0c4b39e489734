"""Scale, zero-point and integers of a QuantizeLinear or DequantizeLinear."""

import numpy as np
import onnx

from onnx_lathe.passes.graph import Constant, Node, Tensor

BYTES = (np.dtype(np.int8), np.dtype(np.uint8))


def values_of(tensor: Tensor) -> np.ndarray | None:
    return tensor.values if isinstance(tensor, Constant) else None


def zero_point(node: Node) -> np.ndarray | None:
    return values_of(node.inputs[2]) if len(node.inputs) > 2 and not node.inputs[2].is_empty() else None


def code_type(node: Node, zero: np.ndarray | None) -> np.dtype | None:
    """The type of the integers that the node writes or reads; a QuantizeLinear without zero-point and type
    writes UINT8.
    """
    if zero is not None:
        return zero.dtype
    if node.op == "DequantizeLinear":
        return node.inputs[0].dtype
    return onnx.helper.tensor_dtype_to_np_dtype(node.attrs.get("output_dtype", 0) or onnx.TensorProto.UINT8)


def along(node: Node, zero: np.ndarray | None, shape: tuple[int, ...]) -> np.ndarray:
    """The zero-point, int32, in a shape that broadcasts to the tensor's: per tensor, along an axis, or per
    block along an axis.
    """
    if zero is None or zero.ndim == 0:
        return np.array(0 if zero is None else zero, np.int32)
    axis, block = node.attrs.get("axis", 1) % len(shape), node.attrs.get("block_size", 0)
    wide = zero.astype(np.int32)
    if block:
        return np.repeat(wide, block, axis).take(range(shape[axis]), axis)
    return wide.reshape([-1 if index == axis else 1 for index in range(len(shape))])


def fits(node: Node, shape: tuple[int, ...]) -> bool:
    """Whether scale and zero-point are of the tensor's shape along the node's axis."""
    scale, block = values_of(node.inputs[1]), node.attrs.get("block_size", 0)
    if scale is None:
        return False
    zero = zero_point(node)
    if zero is not None and zero.shape != scale.shape:
        return False
    if scale.ndim == 0:
        return True
    axis = node.attrs.get("axis", 1)
    if not -len(shape) <= axis < len(shape):
        return False
    axis %= len(shape)
    if block:
        wanted = [-(-size // block) if index == axis else size for index, size in enumerate(shape)]
        return list(scale.shape) == wanted
    return scale.shape == (shape[axis],)
