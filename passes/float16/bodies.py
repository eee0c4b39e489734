"""Weights of layers inside bodies of If, Loop and Scan: stored in float16, while the bodies compute in float32.

    W f32   becomes   Cast(W_float16 f16 -> f32) -> W

What bodies carry from step to step has the type of what they are given, so that they stay in float32. ONNX Runtime
computes a Cast of a constant when it loads a model.
"""

import numpy as np
import onnx

from onnx_lathe.passes.core.report import PassReport
from onnx_lathe.passes.graph import Constant, Graph, Node
from onnx_lathe.passes.graph.bodies import places
from onnx_lathe.passes.graph.initializers import read
from onnx_lathe.passes.graph.layers import Weight, not_float, other_use, weights
from onnx_lathe.passes.graph.model import taken_names, unused_name
from onnx_lathe.passes.numerics.quantization import half

_CAST_BYTES = 100
"""What the Cast adds to the file, names included."""


def store_half(graph: Graph, max_error: float, report: PassReport) -> None:
    """Stores these weights in float16, each once, or says why not."""
    found = [weight for weight in weights(graph, lambda node, reason: None, bodies=True) if weight.place]
    inside = places(graph) if found else {}
    taken = taken_names(graph) if found else set()
    for weight in found:
        node = next(node for node in weight.nodes if node.name in inside)
        reason = _refusal(graph, weight, max_error)
        if reason is None and any(reader.name not in inside for reader in weight.nodes):
            reason = "its weight is also read outside of bodies"
        if reason is not None:
            report.skip(node.name, f"it is in the {weight.place}, which stays in float32, and {reason}")
            continue
        values = read(weight.tensor).astype(np.float16)
        stored = Constant(unused_name(f"{weight.name}_float16", taken), values)
        cast = unused_name(f"{weight.name}_Cast", taken)
        taken |= {stored.name, cast}
        weight.tensor.to_variable(np.float32, tuple(values.shape))
        weight.tensor.type = "tensor_type"  # onnx-graphsurgeon 0.6 forgets it
        graph.nodes.append(Node("Cast", cast, {"to": onnx.TensorProto.FLOAT}, [stored], [weight.tensor]))
        report.edit(node.name, f"{weight.name} is stored as float16; the {weight.place} computes in float32")


def _refusal(graph: Graph, weight: Weight, max_error: float) -> str | None:
    if reason := not_float(weight.tensor, "float16") or other_use(graph, weight):
        return reason
    values = read(weight.tensor)
    if values.dtype != np.float32:
        return f"its weight is {values.dtype}"
    if values.nbytes // 2 <= _CAST_BYTES:
        return f"float16 would save {values.nbytes // 2} bytes of its weight and add {_CAST_BYTES} of a Cast"
    lost = half.rounding(values)
    if lost.overflows:
        return (
            f"its weight reaches {half.largest_magnitude(values):.4g}, and float16 ends at {half.LARGEST:.0f}"
        )
    return f"float16 would change its weight by {100 * lost.error:.2g} %" if lost.error > max_error else None
