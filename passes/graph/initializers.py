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

from onnx_lathe import held
from onnx_lathe.passes.graph import Constant, Variable


class StoredValues(LazyValues):
    """Values of a tensor of ONNX, which may be held in a file (held.py)."""

    def load(self) -> np.ndarray:
        return held.to_array(self.tensor) if held.is_held(self.tensor) else super().load()


def is_lazy(tensor: Constant) -> bool:
    """Whether the values are still those of a tensor of the model, which nobody has asked for."""
    return isinstance(tensor._values, LazyValues)


def is_sparse(tensor: Constant) -> bool:
    return isinstance(tensor._values, SparseValues)


def is_unread(tensor: Constant) -> bool:
    """Whether the values are still in another file, which has not been read."""
    if not is_lazy(tensor):
        return False
    stored = stored_tensor(tensor)
    return stored.data_location == onnx.TensorProto.EXTERNAL and not held.is_held(stored)


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
    values: np.ndarray = held.to_array(stored.tensor) if isinstance(stored, LazyValues) else stored
    return values


def stored_tensor(tensor: Constant) -> onnx.TensorProto:
    """The values as a tensor of ONNX; the model's own if they are lazy."""
    proto: onnx.TensorProto = (
        tensor._values.tensor if is_lazy(tensor) else onnx.numpy_helper.from_array(tensor.values)
    )
    return proto


def store_tensor(tensor: Constant, proto: onnx.TensorProto) -> None:
    """Makes the values those of `proto`, read when they are asked for."""
    tensor.values = StoredValues(proto)


def know_held(tensor: Constant) -> None:
    """Of an imported initializer: lets its values be read where they are held, and not be exported as elsewhere."""
    if is_lazy(tensor) and held.is_held(stored_tensor(tensor)):
        store_tensor(tensor, stored_tensor(tensor))
        tensor.data_location = None


def let_go(tensor: Constant) -> None:
    """Puts the values of a large initializer into a file, where others are held in files: they are copied no more."""
    area = held.writing_area()
    if area is None or is_lazy(tensor) or is_sparse(tensor) or size_bytes(tensor) < held.LEAST_BYTES:
        return
    values = tensor._values
    if tensor.export_dtype != tensor.dtype or values.dtype.kind in "OUS":
        return
    if values.dtype.itemsize * 8 != _bits(values.dtype):
        values = onnx.numpy_helper.from_array(values, tensor.name)  # packed
        proto = onnx.TensorProto(name=tensor.name, data_type=values.data_type, dims=values.dims)
        area.write(proto, values.raw_data)
    else:
        kind = dtype_to_onnx(tensor.export_dtype)
        proto = onnx.TensorProto(name=tensor.name, data_type=kind, dims=values.shape)
        area.write(proto, np.ascontiguousarray(values).reshape(-1).view(np.uint8).data)
    store_tensor(tensor, proto)
    tensor.data_location = None


def _bits(dtype: np.dtype) -> int:
    """Of an element in a file."""
    return (
        4
        if dtype.name in ("int4", "uint4", "float4_e2m1fn")
        else 2
        if dtype.name in ("int2", "uint2")
        else 8 * dtype.itemsize
    )


def store_packed(tensor: Constant) -> None:
    """Stores an array as a tensor of ONNX, which packs 4-bit elements."""
    let_go(tensor)
    if not is_lazy(tensor):
        store_tensor(tensor, onnx.numpy_helper.from_array(tensor.values, tensor.name))


def to_initializer(tensor: Variable, values: onnx.TensorProto | Constant) -> None:
    """Turns a computed tensor into an initializer with the values of a tensor of ONNX or of another one."""
    tensor.to_constant(values._values if isinstance(values, Constant) else StoredValues(values))


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
    area = held.writing_area()
    if area is not None and len(data) >= held.LEAST_BYTES:
        proto = onnx.TensorProto(name=tensor.name, data_type=onnx.TensorProto.FLOAT, dims=tuple(tensor.shape))
        area.write(proto, data)
    else:
        shape = tuple(tensor.shape)
        proto = onnx.helper.make_tensor(tensor.name, onnx.TensorProto.FLOAT, shape, data, raw=True)
    store_tensor(tensor, proto)
    tensor.data_location = None


def write(tensor: Constant, values: np.ndarray) -> None:
    """Makes `values`, of the type and shape as before, the initializer's; of a type that NumPy lacks
    (bfloat16) as a tensor of ONNX.
    """
    tensor.values = (
        StoredValues(onnx.numpy_helper.from_array(values, tensor.name))
        if isinstance(tensor.dtype, int)
        else values
    )
    tensor.data_location = None
    let_go(tensor)
