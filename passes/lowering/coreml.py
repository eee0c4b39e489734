"""Canonical form -> what is written for Core ML.

    float16 or bfloat16                      float32: the option precision says what the program computes in
    Constant                                 initializer
    Q -> DQ without a zero-point             one that is stated
    x -> Q -> DQ before iOS 17 (pairs=false) x: activations cannot be integers there; of another tool's pair the Clip
                                             at the ends of its range stays
    If(condition that is known)              the body that runs, see passes/graph/branches.py

Why: MIL's operations take one type of floats, and `quantize` came with iOS 17. Weights stay as they are: codebooks,
zeros and INT8 have their own forms there.
Source: coremltools, converters/mil/mil/ops/defs.
"""

from dataclasses import dataclass

from onnx_lathe.passes.core.base import Pass
from onnx_lathe.passes.core.options import option
from onnx_lathe.passes.core.report import PassReport
from onnx_lathe.passes.core.services import Context
from onnx_lathe.passes.float16.lifting import lift
from onnx_lathe.passes.graph import Graph
from onnx_lathe.passes.graph.branches import take_branches
from onnx_lathe.passes.graph.constants import constant_to_initializer
from onnx_lathe.passes.graph.quantization.pairs import state_zero_points
from onnx_lathe.passes.graph.rewire import captured_names, is_output, sweep
from onnx_lathe.passes.lowering.dropping import drop_pairs
from onnx_lathe.passes.lowering.restoring import restore_canonical


class Lowering(Pass):
    name = "lower-coreml"
    takes_half = True

    @dataclass(frozen=True)
    class Config:
        branches: dict[str, bool] = option({}, "condition of an If -> what it always is")
        pairs: bool = option(True, "activations stay integers between Q and DQ")

    def apply(self, graph: Graph, context: Context) -> PassReport:
        report = PassReport()
        if self.config.branches:
            take_branches(graph, self.config.branches, report)
        if lift(graph) is not None:
            report.edit(graph.name or "the model", "computes in the type that the option precision says")
        state_zero_points(graph, report)
        captured = captured_names(graph)
        for node in graph.nodes:
            is_seen = node.outputs and (is_output(graph, node.outputs[0]) or node.outputs[0].name in captured)
            if node.op == "Constant" and not is_seen:
                constant_to_initializer(node)
        restore_canonical(graph, context.placement, report)
        if not self.config.pairs:
            drop_pairs(graph, set(), report)
        sweep(graph)
        return report
