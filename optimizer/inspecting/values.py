"""What the stored numbers of a weight are: their width, and how many different ones there are."""

from collections.abc import Sequence

import numpy as np
import onnx

from onnx_lathe.optimizer.counting.weights import Stored, leaves
from onnx_lathe.passes.graph import Constant, Tensor
from onnx_lathe.passes.graph.evaluate import REFUSALS
from onnx_lathe.passes.graph.initializers import is_unread, read
from onnx_lathe.passes.graph.layers import codebook_of, constant_value
from onnx_lathe.runtime.files.tensors import bits_of

CHEAP = 4_000_000
"""Weights of a model whose different values are counted unasked: sorting them takes a fraction of a second."""


def bits(weight: Stored) -> int | None:
    """Of one stored number: of an index into a codebook, or a level of INT8."""
    return bits_of(kind(leaves(weight.tensor)))


def kind(found: Sequence[Constant]) -> int:
    """The element type, as a number of onnx.TensorProto, of the largest of stored tensors."""
    dtype = max(found, key=lambda leaf: int(np.prod(leaf.shape))).dtype
    return dtype if isinstance(dtype, int) else onnx.helper.np_dtype_to_tensor_dtype(np.dtype(dtype))


def is_quick(weight: Stored) -> bool:
    """Whether counting the different values sorts no more than a codebook or 256 levels."""
    found = leaves(weight.tensor)
    return not any(map(is_unread, found)) and (bits(weight) or 32) <= 8


def distinct(weight: Stored, opset: int) -> int | None:
    """Different values of a weight, before scales: levels of INT8, entries of a codebook that are in use. None for data
    that has not been read.
    """
    if any(map(is_unread, leaves(weight.tensor))):
        return None
    codes = codebook_of(weight.tensor)
    if codes is not None:
        codebook, indices = codes
        return _different(codebook[np.unique(indices.astype(np.int64))])
    try:
        values = np.asarray(_levels(weight.tensor, opset))
    except REFUSALS:
        return None
    return _different(values)


def _different(values: np.ndarray) -> int:
    numbers = values if values.dtype.kind in "fiub" else values.astype(np.float32)  # 4 bits, bfloat16
    ordered = np.sort(numbers, axis=None)
    return int(np.count_nonzero(ordered[1:] != ordered[:-1])) + (ordered.size > 0)


def _levels(tensor: Tensor, opset: int) -> np.ndarray:
    while not isinstance(tensor, Constant) and tensor.inputs[0].op in (
        "DequantizeLinear",
        "Reshape",
        "Transpose",
    ):
        tensor = tensor.inputs[0].inputs[0]
    return read(tensor) if isinstance(tensor, Constant) else constant_value(tensor, opset)
