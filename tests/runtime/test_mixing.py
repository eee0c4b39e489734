"""Networks whose outputs of a sample depend on the other samples of its batch are judged one by one."""

import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest

import onnx_lathe
from onnx_lathe.runtime.data import Batch
from onnx_lathe.runtime.running import ort
from onnx_lathe.runtime.running.evaluate import evaluate, reference
from onnx_lathe.runtime.running.mixing import mixed_output
from tests.support.builders import build
from tests.support.int8 import Rows

MIXED = (
    "(float[N, 4] x) => (float[N, 4] y) { m = ReduceMax <keepdims = 0> (x)  d = Sub (x, m)  y = Mul (d, w) }"
)
PLAIN = (
    "(float[N, 4] x) => (float[N, 4] y) { m = ReduceMax <axes = [1]> (x)  d = Sub (x, m)  y = Mul (d, w) }"
)
DYNAMIC = """(float[N, 4] x) => (float[N, 4] y) {
    q, s, z = DynamicQuantizeLinear (x)  d = DequantizeLinear (q, s, z)  y = Mul (d, w) }"""
FIXED = MIXED.replace("N", "2")
VALUES = (np.random.default_rng(0).standard_normal((6, 4)) * [[1], [5], [2], [9], [3], [7]]).astype(
    np.float32
)
DATA = Rows(x=VALUES)


def network(text: str, scale: float = 1.0) -> onnx.ModelProto:
    return build(text, w=np.float32(scale))


@pytest.mark.parametrize(
    "text, found",
    [(MIXED, "y"), (DYNAMIC, "y"), (PLAIN, None), (FIXED, None)],
    ids=["max", "dynamic", "row", "fixed"],
)
def test_which_are(text: str, found: str | None) -> None:
    assert mixed_output(ort.session(network(text)), Batch({"x": VALUES})) == found


def test_one_sample_tells_nothing() -> None:
    assert mixed_output(ort.session(network(MIXED)), Batch({"x": VALUES[:1]})) is None


def test_equal_neighbours_do_not_hide_it() -> None:
    assert mixed_output(ort.session(network(MIXED)), Batch({"x": VALUES[[0, 0, 0, 1, 2, 3]]})) == "y"


def test_an_output_without_rows_of_samples() -> None:
    """A mean over the batch is one, a constant is none."""
    text = "(float[N, 4] x) => (float[1] y, float[1] z) {{ m = ReduceMean <keepdims = 0> (x)  y = Mul ({of}, w)  z = Mul (w, w) }}"
    for of, found in (("m", "y"), ("w", None)):
        model = build(text.format(of=of), w=np.ones(1, np.float32))
        assert mixed_output(ort.session(model), Batch({"x": VALUES})) == found


def test_a_network_that_does_not_take_one_sample() -> None:
    text = "(float[N, 4, 3, 3] x) => (float[N, 5] y) { p = GlobalAveragePool (x)  s = Squeeze (p)  m = MatMul (s, v)  y = Softmax <axis = 1> (m) }"
    model = build(text, v=np.ones((4, 5), np.float32))
    data = Rows(x=np.random.default_rng(0).standard_normal((6, 4, 3, 3)).astype(np.float32))
    assert reference(ort.session(model), data, lambda text: None).note is None


def test_each_sample_is_judged_alone() -> None:
    """As a session computes that is given one sample at a time."""
    sessions = [ort.session(network(MIXED, scale)) for scale in (1.0, 0.9)]
    original = reference(sessions[0], DATA, lambda text: None)
    assert original.note is not None
    assert "one by one" in original.note
    rows = [VALUES[row : row + 1] for row in range(6)]
    outputs = [np.concatenate([session.run(None, {"x": row})[0] for row in rows]) for session in sessions]
    signal, noise = np.square(outputs[0]).sum(), np.square(outputs[0] - outputs[1]).sum()
    found = evaluate(sessions[1], DATA, original, lambda text: None)["sqnr"]
    assert found == pytest.approx(10 * math.log10(signal / noise), abs=1e-3)


class Single(Rows):
    """One sample first, then all."""

    def batches(self, size: int, shuffle_seed: int | None = None) -> Iterator[Batch]:
        yield Batch({name: values[:1] for name, values in self.feeds.items()})
        yield Batch(dict(self.feeds))


def test_a_first_batch_of_one_sample_decides_nothing() -> None:
    original = reference(ort.session(network(MIXED)), Single(x=VALUES), lambda text: None)
    assert original.mixed == "y"


def test_the_report_says_so(tmp_path: Path) -> None:
    data = {"x": VALUES}
    record = onnx_lathe.optimize(network(MIXED), "fold", eval=data, out=tmp_path, latency=False)
    assert any("judged one by one" in warning for warning in record.warnings)
    record = onnx_lathe.optimize(network(PLAIN), "fold", eval=data, out=tmp_path / "plain", latency=False)
    assert not any("one by one" in warning for warning in record.warnings)
