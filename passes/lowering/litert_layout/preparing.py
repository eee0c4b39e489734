"""Constants as constants, before anything else is looked at."""

import numpy as np

from onnx_lathe.passes.core.report import PassReport
from onnx_lathe.passes.graph import Constant, Graph, Node, Tensor
from onnx_lathe.passes.graph.constants import FOLDABLE, compute, constant_to_initializer, store, value
from onnx_lathe.passes.graph.layers import constant_value
from onnx_lathe.passes.graph.model import taken_names, unused_name
from onnx_lathe.passes.graph.rewire import captured_names, is_output, sweep


def store_constants(graph: Graph, report: PassReport) -> None:
    """Initializers for all that is constant: codebook weights are decoded, since LiteRT decodes none at run time that
    it could compute a layer with, and their quantized form is stored. What DequantizeLinear decodes stays so.
    """
    captured = captured_names(graph)
    taken = taken_names(graph)
    graph.toposort()
    for node in list(graph.nodes):
        if node.domain or any(is_output(graph, one) or one.name in captured for one in node.outputs):
            continue
        if node.op == "Constant":
            constant_to_initializer(node)
            continue
        if node.op not in (*FOLDABLE, "QuantizeLinear") or not all(map(_is_constant, node.inputs)):
            continue
        for index, source in enumerate(node.inputs):
            if not isinstance(source, Constant) and not source.is_empty():  # a body reads it too
                name = unused_name(f"{source.name}_value", taken)
                taken.add(name)
                node.inputs[index] = Constant(name, np.asarray(value(source)))
        values = _computed(node, graph.opset, report)
        if values is not None:
            store(node, values)
            report.edit(node.name, "is computed already")
    sweep(graph)


def _is_constant(tensor: Tensor) -> bool:
    """Whether the input is left out, an initializer, or what a Constant node has."""
    if isinstance(tensor, Constant) or tensor.is_empty():
        return True
    return bool(tensor.inputs) and tensor.inputs[0].op == "Constant" and value(tensor) is not None


def _computed(node: Node, opset: int, report: PassReport) -> list[np.ndarray] | None:
    if node.op == "QuantizeLinear":
        result: Tensor = node.outputs[0]
        return [constant_value(result, opset)]
    values = compute(node, opset)
    if isinstance(values, str):
        report.skip(node.name, values)
        return None
    return values
