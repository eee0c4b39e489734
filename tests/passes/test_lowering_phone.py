"""The form of the runtimes of phones: every tensor stored in INT8."""

import numpy as np
import onnx
import pytest

from onnx_lathe.passes.core.report import PassReport
from onnx_lathe.passes.core.services import Context
from onnx_lathe.passes.graph.model import export_model, import_model
from onnx_lathe.passes.lowering.phone import lower_to_phone_form
from onnx_lathe.placement import PHONE, Placement
from tests.support.builders import run
from tests.support.int8 import Form
from tests.support.placement import IMAGES, MOBILE, RESIDUAL, network, output, quantized, relative


def phone_form(model: onnx.ModelProto, placement: Placement = PHONE) -> tuple[onnx.ModelProto, PassReport]:
    graph = import_model(model)
    report = lower_to_phone_form(graph, Context(placement=placement))
    result = export_model(graph)
    onnx.checker.check_model(result, full_check=True)
    return result, report


@pytest.mark.parametrize("text", [RESIDUAL, MOBILE], ids=["residual", "mobile"])
@pytest.mark.parametrize("opset", [17, 21])
def test_every_tensor_is_stored_and_onnx_runtime_computes_it(text: str, opset: int) -> None:
    model = network(text, opset)
    lowered, report = phone_form(quantized(model, PHONE)[0])
    assert report.metrics["float_layers"] == 0
    decoded = {n.output[0] for n in lowered.graph.node if n.op_type == "DequantizeLinear"}
    for node in lowered.graph.node:
        if node.op_type not in ("QuantizeLinear", "DequantizeLinear"):
            assert all(name in decoded for name in node.input if _is_activation(lowered, name)), node.name
    assert relative(output(model), output(lowered)) < 0.05


def _is_activation(model: onnx.ModelProto, name: str) -> bool:
    return name != "" and name not in {tensor.name for tensor in model.graph.initializer}


def test_relus_are_the_end_of_the_range() -> None:
    lowered, _ = phone_form(quantized(network(RESIDUAL), PHONE)[0])
    form = Form(lowered)
    assert "Relu" not in form.ops()
    stem = form.layer("Conv")
    quantize = next(node for node in form.nodes if node.input[0] == stem.output[0])
    assert form.constants[quantize.input[2]] == -128


def test_bias_is_int32_in_units_of_both_scales() -> None:
    lowered, _ = phone_form(quantized(network(RESIDUAL), PHONE)[0])
    form = Form(lowered)
    for layer in (node for node in form.nodes if node.op_type in ("Conv", "Gemm")):
        source, weight, bias = (form.producers[name] for name in layer.input)
        assert form.constants[bias.input[0]].dtype == np.int32
        wanted = form.constants[source.input[1]] * form.constants[weight.input[1]]
        np.testing.assert_allclose(form.constants[bias.input[1]], wanted, rtol=1e-6)


def test_a_model_without_quantized_layers_stays() -> None:
    model = network(RESIDUAL)
    lowered, report = phone_form(model)
    assert not report.edits
    x = {"x": IMAGES}
    np.testing.assert_array_equal(run(model, x)["y"], run(lowered, x)["y"])
