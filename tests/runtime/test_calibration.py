"""Streamed statistics: equal to those of all values at once, of the right tensors, or refused with a
reason.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx.reference import ReferenceEvaluator

from onnx_lathe.errors import DataError, ModelError
from onnx_lathe.runtime.data import Batch, DataSource, model_inputs, open_source
from onnx_lathe.runtime.data.source import IndexedSource, Subset
from onnx_lathe.runtime.files import model_file
from onnx_lathe.runtime.running import calibration, ort
from onnx_lathe.runtime.running.calibration import REMEMBERED_MODELS, StreamingCalibrator


class Arrays(DataSource):
    """Arrays as data; remembers what it was asked for."""

    labelled, fingerprint, description = False, "", ""

    def __init__(self, **arrays: np.ndarray) -> None:
        self.arrays = arrays
        self.count = len(next(iter(arrays.values())))
        self.asked: list[int] = []

    def batches(self, size: int, shuffle_seed: int | None = None) -> Iterator[Batch]:
        self.asked.append(size)
        order = (
            np.arange(self.count)
            if shuffle_seed is None
            else np.random.default_rng(shuffle_seed).permutation(self.count)
        )
        for start in range(0, self.count, size):
            yield Batch({name: array[order[start : start + size]] for name, array in self.arrays.items()})


def build(text: str, **initializers: np.ndarray) -> onnx.ModelProto:
    model = onnx.parser.parse_model(f'<ir_version: 9, opset_import: ["": 19]> g {text}')
    model.graph.initializer.extend(
        onnx.numpy_helper.from_array(value, name) for name, value in initializers.items()
    )
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
    inner = dict(
        zip(
            ("h", "r", "y"),
            (SAMPLES @ WEIGHT, np.maximum(SAMPLES @ WEIGHT, 0), -np.maximum(SAMPLES @ WEIGHT, 0)),
            strict=True,
        )
    )
    for name, values in {"x": SAMPLES, **inner}.items():
        assert found[name].minimum == pytest.approx(values.min(), abs=1e-6)
        assert found[name].maximum == pytest.approx(values.max(), abs=1e-6)
        assert found[name].counted == values.size
    assert model.SerializeToString() == before


def test_an_inner_tensor_is_what_its_own_node_computes() -> None:
    """The convolution is quantized on both sides: its own result is that of float arithmetic on the rounded
    operands.
    """
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
    assert (found.minimum, found.maximum) == (
        pytest.approx(expected.min(), rel=1e-6),
        pytest.approx(expected.max(), rel=1e-6),
    )


@pytest.mark.parametrize("limit, batch, seen", [(10, 4, 10), (8, 4, 8), (3, 4, 3), (512, 16, 50)])
def test_no_more_than_the_limit_is_read(limit: int, batch: int, seen: int) -> None:
    data = Arrays(x=SAMPLES)
    found = StreamingCalibrator(data, limit, batch).statistics(mlp(), ["x"])
    assert found["x"].counted == seen * 3
    assert data.asked == [min(limit, batch)]


def test_samples_sorted_by_class_are_shuffled() -> None:
    ordered = np.repeat(np.arange(100, dtype=np.float32), 3).reshape(100, 3)
    found = StreamingCalibrator(Arrays(x=ordered), limit=20).statistics(mlp(), ["x"])
    assert found["x"].maximum > 60


def test_a_fixed_batch_is_filled_up_with_repeats() -> None:
    data = Arrays(x=SAMPLES[:7])
    found = StreamingCalibrator(data).statistics(mlp(batch=3), ["x", "h"])
    assert data.asked == [3]
    assert found["x"].counted == 3 * 3 * 3
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
    assert found["x"].counted == SAMPLES.size


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_nan_and_infinity_are_refused_by_name(bad: float) -> None:
    samples = SAMPLES.copy()
    samples[:, 1] = bad
    with pytest.raises(DataError, match=r"tensor 'h' holds NaN or infinity on calibration sample 0; check"):
        StreamingCalibrator(Arrays(x=samples)).statistics(mlp(), ["h"])


@pytest.mark.parametrize(
    "data, wanted, error, message",
    [
        (Arrays(x=SAMPLES[:0]), "h", DataError, "the calibration data is empty"),
        (Arrays(image=SAMPLES), "h", DataError, "the calibration data has no input 'x'; it has 'image'"),
        (Arrays(x=SAMPLES[:, :2]), "h", ModelError, "ONNX Runtime cannot run the model"),
        (Arrays(x=SAMPLES), "s", ModelError, "tensor 's' cannot be calibrated: it is tensor(int64)"),
        (
            Arrays(x=SAMPLES),
            "w",
            ModelError,
            "tensor 'w' cannot be calibrated: no node of the model computes it",
        ),
        (
            Arrays(x=SAMPLES),
            "nowhere",
            ModelError,
            "tensor 'nowhere' cannot be calibrated: no node of the model computes it",
        ),
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
        "(float[N, 3] x) => (float[N, 3] y) { e = Slice (x, zero, zero, one)  y = Relu (x) }",
        zero=np.array([0]),
        one=np.array([1]),
    )
    with pytest.raises(DataError, match="tensor 'e' has no elements"):
        StreamingCalibrator(Arrays(x=SAMPLES)).statistics(model, ["e"])


NETWORK = """(float[N, 3, 8, 8] x) => (float[N, 4] y) {
    c = Conv <pads = [1, 1, 1, 1]> (x, w)  n = BatchNormalization (c, one, shift, shift, one)  r = Relu (n)  i = Identity (r)
    m = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (i)  d = Conv <group = 4> (m, v)  six = Constant <value = float {6.0}> ()
    zero = Constant <value = float {0.0}> ()  k = Clip (d, zero, six)  s = Sigmoid (d)  z = Mul (d, s)  a = Add (k, z)  t = Transpose (a)
    u = Transpose (t)  f = Flatten (u)  g = Gemm <transB = 1> (f, e, shift)  p = Softmax (g)  half = Cast <to = 10> (p)
    back = Cast <to = 1> (half)  y = Add (back, g) }"""


def test_optimizing_changes_no_tensor() -> None:
    """Fusions of convolution, batch normalization, activation and addition, and blocked layouts, stop at a
    tensor that is asked for.
    """
    random = np.random.default_rng(4)
    weights = {
        "w": (4, 3, 3, 3),
        "v": (4, 1, 3, 3),
        "e": (4, 16),
        "one": (4,),
        "shift": (4,),
    }
    initializers = {
        name: random.uniform(0.5, 1.5, shape).astype(np.float32) - (len(shape) > 1)
        for name, shape in weights.items()
    }
    model = build(NETWORK, **initializers)
    tensors = [name for node in model.graph.node for name in node.output if name not in ("six", "zero")]
    samples = random.standard_normal((6, 3, 8, 8)).astype(np.float32)
    batches = list(StreamingCalibrator(Arrays(x=samples), batch=6).observe(model, tensors))
    model.graph.output.extend(onnx.ValueInfoProto(name=name) for name in tensors if name != "y")
    expected = ort.run(
        ort.session(model, optimized=False), {"x": samples[np.random.default_rng(0).permutation(6)]}
    )
    for name in tensors:
        np.testing.assert_allclose(batches[0][name], expected[name], rtol=1e-5, atol=1e-6, err_msg=name)


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


def test_what_was_asked_before_is_answered_without_a_run() -> None:
    data = Arrays(x=SAMPLES)
    calibrator = StreamingCalibrator(data)
    first = calibrator.statistics(mlp(), ["h", "r"])
    assert calibrator.statistics(mlp(), ["r", "h"]) == first
    assert len(data.asked) == 1
    more = calibrator.statistics(mlp(), ["x", "h"])  # only x is measured
    assert more["h"] is first["h"]
    assert len(data.asked) == 2


@pytest.mark.parametrize("change", ["weight", "operator", "input"])
def test_another_model_is_measured(change: str) -> None:
    data, other = Arrays(x=SAMPLES), mlp()
    calibrator = StreamingCalibrator(data)
    first = calibrator.statistics(mlp(), ["r"])["r"]
    if change == "weight":
        other.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(2 * WEIGHT, "w"))
    elif change == "operator":
        other.graph.node[1].op_type = "Neg"
    else:
        other.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 5
    second = calibrator.statistics(other, ["r"])["r"]
    assert len(data.asked) == 2
    assert (second.maximum != first.maximum) == (change != "input")
    assert second is not first


def test_only_few_models_are_remembered() -> None:
    data = Arrays(x=SAMPLES)
    calibrator = StreamingCalibrator(data)
    models = [build(MLP.format(batch="N"), w=WEIGHT * scale) for scale in range(1, REMEMBERED_MODELS + 2)]
    for model in models:
        calibrator.statistics(model, ["h"])
    calibrator.statistics(models[1], ["h"])
    assert len(data.asked) == len(models)
    calibrator.statistics(models[0], ["h"])
    assert len(data.asked) == len(models) + 1


def test_a_run_that_failed_is_not_remembered() -> None:
    samples = np.full((3, 3), np.inf, np.float32)
    calibrator = StreamingCalibrator(Arrays(x=samples))
    for _ in range(2):
        with pytest.raises(DataError, match="holds NaN or infinity on calibration sample 0;"):
            calibrator.statistics(mlp(), ["h"])


def test_a_late_infinity_is_told_with_its_samples() -> None:
    ordered = Arrays(x=SAMPLES[:12])
    place = np.random.default_rng(0).permutation(12)[9]
    ordered.arrays["x"] = ordered.arrays["x"].copy()
    ordered.arrays["x"][place] = np.nan
    with pytest.raises(DataError, match="calibration samples 8 to 11;"):
        StreamingCalibrator(ordered).statistics(mlp(), ["h"])


def test_an_infinity_is_told_with_the_numbers_that_its_samples_have_in_the_file(tmp_path: Path) -> None:
    order = np.random.default_rng(0).permutation(12)
    samples, place = SAMPLES[:12].copy(), order[9]
    samples[place] = np.inf
    np.savez(tmp_path / "data.npz", x=samples)
    whole = open_source(str(tmp_path / "data.npz"), model_inputs(mlp()), None, None)
    assert isinstance(whole, IndexedSource)
    *first, last = map(str, sorted(order[8:]))
    with pytest.raises(DataError, match=f"on calibration samples {', '.join(first)} or {last};"):
        StreamingCalibrator(whole).statistics(mlp(), ["h"])
    with pytest.raises(DataError, match=f"on calibration sample {place};"):
        StreamingCalibrator(Subset(whole, np.array([place]))).statistics(mlp(), ["h"])


def test_outputs_held_at_once_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    runs: list[int] = []
    run = ort.run

    def counted(session: object, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        runs.append(len(feeds["x"]))
        return run(session, feeds)

    monkeypatch.setattr(ort, "run", counted)
    whole = StreamingCalibrator(Arrays(x=SAMPLES), limit=20, batch=10).statistics(mlp(), ["h", "r"])
    assert runs == [1, 9, 10]
    runs.clear()
    # three samples of two tensors of four floats
    monkeypatch.setattr(calibration, "OUTPUT_BYTES", 3 * 2 * 16)
    parts = StreamingCalibrator(Arrays(x=SAMPLES), limit=20, batch=10).statistics(mlp(), ["h", "r"])
    assert runs == [1, 3, 3, 3, 3, 3, 3, 1]
    for name in ("h", "r"):
        assert (parts[name].minimum, parts[name].maximum) == (whole[name].minimum, whole[name].maximum)
        for one, other in zip(parts[name].distribution(), whole[name].distribution(), strict=True):
            np.testing.assert_array_equal(one, other)


def test_large_tensors_are_sampled(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calibration, "SAMPLED_VALUES", 0)
    monkeypatch.setattr(calibration, "SAMPLED_PER_SAMPLE", 100)
    samples = np.random.default_rng(5).standard_normal((40, 3000)).astype(np.float32)
    model = build("(float[N, 3000] x) => (float[N, 3000] y) { y = Neg (x) }")
    found = StreamingCalibrator(Arrays(x=samples)).statistics(model, ["y"])["y"]
    assert 3500 < found.counted < 4500
    assert (found.minimum, found.maximum) == (-samples.max(), -samples.min())
