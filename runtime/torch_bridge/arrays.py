"""Element types: ONNX <-> NumPy <-> PyTorch.

PyTorch computes on neither 4-bit nor wide unsigned integers: they are carried in the next wider type that
it computes on.
"""

import ml_dtypes
import numpy as np
import onnx
import torch

from onnx_lathe.runtime.torch_bridge.registry import RefusedError

_T = onnx.TensorProto
_TORCH: dict[int, torch.dtype] = {
    _T.FLOAT: torch.float32,
    _T.DOUBLE: torch.float64,
    _T.FLOAT16: torch.float16,
    _T.BFLOAT16: torch.bfloat16,
    _T.BOOL: torch.bool,
    _T.INT4: torch.int8,
    _T.INT8: torch.int8,
    _T.INT16: torch.int16,
    _T.INT32: torch.int32,
    _T.INT64: torch.int64,
    _T.UINT4: torch.uint8,
    _T.UINT8: torch.uint8,
    _T.UINT16: torch.int32,
    _T.UINT32: torch.int64,
    _T.UINT64: torch.int64,
}
WIDENED = (_T.UINT4, _T.INT4, _T.UINT16, _T.UINT32, _T.UINT64)
"""Carried in another type than their own: arithmetic that leaves their range does not wrap around as theirs
would.
"""
FLOATS = (_T.FLOAT, _T.DOUBLE, _T.FLOAT16, _T.BFLOAT16)
HALVES = (torch.float16, torch.bfloat16)


def carried(element: int) -> bool:
    """Whether PyTorch can carry an ONNX element type."""
    return element in _TORCH


def torch_type(element: int) -> torch.dtype:
    """The type that carries an ONNX element type. Raises RefusedError for strings, complex numbers and
    8-bit floats.
    """
    if element not in _TORCH:
        raise RefusedError(_T.DataType.Name(element))
    return _TORCH[element]


def to_torch(array: np.ndarray) -> torch.Tensor:
    """A tensor of its own with the array's shape and values. Raises RefusedError for an element type that
    PyTorch cannot carry.
    """
    kept = torch_type(onnx.helper.np_dtype_to_tensor_dtype(array.dtype))
    if array.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(array.view(np.int16).copy()).view(torch.bfloat16)
    return torch.from_numpy(array.astype(_numpy(kept), order="C")).reshape(array.shape)


def to_numpy(tensor: torch.Tensor, dtype: np.dtype) -> np.ndarray:
    """The values as a contiguous array of `dtype`; exact when they came from one."""
    values = tensor.detach().cpu().contiguous()
    if values.dtype == torch.bfloat16:
        values = values.float()
    return np.array(values.numpy(), dtype=dtype, order="C")


def _numpy(dtype: torch.dtype) -> np.dtype:
    return np.dtype(str(dtype).removeprefix("torch."))
