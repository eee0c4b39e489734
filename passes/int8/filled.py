"""Weights that an operator writes from fewer numbers than INT8 stores.

Tile(blur [1, 1, 3, 3], [64, 1, 1, 1]) -> Conv(W)      becomes  Conv(DequantizeLinear(W_int8 [64, 1, 3, 3]))
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from onnx_lathe.passes.graph.initializers import size_bytes
from onnx_lathe.passes.graph.layers import FILLERS, Weight, constant_shape, output_axis, stored_in
from onnx_lathe.passes.graph.quantization import pairs

MOST_NAMED = 3
SCALE_BYTES = 4


@dataclass(frozen=True)
class Filled:
    """`before`: bytes that the weight is written from; `after`: of its INT8 values and their scales."""

    name: str
    op: str
    layers: tuple[str, ...]
    values: int
    before: int
    after: int


def filled_weights(chosen: Sequence[Weight], opset: int) -> list[Filled]:
    """Those that INT8 stores in more bytes than they are written from."""
    found = []
    for weight in chosen:
        op = next((op for op in pairs.decoders(weight.tensor) if op in FILLERS), None)
        if op is None:
            continue
        shape = constant_shape(weight.tensor, opset)
        values, before = math.prod(shape), sum(map(size_bytes, stored_in(weight.tensor)))
        after = values + SCALE_BYTES * shape[output_axis(weight.nodes[0], len(shape))]
        if after > before:
            layers = tuple(node.name for node in weight.nodes)
            found.append(Filled(weight.name, op, layers, values, before, after))
    return found


def warning(found: Sequence[Filled]) -> str:
    """How much they grow by, and how they are kept in float."""
    layers = [name for one in found for name in one.layers]
    listed = ", ".join(f"{name}: false" for name in layers[:MOST_NAMED])
    more = ", ..." if len(layers) > MOST_NAMED else ""
    ops = " and ".join(sorted({one.op for one in found}))
    return (
        f"int8 stores {sum(one.values for one in found):,} weights that {ops} wrote from fewer numbers: "
        f"{sum(one.before for one in found):,} B -> {sum(one.after for one in found):,} B of the file; "
        f"int8(layers={{{listed}{more}}}) keeps them in float"
    )
