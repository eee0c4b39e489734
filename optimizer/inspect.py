"""Per-layer table of a model: shape, parameters, multiply-accumulates (MACs), and the bytes that its
weights take in the file.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx

from onnx_lathe.passes.graph import Constant, Node
from onnx_lathe.passes.graph.layers import Weight, stored_in, weights
from onnx_lathe.passes.graph.macs import OpenShape, open_shapes, repeats
from onnx_lathe.passes.graph.model import import_model


@dataclass(frozen=True)
class LayerRow:
    """One layer with a weight. `macs` is per sample, None where a shape is not known before the model runs."""

    node: str
    op: str
    weight_shape: OpenShape
    output_shape: OpenShape | None
    parameters: int
    zeros: int
    weight_bytes: int
    macs: int | None


@dataclass(frozen=True)
class Size:
    """What a model weighs, without running it."""

    parameters: int
    weight_bytes: int
    sparsity: float
    macs: int | None

    def as_metrics(self) -> dict[str, float]:
        found: dict[str, float] = {
            "weights": self.weight_bytes,
            "sparsity": self.sparsity,
            "parameters": self.parameters,
        }
        if self.macs is not None:
            found["macs"] = self.macs
        return found


def layer_rows(model: onnx.ModelProto) -> list[LayerRow]:
    """One row per layer in graph order; a shared weight is counted in its first row only."""
    shapes = open_shapes(model, {})
    rows = []
    for weight in weights(import_model(model), lambda node, reason: None, halves=True):
        zeros, size = weight.zeros()
        counted = (size, zeros, _stored(weight))
        for node in weight.nodes:
            macs = _macs(node, size, shapes)
            output = shapes.get(node.outputs[0].name)
            rows.append(LayerRow(node.name, node.op, _shape(weight, size, shapes), output, *counted, macs))
            counted = (0, 0, 0)
    return rows


def _shape(weight: Weight, size: int, shapes: Mapping[str, OpenShape]) -> OpenShape:
    if weight.is_initializer:
        return tuple(weight.tensor.shape)
    return shapes.get(weight.name) or (size,)


def _stored(weight: Weight) -> int:
    """Bytes of the initializers that the weight is read from."""
    leaves = {leaf.name: leaf for leaf in stored_in(weight.tensor)}
    return sum(_stored_bytes(leaf) for leaf in leaves.values())


def measure(model: onnx.ModelProto, rows: list[LayerRow] | None = None) -> Size:
    """Parameters are the layers' weights; weight bytes are all initializers as stored; sparsity is the
    share of zeros of those weights.
    """
    rows = layer_rows(model) if rows is None else rows
    parameters = sum(row.parameters for row in rows)
    macs = [row.macs for row in rows if row.macs is not None]
    return Size(
        parameters=parameters,
        weight_bytes=sum(_proto_bytes(tensor) for tensor in model.graph.initializer),
        sparsity=sum(row.zeros for row in rows) / parameters if parameters else 0.0,
        macs=sum(macs) if len(macs) == len(rows) else None,
    )


def _macs(node: Node, weight_size: int, shapes: Mapping[str, OpenShape]) -> int | None:
    """The whole weight, as often as the layer uses it."""
    sizes = repeats(node, shapes)
    known = [size for size in sizes or () if isinstance(size, int)]
    return None if sizes is None or len(known) < len(sizes) else weight_size * math.prod(known)


def _stored_bytes(leaf: Constant) -> int:
    bits = onnx_bits(onnx.helper.np_dtype_to_tensor_dtype(np.dtype(leaf.dtype)))
    return -(-int(np.prod(leaf.shape, dtype=np.int64)) * bits // 8)


def _proto_bytes(tensor: onnx.TensorProto) -> int:
    return -(-int(np.prod(tensor.dims, dtype=np.int64)) * onnx_bits(tensor.data_type) // 8)


def onnx_bits(data_type: int) -> int:
    """Bits per element of an ONNX element type as packed raw data."""
    four = (onnx.TensorProto.INT4, onnx.TensorProto.UINT4, onnx.TensorProto.FLOAT4E2M1)
    return 4 if data_type in four else 8 * onnx.helper.tensor_dtype_to_np_dtype(data_type).itemsize
