"""Values of initializers without a second copy of the model: onnx-graphsurgeon keeps whatever array it was
asked for once.

What is stored is an array, a tensor of the model that is read when it is asked for (LazyValues), or a sparse
one. onnx-graphsurgeon has no public way to tell; this file alone knows its private `_values`.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import onnx
from onnx_graphsurgeon.exporters.onnx_exporter import dtype_to_onnx
from onnx_graphsurgeon.ir.tensor import LazyValues, SparseValues

from onnx_lathe.passes.graph import Constant, Variable


def is_lazy(tensor: Constant) -> bool:
    """Whether the values are still those of a tensor of the model, which nobody has asked for."""
    return isinstance(tensor._values, LazyValues)


def is_sparse(tensor: Constant) -> bool:
    return isinstance(tensor._values, SparseValues)


def is_unread(tensor: Constant) -> bool:
    """Whether the values are still in another file, which has not been read."""
    return is_lazy(tensor) and stored_tensor(tensor).data_location == onnx.TensorProto.EXTERNAL


def size_bytes(tensor: Constant) -> int:
    """Size of the values in memory, without loading them."""
    return int(tensor._values.nbytes)


def read(tensor: Constant) -> np.ndarray:
    """The initializer's values, not kept in the graph. The array is read-only, or the graph's own: do not
    write into it.
    """
    stored = tensor._values
    if isinstance(stored, SparseValues):
        return np.asarray(stored.load(), dtype=tensor.dtype)
    values: np.ndarray = (
        onnx.numpy_helper.to_array(stored.tensor) if isinstance(stored, LazyValues) else stored
    )
    return values


def stored_tensor(tensor: Constant) -> onnx.TensorProto:
    """The values as a tensor of ONNX; the model's own if they are lazy."""
    proto: onnx.TensorProto = (
        tensor._values.tensor if is_lazy(tensor) else onnx.numpy_helper.from_array(tensor.values)
    )
    return proto


def store_tensor(tensor: Constant, proto: onnx.TensorProto) -> None:
    """Makes the values those of `proto`, read when they are asked for."""
    tensor.values = LazyValues(proto)


def store_packed(tensor: Constant) -> None:
    """Stores an array as a tensor of ONNX, which packs 4-bit elements."""
    if not is_lazy(tensor):
        store_tensor(tensor, onnx.numpy_helper.from_array(tensor.values, tensor.name))


def to_initializer(tensor: Variable, values: onnx.TensorProto | Constant) -> None:
    """Turns a computed tensor into an initializer with the values of a tensor of ONNX or of another one."""
    tensor.to_constant(values._values if isinstance(values, Constant) else LazyValues(values))


@contextmanager
def data_withheld(tensors: Sequence[Constant]) -> Iterator[None]:
    """For as long as it lasts, the initializers say their type and shape and have no data."""
    values = [tensor._values for tensor in tensors]
    try:
        for tensor in tensors:
            header = onnx.TensorProto(
                name=tensor.name, dims=tensor.shape, data_type=dtype_to_onnx(tensor.export_dtype)
            )
            tensor._values = LazyValues(header)
        yield
    finally:
        for tensor, kept in zip(tensors, values, strict=True):
            tensor._values = kept


def write_float(tensor: Constant, data: bytes) -> None:
    """Makes `data`, as many float32 values in C order as before, the initializer's values. The model it was
    imported from keeps its own.

    Bytes, because a caller can let go of its array before this copies them.
    """
    tensor.values = LazyValues(
        onnx.helper.make_tensor(tensor.name, onnx.TensorProto.FLOAT, tuple(tensor.shape), data, raw=True)
    )
    tensor.data_location = None


def write(tensor: Constant, values: np.ndarray) -> None:
    """Makes `values`, of the type and shape as before, the initializer's; of a type that NumPy lacks
    (bfloat16) as a tensor of ONNX.
    """
    tensor.values = (
        LazyValues(onnx.numpy_helper.from_array(values, tensor.name))
        if isinstance(tensor.dtype, int)
        else values
    )
    tensor.data_location = None
