"""Mixed precision: initializers and the nodes that read them become float16, and float32 stays where
float16 would not do.

    x -> Conv(W f32) -> Relu -> Softmax -> y      becomes
    x -> Cast -> Conv(W f16) -> Relu -> Cast -> Softmax -> y

A node stays in float32 if ONNX has no float16 form of it, if a constant that it reads is beyond 65504 or
loses too many bits, if on calibration data a tensor that it reads or writes leaves float16's range, and if
it sums or exponentiates (option keep). Without calibration data the constants alone decide. Inputs and
outputs of the model stay float32, so that a caller notices nothing.
Source: Micikevicius et al., "Mixed Precision Training", ICLR 2018, section 3, for what must stay in
float32.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from onnx_lathe.passes.core.base import Pass
from onnx_lathe.passes.core.options import option
from onnx_lathe.passes.core.registry import register
from onnx_lathe.passes.core.report import PassReport
from onnx_lathe.passes.core.services import Context
from onnx_lathe.passes.float16.bodies import store_half
from onnx_lathe.passes.float16.choice import Choice
from onnx_lathe.passes.float16.ports import QUANTIZERS, Ports
from onnx_lathe.passes.float16.writer import Borders, write_half
from onnx_lathe.passes.graph import Constant, Graph
from onnx_lathe.passes.graph.constants import constant_to_initializer
from onnx_lathe.passes.graph.initializers import read
from onnx_lathe.passes.graph.model import sparse_tensors
from onnx_lathe.passes.graph.opset import raise_opset
from onnx_lathe.passes.graph.rewire import captured_names, is_output
from onnx_lathe.passes.graph.shapes import infer_types
from onnx_lathe.passes.numerics.quantization import half

SCALES_OPSET = 19
"""The first opset whose QuantizeLinear and DequantizeLinear take float16."""

_FLOAT32_WEIGHTS = "it works on float32 weights"


@register
class Float16(Pass):
    """Stores weights in float16 and computes in it, but where that would overflow or lose accuracy."""

    name = "float16"
    takes_half = True
    after = {
        "fold": "a folded batch normalization has other weights, and Constant nodes must be initializers",
        "prune": _FLOAT32_WEIGHTS,
        "prune_channels": _FLOAT32_WEIGHTS,
        "prune_nm": _FLOAT32_WEIGHTS,
        "svd": _FLOAT32_WEIGHTS,
        "tensor_train": _FLOAT32_WEIGHTS,
        "tucker": _FLOAT32_WEIGHTS,
        "equalize": _FLOAT32_WEIGHTS,
        "codebook": "shared values are chosen among float32 weights; float16 then rounds the codebook",
        "int8": "ranges are measured in float32; float16 then takes the layers that stay float, and the scales",
        "int4": "groups are quantized from float32 weights; float16 then halves their scales",
    }

    @dataclass(frozen=True)
    class Config:
        ranges: str = option(
            "auto",
            "what finds overflow: calibration data if there is any, always, or never",
            choices=("auto", "data", "weights"),
        )
        margin: float = option(
            4.0, "how far beyond calibrated values a tensor may go without overflow, as a factor", low=1.0
        )
        max_error: float = option(
            1e-3,
            "root of the energy that a constant may lose, relative; rounding alone takes 0.0003",
            low=0.0,
        )
        keep: dict[str, bool] = option(
            {}, "stay in float32 (true) or not (false), by pattern of node, operator or tensor names"
        )

    def __init__(self, config: Any = None) -> None:
        super().__init__(config)
        if self.config.ranges == "data":
            self.needs = ("calibrator",)

    def apply(self, graph: Graph, context: Context) -> PassReport:
        report = PassReport()
        _take_up_constants(graph)
        if graph.opset < SCALES_OPSET and any(
            node.op in QUANTIZERS and not node.domain for node in graph.nodes
        ):
            # where it cannot be raised, Q/DQ and their layers stay in float32, with that reason
            raise_opset(graph, SCALES_OPSET)
        types = infer_types(graph)
        choice = Choice(graph, types)
        choice.by_name(self.config.keep)
        choice.by_whole_numbers()
        choice.by_operands()
        choice.by_constants(self.config.max_error)
        if self.config.ranges == "data" or (self.config.ranges == "auto" and context.calibrator is not None):
            context.progress("measuring ranges")
            choice.by_ranges(context.need_calibrator(), self.config.margin)
        choice.by_pairs()
        choice.by_gain()
        for name, reason in choice.reasons.items():
            report.skip(name, reason)
        if choice.ports:
            borders = Borders(graph, choice.ports, types)
            _describe(graph, borders, report)
            report.metrics["casts"] = write_half(borders)
        store_half(graph, self.config.max_error, report)
        report.metrics |= {"float16_nodes": len(choice.ports), "float32_nodes": len(choice.reasons)}
        return report


def _take_up_constants(graph: Graph) -> None:
    """Constant nodes of float32 tensors become initializers."""
    captured = captured_names(graph)
    for node in graph.nodes:
        if (
            node.op == "Constant"
            and not node.domain
            and not is_output(graph, node.outputs[0])
            and node.outputs[0].name not in captured
        ):
            constant_to_initializer(node)
    graph.nodes = [node for node in graph.nodes if node.outputs]


def _describe(graph: Graph, borders: Borders, report: PassReport) -> None:
    """An edit per node with constants: what they lose. New zeros of a tensor named in `lathe.sparse` do not
    go unsaid.
    """
    sparse, told = sparse_tensors(graph), set[str]()
    zeros = subnormals = 0
    for node in graph.nodes:
        ports: Mapping[str, Ports] = borders.half
        said = []
        for index in sorted(ports[node.name].inputs) if node.name in ports else ():
            tensor = node.inputs[index]
            if not isinstance(tensor, Constant) or tensor.name in told or not borders.is_stored_half(tensor):
                continue
            told.add(tensor.name)
            lost = half.rounding(read(tensor))
            zeros, subnormals = zeros + lost.zeros, subnormals + lost.subnormals
            what = [f"{tensor.name} is float16"]
            what += [
                f"{lost.zeros} small values became zero{' beside those that must stay' * (tensor.name in sparse)}"
            ] * (lost.zeros > 0)
            what += [f"{lost.subnormals} values have fewer bits"] * (lost.subnormals > 0)
            said.append(", ".join(what))
        if said:
            report.edit(node.name, "; ".join(said))
    report.metrics |= {"new_zeros": zeros, "subnormals": subnormals}
