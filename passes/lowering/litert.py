"""Any form -> what is written for LiteRT: channels last, in valid ONNX that computes the same.

    image operators (Conv, ConvTranspose, pools, LRN, DepthToSpace, SpaceToDepth) stand in a sandwich:
    x[N,H,W,C] -> Transpose(0,3,1,2) -> Conv -> [Relu, Clip(0,6) or Clip(-1,1)] -> Transpose(0,2,3,1) -> y[N,H,W,C]
    with pairs outside:  Q -> DQ -> Transpose -> Conv(DQ(w), DQ(b)) -> [Relu] -> Transpose -> Q -> DQ
    a graph that int8 quantized is brought into the form of passes/lowering/phone.py first
    in one dimension:    x[N,L,C] -> Transpose(0,2,1) -> Conv -> Transpose(0,2,1) -> y[N,L,C]

Both Transposes belong to the operator alone; weights stay as ONNX has them ([O,I,H,W]). All other operators act on
the tensors that LiteRT will have, and every other Transpose is one that LiteRT runs: as few bytes as can be
(passes/lowering/litert_layout/choice.py); where only axes of size 1 move it is a Reshape. A Gemm or MatMul
behind a flattened image has the rows of its weight in the order of [H,W,C].

What is constant is an initializer, or DequantizeLinear of one; codebooks are decoded. Global pools are ReduceMean and
ReduceMax, BatchNormalization and InstanceNormalization elementwise operators and means; Identity and Dropout are
gone. Tensors of rank 5 and more, bodies of If, Loop and Scan and whatever they capture, and
operators unknown here keep the axes that they have.
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

    def apply(self, graph: Graph, context: Context) -> PassReport:
        report = PassReport()
        if lift(graph) is not None:
            report.edit(graph.name or "the model", "computes in float32; LiteRT's weights may be float16")
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
