"""Computes one node on constant arrays, with the reference implementation of the ONNX standard."""

from collections.abc import Sequence

import numpy as np
import onnx
import onnx_graphsurgeon as gs

from onnx_lathe.passes.graph import Node

REFUSALS = (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)
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
    model = onnx.helper.make_model(
        graph, opset_imports=[onnx.helper.make_opsetid("", max(opset, _GREW.get(node.op, 1)))]
    )
    feeds = {name: array for name, array in zip(names, arrays, strict=True) if array is not None}
    return [np.asarray(value) for value in ReferenceEvaluator(model).run(None, feeds)]
