"""Weights that the graph computes from constants: folded by what ONNX Runtime computes, within growth."""

import numpy as np
import onnx
import pytest

from onnx_lathe import PassReport, rewrite
from onnx_lathe.optimizer.step import apply_pass
from onnx_lathe.passes.core.options import configure
from onnx_lathe.passes.core.registry import find
from onnx_lathe.passes.core.services import Context
from onnx_lathe.runtime.running.ort import OneTimeEvaluator
from tests.support.builders import build, random, run


def fold(model: onnx.ModelProto, **options: object) -> tuple[onnx.ModelProto, PassReport]:
    return apply_pass(configure(find("fold"), options), model, Context(evaluator=OneTimeEvaluator()))


def ops(model: onnx.ModelProto) -> list[str]:
    return [node.op_type for node in model.graph.node]


WEIGHTS = {
    "weight normalization": "n = ReduceL2<axes=[1,2,3]>(v) u = Div(v, n) w = Mul(u, g)",
    "spelled out": "p = Mul(v, v) s = ReduceSum<keepdims=1>(p, axes) n = Sqrt(s) u = Div(v, n) w = Mul(u, g)",
    "padded": "e = Pad(small, pads) w = Mul(e, g)",
    "masked": "w = Where(mask, v, zero)",
    "einsum": "w = Einsum<equation='ij,jklm->iklm'>(rotation, v)",
    "standardized": "m = ReduceMean<axes=[1,2,3]>(v) c = Sub(v, m) q = ReduceSumSquare<axes=[1,2,3]>(c) r = Sqrt(q) w = Div(c, r)",
    "clipped": "w = Clip(v, low, high)",
    "triangle": "w = Trilu<upper=0>(v)",
}


@pytest.mark.parametrize("how", WEIGHTS)
def test_weights_computed_from_constants_become_initializers(how: str) -> None:
    values = {
        "v": random(8, 3, 3, 3),
        "g": random(8, 1, 1, 1),
        "axes": np.array([1, 2, 3]),
        "small": random(8, 3, 1, 1),
        "pads": np.array([0, 0, 1, 1, 0, 0, 1, 1]),
        "mask": random(8, 3, 3, 3) > 0,
        "zero": np.zeros((), np.float32),
        "rotation": random(8, 8),
        "low": np.array(-0.5, np.float32),
        "high": np.array(0.5, np.float32),
    }
    text = WEIGHTS[how].replace("'", '"')
    used = {
        name: value
        for name, value in values.items()
        if name in text.replace("(", " ").replace(",", " ").replace(")", " ").split()
    }
    model = build(f"(float[1,3,8,8] x) => (float[1,8,6,6] y) {{ {text} y = Conv(x, w) }}", **used)
    after, report = fold(model)
    assert ops(after) == ["Conv"], report.skips
    assert [tensor.name for tensor in after.graph.initializer] == ["w"]
    feeds = {"x": random(1, 3, 8, 8)}
    np.testing.assert_allclose(run(after, feeds)["y"], run(model, feeds)["y"], rtol=1e-5, atol=1e-5)


def test_what_grows_beyond_the_option_stays() -> None:
    model = build(
        "(float[1,512] x) => (float[1,256] y) { w = OneHot(rows, depth, values) y = MatMul(x, w) }",
        rows=np.arange(512) % 256,
        depth=np.array([256]),
        values=np.array([0, 1], np.float32),
    )
    after, report = fold(model)
    assert "OneHot" in ops(after)
    assert any("would add" in skip.reason and "growth=" in skip.reason for skip in report.skips)
    after, _ = fold(model, growth=1 << 20)
    assert ops(after) == ["MatMul"]


def test_random_numbers_and_stored_weights_stay() -> None:
    model = build(
        """(float[2,4] x) => (float[2,4] y, float[2,4] z, float[4,4] r) {
            n = RandomNormalLike(w) y = MatMul(x, n) d = DequantizeLinear(q, s) z = MatMul(x, d)
            e = Mul(n, w) r = Relu(e)
        }""",
        w=random(4, 4),
        q=np.arange(16, dtype=np.int8).reshape(4, 4),
        s=np.array(0.1, np.float32),
    )
    after, _ = fold(model)
    assert {"RandomNormalLike", "DequantizeLinear"} <= set(ops(after))


def test_in_memory_too() -> None:
    model = build("(float[2,4] x) => (float[2,4] y) { w = Selu(v) y = MatMul(x, w) }", v=random(4, 4))
    assert ops(rewrite(model, "fold")) == ["MatMul"]
