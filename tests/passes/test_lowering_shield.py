"""Layers that stay in float between quantized ones: ONNX Runtime must not round their weights when it loads
the model.
"""

from pathlib import Path

import numpy as np
import onnx
import pytest

from onnx_lathe.runtime.running import ort
from tests.support.builders import build, random
from tests.support.placement import lowered, quantized, relative

IMAGE = "(float[N, 8, 6, 6] x) => (float[N, 8, P, Q] y) {{ a = Conv (x, u)  r = Relu (a)  {layer}  c = Conv (f, v)  y = Conv (c, v) }}"
ROWS = "(float[N, 8] x) => (float[N, 8] y) {{ a = Gemm (x, u)  r = Relu (a)  {layer}  c = MatMul (f, v)  y = MatMul (c, v) }}"
CASES = {
    "Conv": (IMAGE, "f = Conv <pads = [1, 1, 1, 1]> (r, w, b)", (8, 8, 3, 3)),
    "Conv and Relu": (IMAGE, "m = Conv (r, w, b)  f = Relu (m)", (8, 8, 3, 3)),
    "depthwise Conv": (IMAGE, "f = Conv <group = 8> (r, w, b)", (8, 1, 3, 3)),
    "ConvTranspose": (IMAGE, "f = ConvTranspose <strides = [2, 2]> (r, w, b)", (8, 8, 2, 2)),
    "ConvTranspose and Clip": (
        IMAGE,
        "m = ConvTranspose <strides = [2, 2]> (r, w)  f = Clip (m, low)",
        (8, 8, 2, 2),
    ),
    "ConvTranspose in groups": (IMAGE, "f = ConvTranspose <group = 2> (r, w, b)", (8, 4, 2, 2)),
    "Gemm": (ROWS, "f = Gemm (r, w, b)", (8, 8)),
    "Gemm transposed": (ROWS, "f = Gemm <transB = 1> (r, w, b)", (8, 8)),
    "MatMul and Add": (ROWS, "m = MatMul (r, w)  f = Add (m, b)", (8, 8)),
}


def network(case: str) -> tuple[onnx.ModelProto, np.ndarray]:
    """`w`'s channels differ by a factor of 1000, so that one scale for all rounds most of them to zero."""
    text, layer, shape = CASES[case]
    rank = len(shape)
    channels = np.logspace(-3, 0, 8, dtype=np.float32)
    axis = 1 if "transB" in layer else 0
    spread = channels.reshape([-1 if one == axis else 1 for one in range(rank)])
    constants = {
        "u": random(8, 8, 1, 1)[..., 0, 0] if rank == 2 else random(8, 8, 1, 1),
        "w": random(*shape) * spread,
    }
    constants["u"] /= spread.reshape([1, -1] if rank == 2 else [-1, 1, 1, 1]) if axis == 0 or rank == 2 else 1
    constants |= {"b": random(8)} if ", b)" in layer else {}
    constants |= {"low": np.float32(0)} if "low" in layer else {}
    constants["v"] = random(8, 8) if rank == 2 else random(8, 8, 1, 1)
    data = random(16, 8) if rank == 2 else random(16, 8, 6, 6)
    return build(text.format(layer=layer), **constants), data


@pytest.mark.parametrize("case", CASES)
def test_a_plain_session_computes_what_the_graph_says(case: str, tmp_path: Path) -> None:
    model, data = network(case)
    result, report = lowered(quantized(model, data=data, layers={"w": False}, bias_correction=False)[0])
    assert not any("rounds its weight" in skip.reason for skip in report.skips)
    onnx.save(result, tmp_path / "model.onnx")
    found = ort.run(ort.plain_session(tmp_path / "model.onnx", threads=1), {"x": data})["y"]
    wanted = ort.run(ort.session(result, threads=1, optimized=False), {"x": data})["y"]
    assert relative(wanted, found) < 3e-3


@pytest.mark.parametrize("case", ["Conv", "ConvTranspose"])
def test_the_layer_reads_a_scale_per_channel(case: str) -> None:
    model, data = network(case)
    result, report = lowered(quantized(model, data=data, layers={"w": False})[0])
    producers = {name: node for node in result.graph.node for name in node.output}
    layer = next(node for node in result.graph.node if "w" in node.input)
    scale = producers[layer.input[0]].input[1]
    assert next(list(t.dims) for t in result.graph.initializer if t.name == scale) == [8]
    assert any("stays float" in edit.what for edit in report.edits)


def test_one_input_channel_is_said() -> None:
    text = (
        "(float[N, 8, 6, 6] x) => (float[N, 8, P, Q] y) { a = Conv (x, u)  "
        "f = ConvTranspose <strides = [2, 2]> (a, w)  c = Conv (f, v)  y = Conv (c, v) }"
    )
    model = build(text, u=random(1, 8, 3, 3), w=random(1, 8, 2, 2), v=random(8, 8, 1, 1))
    _, report = lowered(quantized(model, data=random(8, 8, 6, 6))[0])
    assert "ONNX Runtime rounds its weight to INT8" in " ".join(skip.reason for skip in report.skips)


def test_a_weight_that_is_a_vector_is_no_reason_to_fail() -> None:
    text = """(float[N, 8] x) => (float[N] y) {
        q = QuantizeLinear (x, s, z)  d = DequantizeLinear (q, s, z)  m = MatMul (d, w)
        p = QuantizeLinear (m, s, z)  y = DequantizeLinear (p, s, z) }"""
    model = build(text, s=np.float32(0.1), z=np.int8(0), w=random(8))
    result, _ = lowered(model)
    x = random(16, 8)
    wanted, found = (ort.run(ort.session(one, threads=1), {"x": x})["y"] for one in (model, result))
    np.testing.assert_allclose(found, wanted, atol=0.1001)


def test_below_opset_13_a_float_layer_between_pairs_is_named() -> None:
    text = """(float[N, 8, 6, 6] x) => (float[N, 8, 6, 6] y) {
        q = QuantizeLinear (x, s, z)  d = DequantizeLinear (q, s, z)  [up] m = ConvTranspose (d, w)
        p = QuantizeLinear (m, s, z)  y = DequantizeLinear (p, s, z) }"""
    result, report = lowered(build(text, 12, s=np.float32(0.1), z=np.int8(0), w=random(8, 8, 1, 1)))
    onnx.checker.check_model(result, full_check=True)
    assert [skip.node for skip in report.skips if "below opset 13" in skip.reason] == ["up"]
