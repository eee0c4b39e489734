"""Canonical INT8 form -> the form of the runtimes that store every tensor in INT8: LiteRT and QNN.

    x -> Q -> DQ -> Conv -> Relu -> Add(r) -> ...     x -> Q -> DQ -> Conv -> Q -> DQ -> Add -> Q -> DQ -> ...
    pair, INT8 with zero-point 0                      INT8 over the calibrated range, with a zero-point
    Relu, Clip(0, m) behind what stores a tensor      gone: the lowest level of the pair is 0, the highest at most m
    MaxPool, Reshape, Slice, Resize, Split, ...       one scale and zero-point before and behind
    Concat                                            one for all parts, those that it would store too coarsely have
                                                      another pair in front
    Sigmoid, Softmax; Tanh                            scale 1/256, zero-point -128; scale 1/128, zero-point 0
    a pair of INT16, and what lies between such       INT16, zero-point 0, ReLUs in front of the pair
    weight                                            INT8 initializer -127 to 127 -> DQ, a scale per output channel
    bias                                              INT32 initializer -> DQ, in units of input scale times weight scale
    MatMul of a matrix, Add of a bias                 Gemm
    constant operand of Add, Sub, Mul                 INT8 initializer -> DQ
    HardSigmoid, where `operators` lack it            x * alpha + beta
    ReLU that another tool's pair does                a ReLU, where no stored range does it: phone_form/foreign.py
    a layer in float, an operator without such a form stays; it reads DQ, and what reads it in INT8 has a pair in front

`lower_to_phone_form(graph, context, operators=OPERATORS) -> PassReport` changes `graph` in place, for other lowerings
to call on their copy; its `context.placement` says which layers are INT8, its `context.calibrator`, if there is one,
gives the ranges that the graph lacks, and with `context.fidelity` biases that fit this form. A tensor that a kernel computes keeps its name behind its pair: the output of
the DequantizeLinear has it, so ONNX Runtime's values of these names are what a runtime is to store. The result has no
`lathe.range` any more. It loads in ONNX Runtime as it is, and computes what the runtimes do, to the step.

Source: the quantization specification of LiteRT; what its kernels and QNN's do otherwise was tried
(passes/lowering/phone_form/operators.py).
"""

import math
from collections.abc import Collection

import numpy as np

from onnx_lathe.passes.core.report import PassReport
from onnx_lathe.passes.core.services import Context
from onnx_lathe.passes.float16.lifting import lift
from onnx_lathe.passes.graph import Graph
from onnx_lathe.passes.graph.constants import constant_to_initializer
from onnx_lathe.passes.graph.layers import WEIGHT_INPUT, is_constant, is_layer
from onnx_lathe.passes.graph.model import export_model, import_model
from onnx_lathe.passes.graph.quantization.bias_range import fit_biases
from onnx_lathe.passes.graph.quantization.pairs import is_dequantized, state_zero_points
from onnx_lathe.passes.graph.quantization.propagation import keep_loadable
from onnx_lathe.passes.graph.quantization.ranges import drop_ranges
from onnx_lathe.passes.graph.rewire import sweep
from onnx_lathe.passes.lowering.biases import Shifts, bias_shifts, canonical_layers, move_biases
from onnx_lathe.passes.lowering.ort_integers.work import Work
from onnx_lathe.passes.lowering.phone_form.choice import Choice
from onnx_lathe.passes.lowering.phone_form.foreign import cut_off
from onnx_lathe.passes.lowering.phone_form.gates import GATE, split_gates
from onnx_lathe.passes.lowering.phone_form.known import complete_ranges, settle_silent, take_pairs
from onnx_lathe.passes.lowering.phone_form.layers import join_addition, plain_bias, store_bias, store_weight
from onnx_lathe.passes.lowering.phone_form.operators import OPERATORS
from onnx_lathe.passes.lowering.phone_form.scales import Scales
from onnx_lathe.passes.lowering.phone_form.writing import write
from onnx_lathe.passes.lowering.restoring import restore_weight

