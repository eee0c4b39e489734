"""Streamed statistics: equal to those of all values at once, of the right tensors, or refused with a reason."""

from collections.abc import Iterator

import numpy as np
import onnx
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from onnx.reference import ReferenceEvaluator

from lathe import DataError, ModelError
from runtime import calibration, model_file
from runtime.calibration import BINS, Histogram, StreamingCalibrator
from runtime.data import Batch, DataSource


class Arrays(DataSource):
    """Arrays as data; remembers what it was asked for."""

    labelled, fingerprint, description = False, "", ""

    def __init__(self, **arrays: np.ndarray) -> None:
        self.arrays = arrays
        self.count = len(next(iter(arrays.values())))
        self.asked: list[int] = []

    def batches(self, size: int, shuffle_seed: int | None = None) -> Iterator[Batch]:
        self.asked.append(size)
        order = np.arange(self.count) if shuffle_seed is None else np.random.default_rng(shuffle_seed).permutation(self.count)
        for start in range(0, self.count, size):
            yield Batch({name: array[order[start : start + size]] for name, array in self.arrays.items()})


def build(text: str, **initializers: np.ndarray) -> onnx.ModelProto:
    model = onnx.parser.parse_model(f'<ir_version: 9, opset_import: ["": 19]> g {text}')
    model.graph.initializer.extend(onnx.numpy_helper.from_array(value, name) for name, value in initializers.items())
    onnx.checker.check_model(model)
    return model


MLP = "(float[{batch}, 3] x) => (float[{batch}, 4] y) {{ h = MatMul (x, w)  r = Relu (h)  s = Shape (r)  y = Neg (r) }}"
WEIGHT = np.random.default_rng(1).standard_normal((3, 4)).astype(np.float32)
SAMPLES = np.random.default_rng(2).standard_normal((50, 3)).astype(np.float32)


def mlp(batch: object = "N") -> onnx.ModelProto:
    return build(MLP.format(batch=batch), w=WEIGHT)


def test_statistics_of_inputs_inner_tensors_and_outputs() -> None:
    model = mlp()
    before = model.SerializeToString()
    found = StreamingCalibrator(Arrays(x=SAMPLES)).statistics(model, ["x", "h", "r", "y"])
    inner = dict(zip(("h", "r", "y"), (SAMPLES @ WEIGHT, np.maximum(SAMPLES @ WEIGHT, 0), -np.maximum(SAMPLES @ WEIGHT, 0)), strict=True))
    for name, values in {"x": SAMPLES, **inner}.items():
        assert found[name].minimum == pytest.approx(values.min(), abs=1e-6)
        assert found[name].maximum == pytest.approx(values.max(), abs=1e-6)
        assert found[name].counts.sum() == values.size
    assert model.SerializeToString() == before


def test_an_inner_tensor_is_what_its_own_node_computes() -> None:
    """The convolution is quantized on both sides: its own result is that of float arithmetic on the rounded operands."""
    model = build(
        """(float[N, 2, 6, 6] x) => (float[N, 3, 4, 4] y) {
            q = QuantizeLinear (x, s, z)  d = DequantizeLinear (q, s, z)  wd = DequantizeLinear (w, t, z)
            c = Conv (d, wd)  r = QuantizeLinear (c, t, z)  y = DequantizeLinear (r, t, z) }""",
        s=np.float32(0.05),
        t=np.float32(0.2),
        z=np.int8(0),
        w=np.arange(-27, 27, dtype=np.int8).reshape(3, 2, 3, 3),
    )
    samples = np.random.default_rng(3).standard_normal((5, 2, 6, 6)).astype(np.float32)
    found = StreamingCalibrator(Arrays(x=samples)).statistics(model, ["c"])["c"]
    model.graph.output[0].name = "c"
    expected = ReferenceEvaluator(model).run(None, {"x": samples})[0]
    assert (found.minimum, found.maximum) == (pytest.approx(expected.min(), rel=1e-6), pytest.approx(expected.max(), rel=1e-6))


@pytest.mark.parametrize("limit, batch, seen", [(10, 4, 10), (8, 4, 8), (3, 4, 3), (512, 16, 50)])
def test_no_more_than_the_limit_is_read(limit: int, batch: int, seen: int) -> None:
    data = Arrays(x=SAMPLES)
    found = StreamingCalibrator(data, limit, batch).statistics(mlp(), ["x"])
    assert found["x"].counts.sum() == seen * 3
    assert data.asked == [min(limit, batch)]


