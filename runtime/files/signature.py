"""What a caller of a model sees: the inputs to feed, and whether it classifies."""

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
from onnx import ModelProto, TensorProto, helper

from onnx_lathe.errors import ModelError

MOST_MADE_UP = 1 << 25
"""Random values of an input: 400 MB while they are drawn."""
ONE_NUMBER = ((), (1,))
"""Shapes of an input that one number fills."""


@dataclass(frozen=True)
class InputSpec:
    """What a caller feeds: `shape` includes the batch axis, None for a dynamic dimension; () for one number."""

    name: str
    dtype: np.dtype
    shape: tuple[int | None, ...]
    ranked: bool = True
    """Whether the model says how many axes the input has; `shape` is () if it does not."""


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
        specs.append(InputSpec(value.name, dtype, dims, tensor.HasField("shape")))
    return specs


def takes_one_sample(shapes: Sequence[Sequence[int | str | None]]) -> bool:
    """Whether inputs of these shapes cannot hold a batch along their first axes: one is a single number ([1]
    counts as one beside a dynamic batch, which it does not follow), or the first axes of two differ, as
    [batch, n] and [2, batch, 128] do. Names are of dynamic dimensions.
    """
    firsts = [shape[0] for shape in shapes if shape]
    fixed = {size for size in firsts if isinstance(size, int)}
    single = any(tuple(shape) in ONE_NUMBER for shape in shapes)
    mixed = (single or max(fixed, default=1) > 1) and not all(isinstance(size, int) for size in firsts)
    return len(firsts) < len(shapes) or len(fixed) > 1 or mixed


def fixed_batch(shapes: Sequence[Sequence[int | str | None]]) -> int | None:
    """The batch size that inputs of these shapes ask for, if they ask for one."""
    fixed = {shape[0] for shape in shapes if shape and isinstance(shape[0], int)}
    return fixed.pop() if len(fixed) == 1 else None


def made_up_shape(
    shape: Sequence[int | str | None], batch: int, batches: Collection[int | str], size: int, last: bool
) -> list[int]:
    """The shape with `batch` in the place of an open first dimension and of others named as one of `batches`, and
    `size` in that of all others, or of the last one alone, where the others are 1. Raises ModelError for more than
    MOST_MADE_UP values.
    """
    found = []
    for axis, dim in enumerate(shape):
        if isinstance(dim, int) and dim > 0:
            found.append(dim)
        elif axis == 0 or dim in batches:
            found.append(batch)
        else:
            found.append(1 if last and axis < len(shape) - 1 else size)
    if math.prod(found) > MOST_MADE_UP:
        raise ModelError(
            f"an input of shape {found} takes more values than are made up; give data with --data"
        )
    return found


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
