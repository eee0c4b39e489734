"""prune(sensitivity=true): each layer's zeros alone, measured on data and ranked."""

from collections.abc import Iterator

import numpy as np
import onnx
import pytest

from onnx_lathe.errors import DataError, PassError
from onnx_lathe.passes.core.options import configure
from onnx_lathe.passes.core.report import PassReport
from onnx_lathe.passes.core.services import Context, Runner
from onnx_lathe.passes.graph.model import import_model
from onnx_lathe.passes.prune.prune import Prune
from onnx_lathe.runtime.data import Batch, DataSource
from onnx_lathe.runtime.running import ort
from onnx_lathe.runtime.running.evaluate import OutputComparer
from tests.support.builders import build, random, run

X = random(700, 8)
TWO_LAYERS = "(float[N, 8] x) => (float[N, 4] y) { h = MatMul (x, a) r = Tanh (h) y = Gemm (r, b) }"
A, B = (random(*shape) for shape in ((8, 16), (16, 4)))


class Rows(DataSource):
    labelled, fingerprint, description = False, "rows", "rows"

    def __init__(self, rows: np.ndarray = X) -> None:
        self.rows, self.count, self.readings = rows, len(rows), 0

    def batches(self, size: int, shuffle_seed: int | None = None) -> Iterator[Batch]:
        self.readings += 1
        for start in range(0, len(self.rows), 100):
            yield Batch({"x": self.rows[start : start + 100]})


def comparer(data: DataSource | None = None) -> OutputComparer:
    return OutputComparer(Rows() if data is None else data, limit=512)


def half_zero(weight: np.ndarray) -> np.ndarray:
    return np.where(
        np.abs(weight) > np.sort(np.abs(weight), axis=None)[weight.size // 2 - 1], weight, np.float32(0)
    )


def sqnr(base: np.ndarray, candidate: np.ndarray) -> float:
    return 10 * np.log10(
        np.square(base, dtype=np.float64).sum() / np.square(base.astype(np.float64) - candidate).sum()
    )


def measure(model: onnx.ModelProto, runner: Runner | None, **options: object) -> PassReport:
    options = {"sparsity": 0.5, "min_size": 1, "clean": False, "sensitivity": True} | options
    return configure(Prune, options).apply(import_model(model), Context(runner=runner))


def test_each_layer_is_measured_alone_and_ranked() -> None:
    report = measure(build(TWO_LAYERS, a=A, b=B), comparer())
    base = np.tanh(X[:512] @ A) @ B
    wanted = {
        "a": sqnr(base, np.tanh(X[:512] @ half_zero(A)) @ B),
        "b": sqnr(base, np.tanh(X[:512] @ A) @ half_zero(B)),
    }
    ranked = sorted(wanted, key=wanted.__getitem__)
    found = {
        key.removeprefix("sensitivity/"): value
        for key, value in report.metrics.items()
        if key.startswith("sensitivity/")
    }
    assert found == pytest.approx(wanted, abs=1e-3)
    assert list(found) == ranked
    for edit, name in zip(report.edits, "ab", strict=True):
        assert edit.what.endswith(
            f"0 before; alone {wanted[name]:.1f} dB, sensitivity rank {ranked.index(name) + 1} of 2"
        )


def test_measuring_changes_nothing() -> None:
    model, plain = build(TWO_LAYERS, a=A, b=B), import_model(build(TWO_LAYERS, a=A, b=B))
    configure(Prune, {"sparsity": 0.5, "min_size": 1, "clean": False}).apply(plain, Context())
    graph = import_model(model)
    configure(Prune, {"sparsity": 0.5, "min_size": 1, "clean": False, "sensitivity": True}).apply(
        graph, Context(runner=comparer())
    )
    for name in "ab":
        np.testing.assert_array_equal(graph.tensors()[name].values, plain.tensors()[name].values)


def test_a_layer_whose_zeros_change_nothing_has_no_number() -> None:
    report = measure(build(TWO_LAYERS, a=half_zero(A), b=B), comparer())
    assert [key for key in report.metrics if key.startswith("sensitivity/")] == ["sensitivity/b"]
    assert report.edits[0].what.endswith("64 before; alone inf dB, sensitivity rank 2 of 2")


def test_data_is_needed() -> None:
    with pytest.raises(
        PassError, match="needs calibration data to compare outputs on; give --data or --calibration"
    ):
        measure(build(TWO_LAYERS, a=A, b=B), None)


def test_a_base_runs_once_for_many_candidates() -> None:
    data = Rows()
    runner: Runner = comparer(data)
    base, other = build(TWO_LAYERS, a=A, b=B), build(TWO_LAYERS, a=half_zero(A), b=B)
    first = runner.compare(base, other)
    assert data.readings == 2
    again = onnx.ModelProto()
    again.CopyFrom(base)
    assert runner.compare(again, other) == first
    assert data.readings == 3
    assert runner.compare(other, base)["sqnr"] != first["sqnr"]
    assert data.readings == 5


def test_what_is_compared() -> None:
    runner = comparer()
    base, other = build(TWO_LAYERS, a=A, b=B), build(TWO_LAYERS, a=half_zero(A), b=B)
    assert runner.compare(base, base) == {"sqnr": np.inf, "agreement": 1.0}
    outputs = [run(model, {"x": X[:512]})["y"] for model in (base, other)]
    found = runner.compare(base, other)
    assert found["sqnr"] == pytest.approx(sqnr(*outputs), abs=1e-3)
    assert found["agreement"] == (outputs[0].argmax(1) == outputs[1].argmax(1)).mean() < 1
    assert runner.compare(base, build(TWO_LAYERS, a=A, b=np.full_like(B, np.nan)))["sqnr"] == -np.inf


def test_what_cannot_be_compared() -> None:
    with pytest.raises(DataError, match="rows: there are no samples to compare outputs on"):
        comparer(Rows(X[:0])).compare(build(TWO_LAYERS, a=A, b=B), build(TWO_LAYERS, a=A, b=B))
    classes = build(
        "(float[N, 8] x) => (int64[N] y) { h = MatMul (x, a) y = ArgMax <axis = 1, keepdims = 0> (h) }", a=A
    )
    assert ort.run(ort.session(classes), {"x": X[:2]})["y"].dtype == np.int64
    with pytest.raises(DataError, match="no output of the model holds floats; cut off the ArgMax"):
        comparer().compare(classes, classes)
