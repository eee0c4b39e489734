"""int8 with activations of 16 bits."""

import numpy as np
import onnx
import pytest

from onnx_lathe.errors import UsageError
from onnx_lathe.passes.core.options import configure
from onnx_lathe.passes.int8.int8 import Int8
from onnx_lathe.placement import CANONICAL, PHONE
from onnx_lathe.runtime.targets.ort.ort import PLACEMENT
from tests.support.int8 import Form
from tests.support.phone import Stored, phone_form
from tests.support.placement import MOBILE, RESIDUAL, lowered, network, output, quantized, relative


def kinds(model: onnx.ModelProto) -> dict[str, str]:
    """Name of each layer's weight -> type of the integers that the layer reads."""
    form = Form(model)
    found = {}
    for node in form.nodes:
        if node.op_type in ("Conv", "Gemm"):
            source = form.producers[node.input[0]]
            zero = form.constants[source.input[2]] if source.op_type == "DequantizeLinear" else np.float32(0)
            found[node.input[1].removesuffix("_dequantized")] = str(zero.dtype)
    return found


def test_activations_are_int16_and_weights_int8() -> None:
    model = network(RESIDUAL)
    wide, _ = quantized(model, PHONE, activation_bits=16)
    assert set(kinds(wide).values()) == {"int16"}
    assert next(entry.version for entry in wide.opset_import if not entry.domain) == 21
    form = Form(wide)
    for node in form.nodes:
        if node.op_type == "QuantizeLinear":
            assert form.constants[node.input[2]] == 0
    for layer in (node for node in form.nodes if node.op_type in ("Conv", "Gemm")):
        weight = form.producers[layer.input[1]]
        assert form.constants[weight.input[0]].dtype == np.int8


@pytest.mark.parametrize("text", [RESIDUAL, MOBILE], ids=["residual", "mobile"])
def test_sixteen_bits_lose_less_in_both_forms_and_onnx_runtime_runs_them(text: str) -> None:
    model = network(text)
    options = {"bias_correction": False}
    expected = output(quantized(model, PHONE, activations=False, **options)[0])  # with the same weights
    errors = {}
    for bits in (8, 16):
        canonical, _ = quantized(model, PHONE, activation_bits=bits, **options)
        errors[bits] = (
            relative(expected, output(canonical)),
            relative(expected, output(phone_form(canonical)[0])),
        )
    assert errors[16][0] < 0.02 * errors[8][0]
    assert errors[16][1] < 0.02 * errors[8][1]


def test_single_layers_are_named_by_pattern() -> None:
    wide, _ = quantized(network(RESIDUAL), PHONE, layer_bits={"sec*": 16})
    assert kinds(wide) == {"stem": "int8", "first": "int8", "second": "int16", "head": "int8"}
    narrow, _ = quantized(network(RESIDUAL), PHONE, activation_bits=16, layer_bits={"head": 8})
    assert kinds(narrow) == {"stem": "int16", "first": "int16", "second": "int16", "head": "int8"}


def test_the_phone_form_stores_16_bits_around_such_a_layer_alone() -> None:
    model = network(RESIDUAL)
    form = Stored(low := phone_form(quantized(model, PHONE, layer_bits={"second": 16})[0])[0])
    layer = next(node for node in form.nodes if node.input[1:2] == ["second"])
    assert form.parameters(layer.input[0])[1:] == (0, "int16")
    assert form.parameters(layer.output[0])[1:] == (0, "int16")
    add = form.layer("Add")
    assert {form.parameters(name)[2] for name in add.input} == {"int8"}
    assert relative(output(model), output(low)) < 0.05


def test_relus_stay_where_no_end_of_the_range_does_them() -> None:
    form = Form(phone_form(quantized(network(RESIDUAL), PHONE, activation_bits=16)[0])[0])
    assert form.ops().count("Relu") == 3


@pytest.mark.parametrize(
    "name, placement", [("tensorrt", CANONICAL), ("ncnn", CANONICAL), ("onnxruntime", PLACEMENT)]
)
def test_other_targets_leave_such_layers_in_float_and_say_why(name: str, placement: object) -> None:
    model = network(RESIDUAL)
    wide, _ = quantized(model, PHONE, activation_bits=16)
    result, report = lowered(wide, name, placement)  # type: ignore[arg-type]
    reasons = {skip.reason for skip in report.skips if skip.node.startswith(("Conv", "Gemm"))}
    assert reasons == {
        "it reads activations of 16 bits, with which this target computes no layer: it stays float"
    }
    assert not {"QuantizeLinear", "DequantizeLinear"} & set(Form(result).ops())
    assert relative(output(model), output(result)) < 0.02


@pytest.mark.parametrize(
    "options, message",
    [
        ({"activation_bits": 12}, r"int8\(activation_bits=\.\.\.\) must be 8 or 16, not 12"),
        ({"layer_bits": {"stem": 4}}, r"int8\(layer_bits=\.\.\.\) must be 8 or 16, not 4"),
        (
            {"activations": False, "activation_bits": 16},
            r"int8\(activations=false\) quantizes no activations, so activation_bits= and layer_bits= say nothing",
        ),
    ],
)
def test_wrong_widths_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        configure(Int8, options)


def test_a_pattern_that_names_nothing_is_refused() -> None:
    with pytest.raises(UsageError, match=r"int8\(layer_bits=\.\.\.\): no weight or layer is named 'steem'"):
        quantized(network(RESIDUAL), PHONE, layer_bits={"steem": 16})
