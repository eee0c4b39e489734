"""What a caller of a model sees: the inputs to feed, and whether it classifies."""

from dataclasses import dataclass

import numpy as np
from onnx import ModelProto, TensorProto, helper

from onnx_lathe.errors import ModelError


@dataclass(frozen=True)
class InputSpec:
    """What a caller feeds: `shape` includes the batch axis, None for a dynamic dimension."""

    name: str
    dtype: np.dtype
    shape: tuple[int | None, ...]


def model_inputs(model: ModelProto) -> list[InputSpec]:
    """The inputs that a caller feeds (IR version 3 lists initializers among them). Raises ModelError for
    one that is no plain tensor.
    """
    stored = {tensor.name for tensor in model.graph.initializer}
    specs = []
    for value in model.graph.input:
        if value.name in stored:
            continue
        tensor = value.type.tensor_type
        dtype = _dtype(tensor.elem_type)
        if not value.type.HasField("tensor_type") or dtype is None:
            raise ModelError(
                f"input '{value.name}' is not a numeric tensor; give it a value with an initializer, or cut it off the model"
            )
        dims = tuple(
            dim.dim_value if dim.HasField("dim_value") and dim.dim_value > 0 else None
            for dim in tensor.shape.dim
        )
        specs.append(InputSpec(value.name, dtype, dims))
    return specs


def model_classes(model: ModelProto) -> int | None:
    """Number of classes that labels can name: the most of any output that is float [N, classes]; None if
    there is no such output, or one whose classes are not known before it runs.
    """
    floats = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.DOUBLE)
    tensors = [output.type.tensor_type for output in model.graph.output]
    counts = [
        tensor.shape.dim[1].dim_value
        for tensor in tensors
        if len(tensor.shape.dim) == 2 and tensor.elem_type in floats
    ]
    most = max(counts, default=0)
    return most if most > 1 and min(counts) > 0 else None


def _dtype(elem_type: int) -> np.dtype | None:
    """None for strings and for types that this version of onnx does not know."""
    try:
        return (
            None if elem_type == TensorProto.STRING else np.dtype(helper.tensor_dtype_to_np_dtype(elem_type))
        )
    except KeyError:
        return None
