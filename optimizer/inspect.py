"""Per-layer table of a model: shape, parameters, multiply-accumulates (MACs), and the bytes that its
weights take in the file.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx

from onnx_lathe.passes.graph import Constant, Node
from onnx_lathe.passes.graph.layers import stored_in, weights
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
        stored = sum(
            _stored_bytes(leaf) for leaf in {leaf.name: leaf for leaf in stored_in(weight.tensor)}.values()
        )
        shape: OpenShape = (
            tuple(weight.tensor.shape) if weight.is_initializer else shapes.get(weight.name) or (size,)
        )
        for index, node in enumerate(weight.nodes):
            output = shapes.get(node.outputs[0].name)
            first = index == 0
            rows.append(
                LayerRow(
                    node.name,
                    node.op,
                    shape,
                    output,
                    first * size,
                    first * zeros,
                    first * stored,
                    _macs(node, size, shapes),
                )
            )
    return rows


def measure(model: onnx.ModelProto, rows: list[LayerRow] | None = None) -> Size:
    """Parameters are the layers' weights; weight bytes are all initializers as stored; sparsity is the
    share of zeros of those weights.
    """
    rows = layer_rows(model) if rows is None else rows
    parameters = sum(row.parameters for row in rows)
    macs = [row.macs for row in rows]
    return Size(
        parameters=parameters,
        weight_bytes=sum(_proto_bytes(tensor) for tensor in model.graph.initializer),
        sparsity=sum(row.zeros for row in rows) / parameters if parameters else 0.0,
        macs=None
        if any(value is None for value in macs)
        else sum(value for value in macs if value is not None),
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