def test_samples_sorted_by_class_are_shuffled() -> None:
    ordered = np.repeat(np.arange(100, dtype=np.float32), 3).reshape(100, 3)
    found = StreamingCalibrator(Arrays(x=ordered), limit=20).statistics(mlp(), ["x"])
    assert found["x"].maximum > 60


def test_a_fixed_batch_is_filled_up_with_repeats() -> None:
    data = Arrays(x=SAMPLES[:7])
    found = StreamingCalibrator(data).statistics(mlp(batch=3), ["x", "h"])
    assert data.asked == [3]
    assert found["x"].counts.sum() == 3 * 3 * 3
    assert (found["x"].minimum, found["x"].maximum) == (SAMPLES[:7].min(), SAMPLES[:7].max())


def test_a_model_too_large_for_protobuf_goes_through_a_file(monkeypatch: pytest.MonkeyPatch) -> None:
    weight = np.random.default_rng(1).standard_normal((3, 400)).astype(np.float32)
    model = build("(float[N, 3] x) => (float[N, 400] y) { h = MatMul (x, w)  y = Relu (h) }", w=weight)
    monkeypatch.setattr(model_file, "INLINE_LIMIT_BYTES", 1000)
    found = StreamingCalibrator(Arrays(x=SAMPLES)).statistics(model, ["h"])
    assert found["h"].maximum == pytest.approx((SAMPLES @ weight).max(), rel=1e-6)


def test_progress_is_told() -> None:
    messages: list[str] = []
    StreamingCalibrator(Arrays(x=SAMPLES), limit=8, progress=messages.append).statistics(mlp(), ["x"])
    assert messages == ["calibrating: 4 of at most 8 samples", "calibrating: 8 of at most 8 samples"]


def test_nothing_wanted_reads_nothing() -> None:
    data = Arrays(x=SAMPLES)
    assert StreamingCalibrator(data).statistics(mlp(), []) == {}
    assert not data.asked


def test_an_empty_batch_is_passed_over() -> None:
    class Gapped(Arrays):
        def batches(self, size: int, shuffle_seed: int | None = None) -> Iterator[Batch]:
            yield Batch({"x": SAMPLES[:0]})
            yield from super().batches(size, shuffle_seed)

    found = StreamingCalibrator(Gapped(x=SAMPLES)).statistics(mlp(), ["x"])
    assert found["x"].counts.sum() == SAMPLES.size


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity_are_refused_by_name(bad: float) -> None:
    samples = SAMPLES.copy()
    samples[:, 1] = bad
    with pytest.raises(DataError, match=r"tensor 'h' holds NaN or infinity on calibration samples 0 to 3; check"):
        StreamingCalibrator(Arrays(x=samples)).statistics(mlp(), ["h"])


@pytest.mark.parametrize(
    "data, wanted, error, message",
    [
        (Arrays(x=SAMPLES[:0]), "h", DataError, "the calibration data is empty"),
        (Arrays(image=SAMPLES), "h", DataError, "the calibration data has no input 'x'; it has 'image'"),
        (Arrays(x=SAMPLES[:, :2]), "h", ModelError, "ONNX Runtime cannot run the model"),
        (Arrays(x=SAMPLES), "s", ModelError, "tensor 's' cannot be calibrated: it is tensor(int64)"),
        (Arrays(x=SAMPLES), "w", ModelError, "tensor 'w' cannot be calibrated: no node of the model computes it"),
        (Arrays(x=SAMPLES), "nowhere", ModelError, "tensor 'nowhere' cannot be calibrated: no node of the model computes it"),
    ],
)
def test_refusals(data: Arrays, wanted: str, error: type[Exception], message: str) -> None:
    model = mlp()
    with pytest.raises(error) as caught:
        StreamingCalibrator(data).statistics(model, [wanted])
    assert str(caught.value).startswith(message)
    assert len(model.graph.output) == 1


def test_a_tensor_without_elements_is_refused() -> None:
    model = build(
        "(float[N, 3] x) => (float[N, 3] y) { e = Slice (x, zero, zero, one)  y = Relu (x) }", zero=np.array([0]), one=np.array([1])
    )
    with pytest.raises(DataError, match="tensor 'e' has no elements"):
        StreamingCalibrator(Arrays(x=SAMPLES)).statistics(model, ["e"])


