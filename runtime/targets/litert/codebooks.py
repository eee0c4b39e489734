"""Weights that a codebook decodes in ONNX, and that LiteRT stores value by value."""

import math

import onnx
from onnx import TensorProto

from onnx_lathe.runtime.files.tensors import data_size


def note(model: onnx.ModelProto, size_bytes: int) -> str | None:
    """What a user should know of a model with Gather(codebook, Cast(indices)) whose file has `size_bytes`; None if it
    has no such weight.
    """
    stored = {tensor.name: tensor for tensor in model.graph.initializer}
    cast = {node.output[0]: node.input[0] for node in model.graph.node if node.op_type == "Cast"}
    found = {}
    for node in model.graph.node:
        if node.op_type != "Gather" or node.domain:
            continue
        table = stored.get(node.input[0])
        indices = stored.get(cast.get(node.input[1], node.input[1]))
        if table is not None and indices is not None and _decodes(table, indices):
            found[indices.name] = data_size(indices) + data_size(table)
    if not found:
        return None
    several = len(found) > 1
    return (
        f"{len(found)} codebook weight{'s are' if several else ' is'} written out value by value, for LiteRT decodes none: "
        f"the model has {'them' if several else 'it'} in {_megabytes(sum(found.values()))}, the whole .tflite takes {_megabytes(size_bytes)}; "
        "int8 and storage=float16 make that smaller, codebook does not"
    )


def _decodes(table: TensorProto, indices: TensorProto) -> bool:
    floats = table.data_type in (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16)
    return floats and len(table.dims) == 1 and math.prod(indices.dims) > table.dims[0]


def _megabytes(count: int) -> str:
    return f"{count / 1e6:.3g} MB"
