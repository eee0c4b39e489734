"""Calls of ONNX Runtime with tensors of bfloat16, for which its Python binding knows no array: they go in rounded to it,
and come out as float32, which holds each of their values.
"""

import ctypes
import math
from collections.abc import Mapping, Sequence
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import onnxruntime

TYPE = "tensor(bfloat16)"


def has_ports(session: Any) -> bool:
    """Whether an input or output of the session is of bfloat16."""
    return any(value.type == TYPE for value in (*session.get_inputs(), *session.get_outputs()))


def call(session: Any, names: Sequence[str], feeds: Mapping[str, np.ndarray]) -> list[Any]:
    """What `session.run(names, feeds)` gives, of any session that takes feeds by name."""
    if not isinstance(session, onnxruntime.InferenceSession) or not has_ports(session):
        return list(session.run(names, dict(feeds)))
    types = {value.name: value.type for value in session.get_inputs()}
    values = {name: _given(array, types.get(name)) for name, array in feeds.items()}
    return [_read(value) for value in session.run_with_ort_values(names, values)]


def storable(array: np.ndarray) -> np.ndarray:
    """The array as a .npz file keeps it: bfloat16 as float32, for which NumPy alone would write bytes of no type."""
    return array.astype(np.float32) if array.dtype == ml_dtypes.bfloat16 else array


def _given(array: np.ndarray, kind: str | None) -> Any:
    if kind != TYPE:
        return onnxruntime.OrtValue.ortvalue_from_numpy(array)
    bits = np.ascontiguousarray(np.asarray(array).astype(ml_dtypes.bfloat16)).view(np.uint16)
    return onnxruntime.OrtValue.ortvalue_from_numpy_with_onnx_type(bits, onnx.TensorProto.BFLOAT16)


def _read(value: Any) -> Any:
    if value.data_type() != TYPE:
        return value.numpy()
    shape = value.shape()
    bits = ctypes.string_at(value.data_ptr(), 2 * math.prod(shape)) if math.prod(shape) else b""
    return np.frombuffer(bits, ml_dtypes.bfloat16).reshape(shape).astype(np.float32)


def is_stored_in(source: bytes | str) -> bool:
    """Whether an initializer of the model, a file or its content, is of bfloat16."""
    model = (
        onnx.load(source, load_external_data=False)
        if isinstance(source, str)
        else onnx.load_model_from_string(source)
    )
    return any(tensor.data_type == onnx.TensorProto.BFLOAT16 for tensor in model.graph.initializer)
