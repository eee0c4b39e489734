"""Tensors in groups whose values fit in memory together: a large network is observed group by group."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TypeVar

import numpy as np
import onnx

from onnx_lathe.errors import ModelError
from onnx_lathe.passes.graph.skeleton import skeleton

GROUP_BYTES = 256 << 20
"""Of the values of one call that are held at once, of one model."""
UNKNOWN_BYTES = 4 << 20
"""Of a tensor whose size cannot be inferred."""

Item = TypeVar("Item")


def tensor_bytes(model: onnx.ModelProto, feeds: Mapping[str, np.ndarray]) -> dict[str, int]:
    """Bytes of the tensors of the main graph for a call with these feeds, as far as shapes can be inferred."""
    light = skeleton(model)
    for value in light.graph.input:
        if value.name in feeds:
            shape = value.type.tensor_type.shape
            del shape.dim[:]
            shape.dim.extend(
                onnx.TensorShapeProto.Dimension(dim_value=size) for size in feeds[value.name].shape
            )
    for output in light.graph.output:
        output.type.tensor_type.ClearField("shape")
    del light.graph.value_info[:]
    try:
        inferred = onnx.shape_inference.infer_shapes(light, data_prop=True)
    except (onnx.shape_inference.InferenceError, RuntimeError, ValueError):
        return {}
    values = (*inferred.graph.value_info, *inferred.graph.output)
    return {value.name: size for value in values if (size := _bytes(value)) is not None}


def _bytes(value: onnx.ValueInfoProto) -> int | None:
    tensor = value.type.tensor_type
    if not tensor.HasField("shape") or not all(dim.HasField("dim_value") for dim in tensor.shape.dim):
        return None
    try:
        width = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type).itemsize
    except KeyError:
        return None
    return width * math.prod(dim.dim_value for dim in tensor.shape.dim)


def grouped(
    items: Sequence[Item], bytes_of: Callable[[Item], int], limit: int = GROUP_BYTES
) -> Iterator[list[Item]]:
    """The items in their order, in groups of at most `limit` bytes; a larger item has a group of its own."""
    group: list[Item] = []
    held = 0
    for item in items:
        size = bytes_of(item)
        if group and held + size > limit:
            yield group
            group, held = [], 0
        group.append(item)
        held += size
    if group:
        yield group


def one_by_one(
    items: Sequence[Item], work: Callable[[list[Item]], None], failed: Callable[[Item, ModelError], None]
) -> None:
    """Does the work on all items at once; where ONNX Runtime refuses that, on halves, down to the item to blame."""
    try:
        work(list(items))
    except ModelError as error:
        if len(items) == 1:
            failed(items[0], error)
            return
        middle = len(items) // 2
        one_by_one(items[:middle], work, failed)
        one_by_one(items[middle:], work, failed)