UNPAIRED = "its input '{}' is decoded from integers that no QuantizeLinear of one scale writes for it alone"


def lower_to_phone_form(graph: Graph, context: Context, operators: Collection[str] = OPERATORS) -> PassReport:
    """Brings the graph into the form, in place. A graph without quantized layers stays as it is.

    operators: those without weights that the runtime computes on integers, the others compute in float. The report
    says of each node between integers why it computes in float; metrics: `stored` tensors in INT8, `float_layers`.
    Raises ModelError for malformed metadata.
    """
    if not any(is_layer(node) and is_dequantized(node.inputs[WEIGHT_INPUT]) for node in graph.nodes):
        return PassReport()
    lifted = lift(graph) is not None
    report = _lower(graph, context, operators, _better_shifts(graph, context, operators))
    if lifted:
        report.edit(graph.name or "the model", "computes in float32 what it does not on integers")
    return report


def _better_shifts(graph: Graph, context: Context, operators: Collection[str]) -> Shifts:
    """What biases are to be moved by, where they make up for the errors of a form that another target computes: as
    far as the outputs on calibration data are nearer to the original's then.
    """
    if context.calibrator is None or context.fidelity is None:
        return {}
    model = export_model(graph)
    copy = import_model(model)
    work = Work(copy, context.placement)
    shifts = bias_shifts(work, canonical_layers(copy), context.calibrator)
    if not any(change.any() for change in shifts.values()):
        return {}
    found = []
    for tried in ({}, shifts):
        copy = import_model(model)
        _lower(copy, context, operators, tried)
        found.append(context.fidelity.sqnr(export_model(copy)))
    asis, moved = (-math.inf if one is None else one for one in found)
    return shifts if moved > asis else {}


def _lower(graph: Graph, context: Context, operators: Collection[str], shifts: Shifts) -> PassReport:
    work = Work(graph, context.placement)
    state_zero_points(graph, work.report)
    for node in graph.nodes:
        if node.op == "Constant" and not work.is_seen(node.outputs[0]):
            constant_to_initializer(node)
    move_biases(work, canonical_layers(graph) if shifts else [], shifts)
    model = None if context.calibrator is None else export_model(graph)
    known = take_pairs(work)
    complete_ranges(work, known, context, model)
    settle_silent(known)
    choice = Choice(work, known, {*operators, GATE})
    kernels = split_gates(work, known, choice.kernels(), operators)
    for node, _ in choice.refused.values():
        restore_weight(graph, node)
        work.report.edit(node.name, "has a float weight")
    for node in graph.nodes:
        if is_layer(node) and id(node) not in known.layers and all(map(is_dequantized, node.inputs[:2])):
            work.report.skip(node.name, f"{UNPAIRED.format(node.inputs[0].name)}: it computes in float")
    layers = [kernel for kernel in kernels if kernel.is_layer]
    for kernel in layers:
        join_addition(work, kernel)
    scales = Scales(kernels, known, graph.opset)
    cut_off(work, known.taken, write(work, kernels, scales))
    for kernel in layers:
        store_weight(work, kernel.node)
        plain_bias(work, kernel)
    sweep(graph)
    fit_biases(graph, work.report)
    for kernel in layers:
        store_bias(work, kernel)
        work.report.edit(kernel.node.name, "stores what it reads and writes in INT8 over its range")
    drop_ranges(graph)
    sweep(graph)
    keep_loadable(graph)
    graph.toposort()
    work.report.metrics["float_layers"] = float(
        sum(is_layer(node) and is_constant(node.inputs[WEIGHT_INPUT]) for node in graph.nodes) - len(layers)
    )
    work.report.metrics["stored"] = float(
        sum(node.op == "QuantizeLinear" and node.outputs[0].dtype != np.float32 for node in graph.nodes)
    )
    return work.report
