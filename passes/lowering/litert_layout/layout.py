"""Rewrites a graph to channels last, with as few bytes transposed as can be."""

from onnx_lathe.passes.core.report import PassReport
from onnx_lathe.passes.graph import Graph

# the modules that hold the rules
from onnx_lathe.passes.lowering.litert_layout import axes as axes
from onnx_lathe.passes.lowering.litert_layout import images as images
from onnx_lathe.passes.lowering.litert_layout import layers as layers
from onnx_lathe.passes.lowering.litert_layout import pointwise as pointwise
from onnx_lathe.passes.lowering.litert_layout import views as views
from onnx_lathe.passes.lowering.litert_layout.choice import Chooser
from onnx_lathe.passes.lowering.litert_layout.restating import restate
from onnx_lathe.passes.lowering.litert_layout.storage import channels_last
from onnx_lathe.passes.lowering.litert_layout.tidying import tidy
from onnx_lathe.passes.lowering.litert_layout.work import Work
from onnx_lathe.passes.lowering.litert_layout.writing import Writer


def lay_out(graph: Graph, report: PassReport, keep_ends: bool) -> list[str]:
    """`keep_ends`: inputs and outputs of the graph have the shapes that they had; or else those that are images have
    their channels last. Returns the names of these.
    """
    restate(Work(graph, report))
    work = Work(graph, report)
    choice = Chooser(work, keep_ends).choose()
    writer = Writer(work, choice)
    writer.write()
    tidy(work, writer.own)
    left = [
        one for one in graph.nodes if one.op == "Transpose" and not one.domain and id(one) not in writer.own
    ]
    report.metrics["transposes"] = float(len(left))
    ends = [(end.name, choice.asked.get(id(end))) for end in (*graph.inputs, *graph.outputs)]
    return [name for name, storage in ends if storage is not None and storage == channels_last(storage.rank)]
