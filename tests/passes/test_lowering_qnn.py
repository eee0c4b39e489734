"""What the compiler for HTP takes as a whole: UINT8 and UINT16 pairs everywhere."""

import numpy as np
import onnx
import pytest

from onnx_lathe.passes.core.services import Context
from onnx_lathe.passes.graph.model import export_model, import_model
from onnx_lathe.passes.lowering.phone import lower_to_phone_form
from onnx_lathe.passes.lowering.phone_form.operators import OPERATORS
from onnx_lathe.passes.lowering.qnn import INTEGER
from onnx_lathe.placement import PHONE
from onnx_lathe.runtime.targets.qnn.layers import verdicts
from tests.support.builders import build, random, run
from tests.support.int8 import Form
from tests.support.placement import IMAGES, MOBILE, RESIDUAL, lowered, network, output, quantized, relative

FEEDS = {"x": IMAGES}


def lower(text: str, **options: object) -> tuple[onnx.ModelProto, onnx.ModelProto]:
    """(quantized, lowered for QNN)."""
    model, _ = quantized(network(text, 21), PHONE, **options)
    return model, lowered(model, "qnn", PHONE)[0]


def activations(model: onnx.ModelProto) -> set[str]:
    """Types that QuantizeLinear writes."""
    form = Form(model)
    return {form.constants[n.input[2]].dtype.name for n in form.nodes if n.op_type == "QuantizeLinear"}


@pytest.mark.parametrize("text", [RESIDUAL, MOBILE], ids=["residual", "mobile"])
@pytest.mark.parametrize(("bits", "kind", "near"), [(8, "uint8", 0.05), (16, "uint16", 0.005)])
def test_every_layer_is_on_integers_without_a_sign(text: str, bits: int, kind: str, near: float) -> None:
    _, model = lower(text, activation_bits=bits)
    assert all(layer.int8 for layer in verdicts(model))
    assert activations(model) == {kind}
    assert relative(output(network(text, 21)), output(model)) < near


def test_values_are_those_of_the_phone_form() -> None:
    signed, _ = quantized(network(MOBILE, 21), PHONE)
    graph = import_model(signed)
    lower_to_phone_form(graph, Context(placement=PHONE), OPERATORS | INTEGER)
    _, unsigned = lower(MOBILE)
    np.testing.assert_allclose(run(unsigned, FEEDS)["y"], run(export_model(graph), FEEDS)["y"], atol=1e-6)


def test_weights_keep_their_sign() -> None:
    form = Form(lower(RESIDUAL)[1])
    for layer in (node for node in form.nodes if node.op_type in ("Conv", "Gemm")):
        assert form.constants[form.producers[layer.input[1]].input[0]].dtype == np.int8


def test_a_clip_between_16_bits_is_a_relu_behind_a_pair() -> None:
    """The end of the range does the rest, and a pair stands behind the layer, which would else compute in float."""
    form = Form(lower(MOBILE, activation_bits=16)[1])
    assert "Clip" not in form.ops()
    floors = [node for node in form.nodes if node.op_type == "Relu"]
    assert len(floors) == 2
    assert all(form.producers[node.input[0]].op_type == "DequantizeLinear" for node in floors)


def test_a_float_model_stays_as_it_is() -> None:
    model = network(RESIDUAL)
    assert lowered(model, "qnn", PHONE)[0] is model


def test_a_product_of_two_activations_reads_both_without_a_sign() -> None:
    text = """(float[N, 4, 6] x) => (float[N, 4, 4] y) {
        a = MatMul (x, w)  b = MatMul (x, v)  t = Transpose <perm = [0, 2, 1]> (b)  y = MatMul (a, t) }"""
    model = build(text, 21, w=random(6, 5), v=random(6, 5))
    data = np.random.default_rng(1).standard_normal((8, 4, 6)).astype(np.float32)
    after = lowered(quantized(model, PHONE, data)[0], "qnn", PHONE)[0]
    assert activations(after) == {"uint8"}
    assert relative(output(model, data), output(after, data)) < 0.03


@pytest.mark.parametrize("read", ["y = DequantizeLinear (q, s, z)", "y = Conv (x, w)"])
def test_integers_that_are_an_output_keep_their_sign(read: str) -> None:
    text = """(float[N, 3, 12, 12] x) => (float[N, 8, 12, 12] y, int8[N, 8, 12, 12] q) {
        i = QuantizeLinear (x, s, z)  d = DequantizeLinear (i, s, z)  wd = DequantizeLinear (levels, s, z)
        a = Conv (d, wd)  q = QuantizeLinear (a, s, z)  READ }"""
    levels = np.random.default_rng(0).integers(-100, 100, (8, 3, 1, 1)).astype(np.int8)
    constants = {"w": random(8, 3, 1, 1)} if "w)" in read else {}
    model = build(
        text.replace("READ", read), 21, s=np.float32(0.03), z=np.int8(0), levels=levels, **constants
    )
    expected, found = (run(one, FEEDS)["q"] for one in (model, lowered(model, "qnn", PHONE)[0]))
    assert found.dtype == np.int8
    assert relative(expected.astype(np.float32), found.astype(np.float32)) < 0.03