BATCHES = st.lists(st.lists(st.floats(-(2.0**100), 2.0**100, width=32), min_size=1, max_size=20), min_size=1, max_size=6)


@settings(max_examples=50, deadline=None)
@given(BATCHES)
def test_growing_the_range_loses_nothing(batches: list[list[float]]) -> None:
    histogram = Histogram()
    for batch in batches:
        assert histogram.add(np.array(batch, np.float32))
    values = np.concatenate([np.array(batch, np.float32) for batch in batches])
    assert (histogram.minimum, histogram.maximum) == (values.min(), values.max())
    at_once, _ = np.histogram(values.astype(np.float64), BINS, (-histogram.limit, histogram.limit))
    np.testing.assert_array_equal(histogram.counts, at_once)


@settings(max_examples=50, deadline=None)
@given(BATCHES, st.floats(50, 100))
@example([[0.0, 0.0, 0.0, 0.0, -1.0]], 50.0)
def test_a_percentile_is_within_one_bin(batches: list[list[float]], percent: float) -> None:
    histogram = Histogram()
    for batch in batches:
        histogram.add(np.array(batch, np.float32))
    values = np.sort(np.concatenate([np.array(batch, np.float64) for batch in batches]))
    low, high = histogram.percentile(percent)
    assert histogram.minimum <= low <= high <= histogram.maximum
    width = 2 * histogram.limit / BINS
    outside = len(values) * (100 - percent) / 200
    slack = 1e-9 * len(values)
    assert (values < low - width).sum() <= outside + slack
    assert (values > high + width).sum() <= outside + slack
    assert (values <= low + width).sum() >= outside - slack
    assert (values >= high - width).sum() >= outside - slack


def test_percentiles_of_a_known_distribution() -> None:
    histogram = Histogram()
    values = np.linspace(-1, 3, 100_000, dtype=np.float32)
    for part in np.array_split(values[np.random.default_rng(0).permutation(values.size)], 7):
        histogram.add(part)
    low, high = histogram.percentile(99.0)
    assert (low, high) == (pytest.approx(-0.98, abs=1e-3), pytest.approx(2.98, abs=1e-3))
    assert histogram.percentile(100.0) == (-1.0, 3.0)


def test_the_zeros_behind_a_relu_are_the_lower_end() -> None:
    histogram = Histogram()
    histogram.add(np.maximum(np.random.default_rng(0).standard_normal(10_000), 0).astype(np.float32))
    low, high = histogram.percentile(99.0)
    assert low == 0.0
    assert 2.4 < high < 2.75  # 0.5 % of all values lie above 2.576


def test_zeros_before_small_values_do_not_spoil_the_resolution() -> None:
    histogram = Histogram()
    histogram.add(np.zeros(100, np.float32))
    histogram.add(np.linspace(0, 1e-6, 100, dtype=np.float32))
    assert histogram.limit < 2e-6
    assert histogram.percentile(90.0)[1] == pytest.approx(0.9e-6, rel=0.01)


def test_a_large_tensor_is_sampled_but_its_extremes_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration, "SAMPLED_VALUES", 1000)
    values = np.random.default_rng(0).random((100, 101)).astype(np.float32)
    values[50, 50], values[51, 51] = -3, 7
    histogram = Histogram()
    histogram.add(values)
    assert (histogram.minimum, histogram.maximum) == (-3.0, 7.0)
    assert 500 < histogram.counts.sum() < 2000
    assert histogram.percentile(90.0)[1] == pytest.approx(0.95, abs=0.03)


def test_observed_values_come_batch_by_batch_in_one_order() -> None:
    calibrator = StreamingCalibrator(Arrays(x=SAMPLES), limit=30, batch=8)
    first, second = (list(calibrator.observe(mlp(), ["x", "h"])) for _ in range(2))
    assert [len(values["x"]) for values in first] == [8, 8, 8, 6]
    for one, other in zip(first, second, strict=True):
        assert one.keys() == {"x", "h"}
        np.testing.assert_array_equal(one["x"], other["x"])
        np.testing.assert_allclose(one["h"], one["x"] @ WEIGHT, atol=1e-5)
    assert len(np.unique(np.concatenate([values["x"] for values in first]), axis=0)) == 30
    with pytest.raises(ModelError, match="'none' cannot be calibrated"):
        next(iter(calibrator.observe(mlp(), ["none"])))
