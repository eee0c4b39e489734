"""Values of initializers without a second copy of the model: onnx-graphsurgeon keeps whatever array it was
asked for once.
"""

import numpy as np
import onnx
from onnx_graphsurgeon.ir.tensor import LazyValues

from onnx_lathe.passes.graph import Constant, Tensor
from onnx_lathe.passes.graph.layers import codebook_of, stored_in
from onnx_lathe.passes.graph.model import FOUR_BIT


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


def not_float(tensor: Tensor, pass_name: str) -> str | None:
    """Why a pass on float32 initializers must leave this constant weight alone; None if it is such an
    initializer.
    """
    if isinstance(tensor, Constant):
        return None
    if codebook_of(tensor) is not None:
        return f"its weight is stored as a codebook; {pass_name} before codebook"
    if tensor.inputs[0].op == "DequantizeLinear":
        stored = stored_in(tensor)[0].dtype
        maker = "int4" if stored in FOUR_BIT else "int8"
        return f"its weight is stored as {stored}{' already' if pass_name == maker else f'; {pass_name} before {maker}'}"
    return f"its weight is computed by {tensor.inputs[0].op}; fold before {pass_name}"
