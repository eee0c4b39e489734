"""Canonical INT8 form -> what ONNX Runtime's CPU kernels compute on integers.

    activation -> Q -> DQ, INT8, zero-point 0    UINT8 over the calibrated range (`lathe.range`), with a zero-point
    Relu or Clip(0, m) -> Q -> DQ                Q -> DQ with zero-point 0 and a range that ends at m
    x -> MaxPool, Reshape, ... -> Q -> DQ        x -> Q -> DQ -> MaxPool -> Q -> DQ, one scale
    DQ -> Pad, Split, Slice, ... -> Q -> DQ      Pad, Split, Slice, ... -> DQ
    MatMul, Gemm -> Relu, Clip -> not Q          Max and Min for the ReLU or Clip
    codebook weight -> Q -> DQ                   INT8 initializer -> DQ
    a layer that would run in float, or that     float weight, and no pairs around it that serve nothing else
    takes longer on integers than in float, or
    costs the outputs what they keep above
    bias that makes up for the errors above      bias that does so for the errors below

Why: ONNX Runtime makes a QLinearConv only of DQ -> Conv -> Q with nothing in between; saturation of UINT8
at zero-point 0 is the ReLU. What does not become such a kernel runs in float behind DequantizeLinear nodes,
slower than the float model.

An INT8 weight times a UINT8 activation is summed in pairs in 16 bits on x86-64 processors with AVX2 or
AVX-512 but without VNNI, and saturates there. Weights are rounded so that no pair can
(passes/numerics/quantization/pair_sums.py), by int8 already if it knew of the target; `reduce_range` stores
all of them in 7 bits.
Source: ONNX Runtime's documentation, "Quantize ONNX models", "When and why do I need to try U8U8?".
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx

from onnx_lathe.passes.core.base import Pass
from onnx_lathe.passes.core.options import option
from onnx_lathe.passes.core.report import PassReport
from onnx_lathe.passes.core.services import Context
from onnx_lathe.passes.float16.lifting import lift
from onnx_lathe.passes.float16.ports import QUANTIZERS
from onnx_lathe.passes.graph import Graph
from onnx_lathe.passes.graph.constants import constant_to_initializer
from onnx_lathe.passes.graph.layers import WEIGHT_INPUT, is_constant
from onnx_lathe.passes.graph.model import export_model, import_model
from onnx_lathe.passes.graph.quantization.bias_range import fit_biases
from onnx_lathe.passes.graph.quantization.placement import quantized_layers
from onnx_lathe.passes.graph.rewire import sweep
from onnx_lathe.passes.lowering.biases import (
    CanonicalLayer,
    Shifts,
    bias_shifts,
    canonical_layers,
    move_biases,
)
from onnx_lathe.passes.lowering.ort_integers.activations import add_for_gate, hand_on, widen
from onnx_lathe.passes.lowering.ort_integers.choice import Choice, Lowerable, choose
from onnx_lathe.passes.lowering.ort_integers.floats import (
    drop_pairs,
    integer_operators,
    restore_layers,
    shield_layers,
)
from onnx_lathe.passes.lowering.ort_integers.floors import free_results
from onnx_lathe.passes.lowering.ort_integers.layers import bound_sums, store_bias, store_weight
from onnx_lathe.passes.lowering.ort_integers.moves import move_integers
from onnx_lathe.passes.lowering.ort_integers.work import Work


class Lowering(Pass):
    name = "lower-onnxruntime"
    takes_half = True

    @dataclass(frozen=True)
    class Config:
        reduce_range: bool = option(False, "weights of 7 bits, for x86-64 processors without VNNI")

    def apply(self, graph: Graph, context: Context) -> PassReport:
        """Where the context has a profiler, layers that take longer on integers than in float stay float; where
        it can tell how near outputs are to the original's, so do those that cost what the canonical form keeps.
        """
        lifted = _has_half_scales(graph) and lift(graph) is not None
        layers = [node.name for node in quantized_layers(graph) if is_constant(node.inputs[WEIGHT_INPUT])]
        choice = self._choose(graph, layers, context) if layers else Choice()
        report = self._lower(graph, context, choice.floats, choice.shifts)
        report.warnings += choice.warnings
        if lifted:
            report.warnings.append(
                "the model computes in float32 here: ONNX Runtime's INT8 layers have float32 scales alone"
            )
        return report

    def _choose(self, graph: Graph, layers: Sequence[str], context: Context) -> Choice:
        if context.profiler is None and context.fidelity is None:
            return Choice()
        operators = [node.name for node in integer_operators(Work(graph, context.placement))]
        model = export_model(graph)

        def lowered(floats: Collection[str], shifts: Shifts) -> onnx.ModelProto:
            copy = import_model(model)
            self._lower(copy, context, dict.fromkeys(floats, ""), shifts)
            return export_model(copy)

        def shifted(floats: Collection[str]) -> Shifts:
            return self._shifts(import_model(model), context, dict.fromkeys(floats, ""))

        reduced = _with_7_bits(import_model(model), context) if self.config.reduce_range else None
        return choose(Lowerable(model, layers, operators, lowered, shifted, reduced), context)

    def _shifts(self, graph: Graph, context: Context, floats: Mapping[str, str]) -> Shifts:
        """What the biases of the canonical form are to be moved by, with these nodes in float."""
        if context.calibrator is None:
            return {}
        work = Work(graph, context.placement)
        layers = _restored(work, floats)
        sweep(graph)
        return bias_shifts(work, layers, context.calibrator)

    def _lower(self, graph: Graph, context: Context, floats: Mapping[str, str], shifts: Shifts) -> PassReport:
        """`floats`: names of the layers and operators that are to be float, with the reason. `shifts`: of
        biases.
        """
        work = Work(graph, context.placement)
        move_biases(work, _restored(work, floats), shifts)
        followed = hand_on(work)
        graph.toposort()
        for pair in work.pairs():
            widen(work, pair, followed.get(id(pair.quantize)))
        reduced: set[str] = set()
        for node in quantized_layers(graph):
            store_weight(work, node, self.config.reduce_range, reduced)
        fit_biases(graph, work.report)
        sweep(graph)  # ranks are inferred below, of a graph without the pairs that are no longer read
        for node in quantized_layers(graph):
            bound_sums(work, node)
            store_bias(work, node)
        free_results(work)
        shield_layers(work)
        move_integers(work)
        for node in list(graph.nodes):
            if node.op == "HardSigmoid" and not node.domain and node.outputs:
                add_for_gate(work, node)
        sweep(graph)
        return work.report


def _restored(work: Work, floats: Mapping[str, str]) -> list[CanonicalLayer]:
    """Makes float what is to be. Returns the layers as they were in canonical form."""
    _store_constants(work)
    layers = canonical_layers(work.graph)
    restore_layers(work, floats)
    drop_pairs(work, floats)
    return layers


def _with_7_bits(graph: Graph, context: Context) -> onnx.ModelProto:
    """The canonical form with the weights of `reduce_range`."""
    work, reduced = Work(graph, context.placement), set[str]()
    _store_constants(work)
    for node in quantized_layers(graph):
        store_weight(work, node, True, reduced)
    sweep(graph)
    return export_model(graph)


def _store_constants(work: Work) -> None:
    for node in work.graph.nodes:
        if node.op == "Constant" and not work.is_seen(node.outputs[0]):
            constant_to_initializer(node)


def _has_half_scales(graph: Graph) -> bool:
    return any(
        node.op in QUANTIZERS
        and not node.domain
        and len(node.inputs) > 1
        and node.inputs[1].dtype != np.float32
        for node in graph.nodes
    )
