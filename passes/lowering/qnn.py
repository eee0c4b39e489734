"""Canonical form -> what the compiler for Qualcomm's HTP takes as a whole.

    INT8                                   the form of passes/lowering/phone.py, with more operators on integers
    float                                  stays: the chip computes it in float16
    a float operator between integers      reads DequantizeLinear, and QuantizeLinear stands behind it

Why: a layer whose result is not quantized is computed in float16 without a word, and the DequantizeLinear of its weight is
left to the CPU, which a file for the chip alone cannot have.
Source: onnxruntime-qnn 2.7, tried operator by operator in its simulator.
"""

from onnx_lathe.passes.core.base import Pass
from onnx_lathe.passes.core.report import PassReport
from onnx_lathe.passes.core.services import Context
from onnx_lathe.passes.graph import Graph
from onnx_lathe.passes.lowering.phone import lower_to_phone_form
from onnx_lathe.passes.lowering.phone_form.operators import OPERATORS

INTEGER = frozenset({"Div", "HardSigmoid", "Max", "Min", "Mish", "Selu", "Softplus"})
"""Operators that HTP computes on integers, to 2 steps of ONNX Runtime's, and LiteRT does not."""


class Lowering(Pass):
    name = "lower-qnn"
    takes_half = True

    def apply(self, graph: Graph, context: Context) -> PassReport:
        return lower_to_phone_form(graph, context, OPERATORS | INTEGER)
