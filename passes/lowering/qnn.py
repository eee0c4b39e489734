"""Canonical form -> what the compiler for Qualcomm's HTP takes as a whole.

    INT8                       the form of passes/lowering/phone.py, with more operators on integers
    its pairs, INT8            UINT8, with 128 added to levels and zero-points: the same values, and all operators take it
    float                      stays: the chip computes it in float16
    a float operator between   reads DequantizeLinear, and QuantizeLinear stands behind it

Why: a layer whose result is not quantized is computed in float16 without a word, and the DequantizeLinear of its weight is
left to the CPU, which a file for the chip alone cannot have. HardSigmoid, LeakyRelu, LogSoftmax and Neg are refused between
INT8 pairs.
Source: onnxruntime-qnn 2.7, tried operator by operator in its simulator.
"""

import numpy as np

from onnx_lathe.passes.core.base import Pass
from onnx_lathe.passes.core.report import PassReport
from onnx_lathe.passes.core.services import Context
from onnx_lathe.passes.graph import Constant, Graph, Node
from onnx_lathe.passes.graph.layers import is_layer
from onnx_lathe.passes.graph.model import free_name
from onnx_lathe.passes.lowering.phone import lower_to_phone_form
from onnx_lathe.passes.lowering.phone_form.operators import OPERATORS

INTEGER = frozenset({"Div", "HardSigmoid", "Max", "Min", "Selu", "Softplus"})
"""Operators that HTP computes on integers, to 2 steps of ONNX Runtime's, and LiteRT does not."""
SHIFT = 128


class Lowering(Pass):
    name = "lower-qnn"
    takes_half = True

    def apply(self, graph: Graph, context: Context) -> PassReport:
        report = lower_to_phone_form(graph, context, OPERATORS | INTEGER)
        if report.edits:
            _make_unsigned(graph)
        return report


def _make_unsigned(graph: Graph) -> None:
    """Activations, constant ones too, in UINT8. Weights of layers stay: they are INT8 around zero."""
    weights = {
        id(node.inputs[index].inputs[0])
        for node in graph.nodes
        if is_layer(node)
        for index in range(1, len(node.inputs))
        if node.inputs[index].inputs
    }
    made: dict[int, Constant] = {}

    def shifted(constant: Constant) -> Constant:
        if id(constant) not in made:
            values = np.asarray(constant.values.astype(np.int16) + SHIFT, np.uint8)
            made[id(constant)] = Constant(free_name(graph, f"{constant.name}_unsigned"), values)
        return made[id(constant)]

    for node in graph.nodes:
        if not _is_int8(node) or id(node) in weights:
            continue
        node.inputs[2] = shifted(node.inputs[2])
        if isinstance(node.inputs[0], Constant):
            node.inputs[0] = shifted(node.inputs[0])
        if node.op == "QuantizeLinear":
            node.outputs[0].dtype = np.uint8


def _is_int8(node: Node) -> bool:
    if node.op not in ("QuantizeLinear", "DequantizeLinear") or node.domain or len(node.inputs) < 3:
        return False
    zero = node.inputs[2]
    return isinstance(zero, Constant) and zero.values.dtype == np.int8
