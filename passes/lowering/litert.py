"""Any form -> what is written for LiteRT: channels last, in valid ONNX that computes the same.

    image operators in sandwiches:   x[N,H,W,C] -> Transpose(0,3,1,2) -> Conv -> [Relu] -> Transpose(0,2,3,1) -> y[N,H,W,C]
      in one dimension:              x[N,L,C] -> Transpose(0,2,1) -> Conv -> [Relu] -> Transpose(0,2,1) -> y[N,L,C]
      pairs outside:                 Q -> DQ -> Transpose -> Conv(DQ(w), DQ(b)) -> [Relu] -> Transpose -> Q -> DQ
    other operators                  on the tensors that LiteRT will have: axes, pads, scales, shapes, constants in its order
    Flatten -> Gemm, MatMul          the weight has its rows in the order of [H,W,C]
    a constant, a codebook weight    an initializer, or DequantizeLinear of one
    a graph that int8 quantized      in the form of passes/lowering/phone.py first
    If(condition that is known)      the body that runs, see passes/graph/branches.py
    float16                          float32; the writer stores in half what half holds

Image operators are Conv, ConvTranspose, MaxPool, AveragePool, LRN, InstanceNormalization, GroupNormalization,
DepthToSpace and SpaceToDepth of one or two dimensions. The two Transposes belong to the operator alone, the activation
between them may be a Relu, Clip(0, 6) or Clip(-1, 1), and weights stay as ONNX has them. Every other Transpose is one
that LiteRT runs: they move as few bytes as can be (litert_layout/choice.py), and are Reshapes where only axes of size 1
move. What is restated in other operators: litert_layout/restating.py. Tensors of rank 5 and more, bodies of If, Loop and
Scan with what they capture, and operators unknown here keep the axes that they have.
"""

import json
from dataclasses import dataclass

from onnx_lathe import metadata
from onnx_lathe.passes.core.base import Pass
from onnx_lathe.passes.core.options import option
from onnx_lathe.passes.core.report import PassReport
from onnx_lathe.passes.core.services import Context
from onnx_lathe.passes.float16.lifting import lift
from onnx_lathe.passes.graph import Graph
from onnx_lathe.passes.graph.branches import take_branches
from onnx_lathe.passes.lowering.litert_layout.layout import lay_out
from onnx_lathe.passes.lowering.litert_layout.preparing import store_constants
from onnx_lathe.passes.lowering.phone import lower_to_phone_form


class Lowering(Pass):
    name = "lower-litert"
    takes_half = True

    @dataclass(frozen=True)
    class Config:
        layout: str = option(
            "keep",
            "inputs and outputs that are images: as in the model, or channels last",
            choices=("keep", "nhwc"),
        )
        branches: dict[str, bool] = option({}, "condition of an If -> what it always is")

    def apply(self, graph: Graph, context: Context) -> PassReport:
        report = PassReport()
        if self.config.branches:
            take_branches(graph, self.config.branches, report)
        if lift(graph) is not None:
            report.edit(
                graph.name or "the model", "computes in float32; its weights may be float16 in the file"
            )
        store_constants(graph, report)
        _add(report, lower_to_phone_form(graph, context))
        if turned := lay_out(graph, report, keep_ends=self.config.layout == "keep"):
            graph.metadata[metadata.CHANNELS_LAST] = json.dumps(turned)
        return report


def _add(report: PassReport, part: PassReport) -> None:
    report.edits += part.edits
    report.skips += part.skips
    report.metrics |= part.metrics
    report.warnings += part.warnings
