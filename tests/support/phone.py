"""The phone form in tests: made of an INT8 model, and looked things up in."""

import onnx

from onnx_lathe.passes.core.report import PassReport
from onnx_lathe.passes.core.services import Calibrator, Context
from onnx_lathe.passes.graph.model import export_model, import_model
from onnx_lathe.passes.lowering.phone import lower_to_phone_form
from onnx_lathe.placement import PHONE
from tests.support.int8 import Form

QUANTIZERS = ("QuantizeLinear", "DequantizeLinear")


def phone_form(
    model: onnx.ModelProto, calibrator: Calibrator | None = None, **operators: object
) -> tuple[onnx.ModelProto, PassReport]:
    graph = import_model(model)
    context = Context(placement=PHONE, calibrator=calibrator)
    report = lower_to_phone_form(graph, context, **operators)  # type: ignore[arg-type]
    result = export_model(graph)
    onnx.checker.check_model(result, full_check=True)
    return result, report


class Stored(Form):
    """Looks up what tensors are stored with."""

    def parameters(self, tensor: str) -> tuple[float, int, str]:
        """(scale, zero-point, type) of the pair that stands behind the tensor, or that it comes from."""
        behind = [node for node in self.nodes if tensor in node.input and node.op_type == "QuantizeLinear"]
        node = behind[0] if behind else self.producers[tensor]
        assert node.op_type in QUANTIZERS, f"{tensor} comes from {node.op_type}"
        scale, zero = (self.constants[name] for name in node.input[1:])
        return float(scale), int(zero), str(zero.dtype)
