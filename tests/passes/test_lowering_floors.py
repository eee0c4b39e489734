"""A ReLU or Clip behind a fully connected layer whose result stays float: the layer is on integers all the same."""

import re

import numpy as np
import onnx
import pytest

from onnx_lathe.runtime.running import ort
from tests.support.builders import build, random
from tests.support.placement import kernels, lowered, quantized

LAYERS = {
    "MatMul": "m = MatMul (x, w)",
    "Gemm": "m = Gemm (x, w, b)",
    "MatMul and Add": "p = MatMul (x, w)  m = Add (p, b)",
}
FLOORS = {
    "Relu": ("f = Relu (m)", ["Max"]),
    "Clip": ("f = Clip (m, low, high)", ["Max", "Min"]),
    "lower end": ("f = Clip (m, low)", ["Max"]),
    "upper end": ("f = Clip (m, , high)", ["Min"]),
}


def network(layer: str, floor: str) -> onnx.ModelProto:
    lines = f"{LAYERS[layer]}  {FLOORS[floor][0]}  y = Exp (f)"
    constants = {"w": random(32, 8) * 0.1, "b": random(8), "low": np.float32(-0.25), "high": np.float32(0.5)}
    used = {name: value for name, value in constants.items() if re.search(rf"\b{name}\b", lines)}
    return build(f"(float[N, 32] x) => (float[N, 8] y) {{ {lines} }}", **used)


@pytest.mark.parametrize("floor", FLOORS)
@pytest.mark.parametrize("layer", LAYERS)
def test_the_layer_computes_on_integers(layer: str, floor: str) -> None:
    data = random(16, 32)
    model = network(layer, floor)
    canonical = quantized(model, data=data, bias_correction=False)[0]
    result, report = lowered(canonical)
    onnx.checker.check_model(result, full_check=True)
    written = [node.op_type for node in result.graph.node if node.op_type in ("Max", "Min", "Relu", "Clip")]
    assert written == FLOORS[floor][1]
    assert any("stays on integers" in edit.what for edit in report.edits)
    assert kernels(result)["MatMulIntegerToFloat" if layer == "MatMul" else "QGemm"] == 1
    found = ort.run(ort.session(result, threads=1), {"x": data})["y"]
    wanted = ort.run(ort.session(model, threads=1), {"x": data})["y"]
    np.testing.assert_allclose(found, wanted, rtol=0.03)


def test_a_relu_that_is_the_end_of_a_range_is_none_of_them() -> None:
    text = "(float[N, 32] x) => (float[N, 8] y) { m = MatMul (x, w)  f = Relu (m)  y = MatMul (f, v) }"
    model = build(text, w=random(32, 8), v=random(8, 8))
    result, _ = lowered(quantized(model, data=random(16, 32))[0])
    assert not {"Max", "Min"} & {node.op_type for node in result.graph.node}


def test_a_clip_without_ends_stays() -> None:
    text = "(float[N, 32] x) => (float[N, 8] y) { m = MatMul (x, w)  f = Clip (m)  y = Exp (f) }"
    result, _ = lowered(quantized(build(text, w=random(32, 8)), data=random(16, 32))[0])
    assert "Clip" in {node.op_type for node in result.graph.node}
