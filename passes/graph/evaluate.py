"""Computes one node on constant arrays, with the reference implementation of the ONNX standard, or as a model."""

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from onnx_lathe.passes.graph import Node


class Evaluator(Protocol):
    """Runs a small model that is asked for once."""

    def evaluate(self, model: onnx.ModelProto, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """The outputs in the model's order. Raises LatheError if it cannot be loaded or run."""


REFUSALS = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    LookupError,
    MemoryError,
    RuntimeError,
    TypeError,
    ValueError,
)
"""What the reference implementation raises for arrays that do not fit, or a variant that it lacks."""

_GREW = {"DequantizeLinear": 21, "QuantizeLinear": 21}
"""Operators that the reference implementation has from an opset on only, and whose older versions are all
part of that one.
"""


def evaluate(node: Node, arrays: Sequence[np.ndarray | None], opset: int) -> list[np.ndarray]:
    """The node's outputs, given one array per input (None for an omitted one), by the rules of that opset.

    Raises one of REFUSALS when the reference implementation lacks the operator or the arrays do not fit.
    """
    from onnx.reference import ReferenceEvaluator  # slow to import, and rarely needed

    model, feeds = node_model(node, arrays, max(opset, _GREW.get(node.op, 1)))
    return [np.asarray(value) for value in ReferenceEvaluator(model).run(None, feeds)]


def node_model(
    node: Node, arrays: Sequence[np.ndarray | None], opset: int
) -> tuple[onnx.ModelProto, dict[str, np.ndarray]]:
    """A model of this node alone, whose inputs are fed with the arrays (None for an omitted one), and the
    feeds.
    """
    names = ["" if array is None else f"input_{index}" for index, array in enumerate(arrays)]
    outputs = [f"output_{index}" for index in range(len(node.outputs))]
    proto = gs.exporters.onnx_exporter.OnnxExporter.export_node(node)
    del proto.input[:], proto.output[:]
    proto.input.extend(names)
    proto.output.extend(outputs)
    typed = [
        onnx.helper.make_tensor_value_info(
            name, onnx.helper.np_dtype_to_tensor_dtype(array.dtype), array.shape
        )
        for name, array in zip(names, arrays, strict=True)
        if array is not None
    ]
    graph = onnx.helper.make_graph(
        [proto], "node", typed, [onnx.ValueInfoProto(name=name) for name in outputs]
    )
    opsets = [onnx.helper.make_opsetid("", opset)]
    model = onnx.helper.make_model(
        graph, opset_imports=opsets, ir_version=onnx.helper.find_min_ir_version_for(opsets)
    )
    return model, {name: array for name, array in zip(names, arrays, strict=True) if array is not None}
