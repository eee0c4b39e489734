"""Sessions compute INT8 as the graph says, on processors too that would let sums of products saturate."""

import numpy as np
import onnx
import pytest

from onnx_lathe.runtime.running import ort
from tests.support.builders import build
from tests.support.seeds import generator

LAYERS = {
    "Conv": ("(float[N, 32, 8, 8] x) => (float[N, 32, P, Q] y)", (32, 32, 3, 3), 0),
    "Gemm": ("(float[N, 64] x) => (float[N, 64] y)", (64, 64), 1),
    "MatMul": ("(float[N, 64] x) => (float[N, 64] y)", (64, 64), 1),
}


def large(*shape: int) -> np.ndarray:
    """INT8 values near the ends of their range, mostly positive."""
    values = generator().integers(100, 128, shape)
    return np.where(generator().random(shape) < 0.8, values, -values).astype(np.int8)


def two_layers(op: str, kind: type, zero_point: bool, per_channel: bool) -> onnx.ModelProto:
    """Two layers between pairs that read one weight of large values; sums fit into the levels."""
    head, shape, axis = LAYERS[op]
    attribute, zero = (f"<axis = {axis}>" if per_channel else ""), (", wz" if zero_point else "")
    size = (shape[axis],) if per_channel else ()
    decoded = f"DequantizeLinear {attribute} (w, ws{zero})"
    body = f"""{{ q = QuantizeLinear (x, s, z)  d = DequantizeLinear (q, s, z)  v = {decoded}  h = {op} (d, v)
        r = QuantizeLinear (h, t, z)  e = DequantizeLinear (r, t, z)  u = {decoded}  k = {op} (e, u)
        p = QuantizeLinear (k, a, z)  y = DequantizeLinear (p, a, z) }}"""
    zeros = {"wz": np.zeros(size, np.int8)} if zero_point else {}
    first, second = (5.0, 500.0) if op == "Conv" else (1.0, 100.0)
    return build(
        f"{head} {body}", w=large(*shape), ws=np.full(size, 0.01, np.float32), s=np.float32(0.01), z=kind(0),
        t=np.float32(first), a=np.float32(second), **zeros,
    )  # fmt: skip


@pytest.mark.parametrize("op", LAYERS)
@pytest.mark.parametrize("kind", [np.int8, np.uint8])
@pytest.mark.parametrize("zero_point", [False, True])
@pytest.mark.parametrize("per_channel", [False, True])
def test_sums_do_not_saturate(op: str, kind: type, zero_point: bool, per_channel: bool) -> None:
    """ONNX Runtime by itself is wrong by dozens of levels here, or does not load or run its exact form."""
    model = two_layers(op, kind, zero_point, per_channel)
    shape = (4, 32, 8, 8) if op == "Conv" else (4, 64)
    feeds = {"x": (generator().random(shape) * 1.2).astype(np.float32)}
    wanted = ort.run(ort.session(model, threads=1, optimized=False), feeds)["y"]
    found = ort.run(ort.session(model, threads=1), feeds)["y"]
    step = 500.0 if op == "Conv" else 100.0
    assert np.unique(wanted).size > 5
    assert np.abs(found - wanted).max() <= 1.01 * step  # a half rounds to either side


def test_whether_sums_saturate_is_the_processors() -> None:
    assert ort.saturates() in (False, True)
