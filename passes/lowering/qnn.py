"""Canonical form -> what the compiler for Qualcomm's HTP takes as a whole.

    INT8                       the form of passes/lowering/phone.py, with more operators on integers
    its pairs, INT8            UINT8, with 128 added to levels and zero-points: the same values, and all operators take it
    its pairs, INT16           UINT16 likewise
    layer -> Relu, Clip -> Q   layer -> Q -> DQ -> Relu -> Q, of 16 bits, which end where the Clip does, and not at 0
    float                      stays: the chip computes it in float16
    a float operator between   reads DequantizeLinear, and QuantizeLinear stands behind it

Why: a layer whose result is not quantized is computed in float16 without a word, and the DequantizeLinear of its weight is
left to the CPU, which a file for the chip alone cannot have. Between INT8 pairs HTP refuses HardSigmoid, LeakyRelu,
LogSoftmax and Neg, and pads with other values than 0.
Source: onnxruntime-qnn 2.7, tried operator by operator in its simulator; there operators between UINT8 pairs differ from
ONNX Runtime by 3 steps at most, between UINT16 by 7, of 65536 levels, but HardSwish (227), Sigmoid and Softmax (3000).
"""

from collections.abc import Collection
from typing import Any

import numpy as np

from onnx_lathe.passes.core.base import Pass
from onnx_lathe.passes.core.report import PassReport
from onnx_lathe.passes.core.services import Context
from onnx_lathe.passes.graph import Constant, Graph, Node, Variable
from onnx_lathe.passes.graph.layers import is_layer
from onnx_lathe.passes.graph.model import free_name
from onnx_lathe.passes.graph.quantization.placement import floor_range, is_floor
from onnx_lathe.passes.graph.rewire import captured_names, is_output
from onnx_lathe.passes.lowering.phone import lower_to_phone_form
from onnx_lathe.passes.lowering.phone_form.operators import OPERATORS

INTEGER = frozenset({"Div", "HardSigmoid", "Max", "Min", "Selu", "Softplus"})
"""Operators that HTP computes on integers, to 2 steps of ONNX Runtime's, and LiteRT does not."""
UNSIGNED: dict[Any, Any] = {np.dtype(np.int8): np.dtype(np.uint8), np.dtype(np.int16): np.dtype(np.uint16)}
ROUNDING = 1e-6
"""Of a scale in float32."""
QUANTIZERS = ("QuantizeLinear", "DequantizeLinear")


class Lowering(Pass):
    name = "lower-qnn"
    takes_half = True

    def apply(self, graph: Graph, context: Context) -> PassReport:
        report = lower_to_phone_form(graph, context, OPERATORS | INTEGER)
        if report.edits:
            _store_before_floors(graph)
            _make_unsigned(graph)
            graph.toposort()
        return report


def _store_before_floors(graph: Graph) -> None:
    """A layer's result behind a pair of its own, that of what its ReLU writes. HTP computes other values for a Clip
    between 16 bits; the end of the range does what the ReLU leaves of it.
    """
    for floor in [node for node in graph.nodes if is_floor(node)]:
        source, (least, most) = floor.inputs[0], floor_range(floor)
        readers = floor.outputs[0].outputs
        if not source.inputs or source.inputs[0].op in QUANTIZERS or len(source.outputs) != 1:
            continue
        if not readers or not all(_is_signed(node) and node.op == "QuantizeLinear" for node in readers):
            continue
        given = readers[0].inputs[1:]
        codes = Variable(free_name(graph, f"{source.name}_codes"), given[1].dtype, source.shape)
        result = Variable(free_name(graph, f"{source.name}_stored"), np.float32, source.shape)
        names = [free_name(graph, f"{source.name}_{op}") for op in QUANTIZERS]
        graph.nodes += [
            Node("QuantizeLinear", names[0], {}, [source, *given], [codes]),
            Node("DequantizeLinear", names[1], {}, [codes, *given], [result]),
        ]
        floor.inputs[0] = result
        end = np.iinfo(given[1].dtype).max * float(given[0].values.item())
        if least == 0 and most is not None and end <= most * (1 + ROUNDING):
            floor.op, floor.attrs, floor.inputs = "Relu", {}, [result]


def _make_unsigned(graph: Graph) -> None:
    """Activations, constant ones too. Weights of layers stay: they are INT8 around zero. So do integers that others
    see than DequantizeLinear, such as an output of the model.
    """
    captured = captured_names(graph)
    weights = {
        id(tensor.inputs[0])
        for node in graph.nodes
        if is_layer(node)
        for tensor in node.inputs[1:]
        if tensor.inputs
    }
    chosen = [
        part
        for node in graph.nodes
        if node.op == "QuantizeLinear" and _is_closed(graph, node, captured)
        for part in (node, *node.outputs[0].outputs)
    ]
    chosen += [
        node
        for node in graph.nodes
        if _is_signed(node)
        and node.op == "DequantizeLinear"
        and isinstance(node.inputs[0], Constant)
        and id(node) not in weights
    ]
    made: dict[int, Constant] = {}

    def shifted(constant: Constant) -> Constant:
        if id(constant) not in made:
            signed = np.dtype(constant.values.dtype)
            values = constant.values.astype(np.int32) - np.iinfo(signed).min
            name = free_name(graph, f"{constant.name}_unsigned")
            made[id(constant)] = Constant(name, np.asarray(values).astype(UNSIGNED[signed]))
        return made[id(constant)]

    for node in chosen:
        node.inputs[2] = shifted(node.inputs[2])
        if isinstance(node.inputs[0], Constant):
            node.inputs[0] = shifted(node.inputs[0])
        if node.op == "QuantizeLinear":
            node.outputs[0].dtype = node.inputs[2].values.dtype
            node.attrs.pop("output_dtype", None)  # the zero-point says it


def _is_closed(graph: Graph, node: Node, captured: Collection[str]) -> bool:
    """Whether nobody but DequantizeLinear sees the integers that a QuantizeLinear writes."""
    codes = node.outputs[0]
    if not _is_signed(node) or is_output(graph, codes) or codes.name in captured:
        return False
    return all(one.op == "DequantizeLinear" and _is_signed(one) for one in codes.outputs)


def _is_signed(node: Node) -> bool:
    """Whether it quantizes to, or dequantizes from, signed integers with a zero-point."""
    if node.op not in QUANTIZERS or node.domain or len(node.inputs) < 3:
        return False
    zero = node.inputs[2]
    return isinstance(zero, Constant) and zero.values.dtype in UNSIGNED
