"""Constants, shapes and changes of element type."""

from typing import Any

import numpy as np
import onnx
import torch
from torch import Tensor

from onnx_lathe.runtime.torch_bridge.arrays import to_torch, torch_type
from onnx_lathe.runtime.torch_bridge.registry import Function, Node, RefusedError, operator, scalar


@operator("Constant", since=1)
def constant(node: Node) -> Function:
    (kind, value), *_ = node.attributes.items()
    if kind == "value":
        tensor = to_torch(onnx.numpy_helper.to_array(value))
    elif kind in ("value_float", "value_floats"):
        tensor = torch.tensor(value, dtype=torch.float32)
    elif kind in ("value_int", "value_ints"):
        tensor = torch.tensor(value, dtype=torch.int64)
    else:
        raise RefusedError(f"of {kind}")
    return lambda: tensor


@operator("ConstantOfShape", since=9, numbers=(0,))
def constant_of_shape(node: Node) -> Function:
    value = node.attributes.get("value")
    fill = to_torch(np.zeros(1, np.float32) if value is None else onnx.numpy_helper.to_array(value))
    number, dtype = fill.item(), fill.dtype
    return lambda shape: torch.full(shape, number, dtype=dtype)


@operator("Shape", since=1)
def shape_of(node: Node) -> Function:
    start, end = node.integer("start"), node.attributes.get("end")
    return lambda x: torch.tensor(x.shape[start:end], dtype=torch.int64)


@operator("Size", since=1)
def size_of(node: Node) -> Function:
    return lambda x: torch.tensor(x.numel())


@operator("Range", since=11, numbers=(0, 1, 2))
def range_(node: Node) -> Function:
    element = next((element for element in node.elements if element), 0)
    declared = (
        torch_type(element)
        if element
        else next((value.dtype for value in node.constants if value is not None), None)
    )

    def run(start: Any, limit: Any, delta: Any) -> Tensor:
        start, limit, delta = scalar(start), scalar(limit), scalar(delta)
        fallback = torch.float32 if isinstance(start, float) else torch.int64
        return torch.arange(
            start, max(start, limit) if delta > 0 else min(start, limit), delta, dtype=declared or fallback
        )

    return run


@operator("Cast", since=6)
def cast(node: Node) -> Function:
    dtype = torch_type(node.integer("to"))
    return lambda x: x.to(dtype)


@operator("CastLike", since=15)
def cast_like(node: Node) -> Function:
    return lambda x, like: x.to(like.dtype)


@operator("EyeLike", since=9)
def eye_like(node: Node) -> Function:
    element, diagonal = node.attributes.get("dtype"), node.integer("k")
    dtype: Any = None if element is None else torch_type(int(element))

    def run(x: Tensor) -> Tensor:
        ones = torch.ones(x.shape, dtype=dtype or x.dtype, device=x.device)
        return ones.triu(diagonal) * ones.tril(diagonal)

    return run


@operator("Trilu", since=14, numbers=(1,))
def trilu(node: Node) -> Function:
    cut = torch.triu if node.integer("upper", 1) else torch.tril
    return lambda x, diagonal=0: cut(x, scalar(diagonal))
