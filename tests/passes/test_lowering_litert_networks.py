"""Whole networks lowered for LiteRT: those of the `onnx` package, in float, and quantized ones of the tests."""

from pathlib import Path

import numpy as np
import onnx
import pytest

from onnx_lathe.optimizer.api import rewrite
from onnx_lathe.passes.core.services import Context
from onnx_lathe.passes.graph.model import export_model, import_model
from onnx_lathe.passes.loading.preparing import prepare
from onnx_lathe.passes.lowering.phone import lower_to_phone_form
from onnx_lathe.placement import PHONE
from tests.support.channels_last import assert_same, lower, transposes
from tests.support.models import load_foreign, shipped_with_onnx
from tests.support.placement import IMAGES, MOBILE, RESIDUAL, network, quantized

QUICK = ("light_inception_v1", "light_squeezenet", "light_zfnet512")
LIGHT = [
    pytest.param(path, marks=[] if path.stem in QUICK else pytest.mark.slow, id=path.stem)
    for path in shipped_with_onnx("light/light_*.onnx")
]
SHUFFLED = {"light_shufflenet": 17}
"""Transposes of networks that shuffle their channels: one more for each of those that they have."""


@pytest.mark.parametrize("path", LIGHT)
def test_light_models(path: Path) -> None:
    model = load_foreign(path, thinner=8)
    prepare(model)
    lowered = lower(model)
    assert len(transposes(lowered)) == SHUFFLED.get(path.stem, 1)
    stored = {tensor.name for tensor in model.graph.initializer}
    (image,) = [value for value in model.graph.input if value.name not in stored]
    shape = [dim.dim_value for dim in image.type.tensor_type.shape.dim]
    values = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    assert_same(model, lowered, {image.name: values})


@pytest.mark.parametrize("text", [RESIDUAL, MOBILE], ids=["residual", "mobile"])
@pytest.mark.parametrize("opset", [17, 21])
def test_integers_are_those_of_the_form_of_phones(text: str, opset: int) -> None:
    """To the step, and what is transposed is a tensor of bytes."""
    model = quantized(network(text, opset), PHONE)[0]
    graph = import_model(model)
    lower_to_phone_form(graph, Context(placement=PHONE))
    lowered = lower(model, placement=PHONE)
    (entry,) = transposes(lowered)
    maker = next(node for node in lowered.graph.node if entry.input[0] in node.output)
    assert maker.op_type == "QuantizeLinear"
    assert_same(export_model(graph), lowered, {"x": IMAGES}, tolerance=1e-6)


def test_a_weight_alone_stays_in_integers() -> None:
    model = network(RESIDUAL, 21)
    stored = rewrite(model, "int8(activations=false)")
    lowered = lower(stored)
    decoders = [node for node in lowered.graph.node if node.op_type == "DequantizeLinear"]
    assert len(decoders) == sum(node.op_type == "DequantizeLinear" for node in stored.graph.node) > 0
    assert_same(stored, lowered, {"x": IMAGES})
    onnx.checker.check_model(lowered)
