"""Models that carry Q/DQ pairs already, from PyTorch or another quantizer: kept, completed or stripped.

keep      what is there stays; what TensorRT will refuse of it is said
complete  pairs are brought to the canonical form, their ranges kept, and layers that have only one side quantized get the other
strip     pairs go, weights and biases are float again: dequantized, or the floats that the pair quantized; layers that
          compute on integers become float layers
"""

import numpy as np

from onnx_lathe.passes.core.report import PassReport
from onnx_lathe.passes.graph import Constant, Graph, Node
from onnx_lathe.passes.graph.layers import INTEGER_LAYERS, STRIP_FIRST, codebook_of, is_constant, is_integer
from onnx_lathe.passes.graph.rewire import sweep
from onnx_lathe.passes.int8.foreign_pairs import Pairs, parameters
from onnx_lathe.passes.int8.integer_operators import to_float

CHOICES = ("keep", "complete", "strip")


def treat_existing(graph: Graph, choice: str, report: PassReport) -> None:
    """Does what the option `existing` says with the pairs that the graph has."""
    if not any(node.op in ("QuantizeLinear", "DequantizeLinear") or is_integer(node) for node in graph.nodes):
        return
    if choice == "keep":
        _keep(graph, report)
        return
    to_float(graph, report, dynamic=choice == "strip")
    (_strip if choice == "strip" else _complete)(graph, Pairs(graph), report)
    sweep(graph)


def _keep(graph: Graph, report: PassReport) -> None:
    for node in graph.nodes:
        if is_integer(node) and node.op not in INTEGER_LAYERS:  # those are skipped as layers
            report.skip(node.name, f"{node.op} computes on integers; {STRIP_FIRST}")
        if node.op == "QuantizeLinear" and not is_constant(node.inputs[0]):
            found = parameters(node)
            if found is not None and (found.dtype != np.int8 or found.zero_point.any()):
                remedy = ", which existing=complete makes of it" if found.per_tensor_byte else ""
                report.skip(node.name, f"kept as {found}; TensorRT takes INT8 with zero-point 0 only{remedy}")


def _strip(graph: Graph, pairs: Pairs, report: PassReport) -> None:
    stripped = 0
    for node in pairs.dequantizers:
        name, source, before = node.outputs[0].name, node.inputs[0], parameters(node)
        stored = is_constant(source) and not (source.inputs and source.inputs[0] in pairs.quantizers)
        reason = pairs.decode(node) if stored else pairs.unpair(node)
        if reason is None:
            stripped += 1
            report.edit(node.name, f"{name} is float again, was {before}")
        else:
            report.skip(node.name, f"stays: {reason}")
    report.metrics["stripped"] = stripped


def _complete(graph: Graph, pairs: Pairs, report: PassReport) -> None:
    for node in pairs.quantizers:
        if is_constant(node.inputs[0]):
            continue
        found = pairs.form(node)
        if isinstance(found, str):
            report.skip(node.name, f"kept: {found}")
        elif not found.per_tensor_byte:
            report.skip(
                node.name, f"kept as {found}: only a pair of 8 bits with one scale has a canonical form"
            )
        elif found.is_canonical:
            pairs.note_range(node)
        else:
            low, high = found.range
            wider = pairs.make_canonical(node)
            exact = (
                "the same values"
                if found.is_centred
                else f"range {low:.4g} to {high:.4g} kept, steps {wider:.3g}x as wide"
            )
            report.edit(node.name, f"{found} became INT8 with zero-point 0: {exact}")
    for node in pairs.dequantizers:
        if is_constant(node.inputs[0]):
            _complete_constant(graph, pairs, node, report)


def _complete_constant(graph: Graph, pairs: Pairs, node: Node, report: PassReport) -> None:
    """Bytes become INT8 with zero-point 0 where that holds them; other bytes, and wider integers such as a
    bias, become float.
    """
    source, found, name = node.inputs[0], parameters(node), node.outputs[0].name
    if (
        found is None
        or node.attrs.get("block_size", 0)
        or found.dtype not in (np.int8, np.uint8, np.int16, np.uint16, np.int32)
    ):
        return
    if (
        found.dtype == np.int8 and isinstance(source, Constant) and not found.zero_point.any()
    ) or codebook_of(source) is not None:
        return
    if pairs.centre_constant(node):
        report.edit(node.name, f"{name} was {found}, became INT8 with zero-point 0: the same values")
        return
    reason = pairs.decode(node)
    if reason is None:
        report.edit(node.name, f"{name} was {found}, became float")
    else:
        report.skip(node.name, f"kept: {reason}")
