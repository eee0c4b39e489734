"""Samples that are one call each: what is computed of them, calibrated, trained on and built for."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from onnx_lathe.errors import PassError
from onnx_lathe.optimizer.measuring import fed_one_by_one, sample_feeds
from onnx_lathe.runtime.data import DataSource, model_inputs, open_source
from onnx_lathe.runtime.data.source import Share, Subset
from onnx_lathe.runtime.running import ort
from onnx_lathe.runtime.running.calibration import StreamingCalibrator
from onnx_lathe.runtime.running.evaluate import evaluate, reference
from onnx_lathe.runtime.targets.core.registry import find
from onnx_lathe.runtime.torch_bridge import GraphModule
from onnx_lathe.runtime.torch_bridge.arrays import to_torch
from onnx_lathe.runtime.training import TorchTrainer, TrainingSetup, agreement
from tests.support import calls
from tests.support.builders import build
from tests.support.training import options

MODELS = tuple(calls.NETWORKS)


def source(name: str, **more: np.ndarray) -> DataSource:
    return open_source(calls.samples(name) | more, model_inputs(calls.NETWORKS[name]()))


def computed(name: str) -> list[dict[str, np.ndarray]]:
    """Outputs of each sample, by a plain session."""
    session, arrays = ort.session(calls.NETWORKS[name](), threads=1), calls.samples(name)
    return [ort.run(session, calls.call(name, arrays, row)) for row in range(calls.SAMPLES)]


def ignore(text: str) -> None:
    pass


@pytest.mark.parametrize("name", MODELS)
def test_statistics_are_those_of_the_calls(name: str) -> None:
    model, outputs = calls.NETWORKS[name](), computed(name)
    names = [value.name for value in model.graph.output]
    calibrator = StreamingCalibrator(source(name))
    for output, found in calibrator.statistics(model, [*names, "x"]).items():
        values = [one[output] for one in outputs] if output in names else [calls.samples(name)["x"]]
        assert found.minimum == pytest.approx(min(value.min() for value in values))
        assert found.maximum == pytest.approx(max(value.max() for value in values))
    observed = list(calibrator.observe(model, names))
    assert [one.samples for one in observed] == [1] * calls.SAMPLES
    for output in names:
        assert {one[output].shape for one in observed} == {outputs[0][output].shape}
        sums = sorted(float(one[output].sum()) for one in observed)
        np.testing.assert_allclose(sums, sorted(float(one[output].sum()) for one in outputs), rtol=1e-4)


def test_statistics_stop_at_the_limit_and_name_the_sample() -> None:
    assert len(list(StreamingCalibrator(source("spectral"), limit=7).observe(calls.spectral(), ["y"]))) == 7
    arrays = calls.samples("spectral")
    arrays["x"][23] = np.float32(3e38)
    data = open_source(arrays, model_inputs(calls.spectral()))
    with pytest.raises(Exception, match="holds NaN or infinity on calibration sample 23;"):
        StreamingCalibrator(data).statistics(calls.spectral(), ["y"])


@pytest.mark.parametrize("name", MODELS)
def test_quality_is_that_of_the_calls(name: str) -> None:
    model, changed = calls.NETWORKS[name](), calls.NETWORKS[name]()
    for tensor in changed.graph.initializer:
        if tensor.name in ("w1", "w"):  # noise that is another in each sample and step
            tensor.CopyFrom(_scaled(tensor, 1.25))
    original = reference(ort.session(model), source(name), ignore, model)
    found = evaluate(ort.session(changed), source(name), original, ignore)
    session, arrays = ort.session(changed, threads=1), calls.samples(name)
    for output in original.outputs[0] or {}:
        before = [one[output] for one in computed(name)]
        after = [ort.run(session, calls.call(name, arrays, row))[output] for row in range(calls.SAMPLES)]
        error = sum(float(np.square(a - b).sum()) for a, b in zip(before, after, strict=True))
        signal = sum(float(np.square(one, dtype=np.float64).sum()) for one in before)
        wanted = 10 * np.log10(signal / error) if error else np.inf
        assert found[f"sqnr[{output}]"] == pytest.approx(wanted, rel=1e-3)
    assert len(original.batches) == calls.SAMPLES


def _scaled(tensor: Any, factor: float) -> Any:
    import onnx

    values = onnx.numpy_helper.to_array(tensor)
    return onnx.numpy_helper.from_array((values * factor).astype(values.dtype), tensor.name)


@pytest.mark.parametrize("name, scores", [("stateful", "scores"), ("spectral", "y")])
def test_labels_belong_to_calls_that_give_one_answer(name: str, scores: str) -> None:
    model = calls.NETWORKS[name]()
    answers = np.array([int(one[scores].argmax()) for one in computed(name)])
    labels = np.where(np.arange(calls.SAMPLES) < 30, answers, (answers + 1) % calls.CLASSES)
    data = source(name, labels=labels)
    metrics = reference(ort.session(model), data, ignore, model).metrics
    assert metrics["top1"] == pytest.approx(0.75)
    assert metrics[f"agreement[{scores}]"] == 1
    setup = TrainingSetup(data, None)
    found = TorchTrainer(setup).train(model, options(epochs=15, batch=8, rate=0.01, distill=0))
    assert found.metrics["last_loss"] < 0.8 * found.metrics["first_loss"]


@pytest.mark.parametrize("name", MODELS)
def test_pytorch_computes_each_call(name: str) -> None:
    model = calls.NETWORKS[name]()
    module = GraphModule(model).eval()
    agreement.check(model, module, source(name))
    assert module.per_call
    batch = next(iter(source(name).batches(3)))
    given = module(**{key: to_torch(array) for key, array in batch.inputs.items()})
    for index, output in enumerate(model.graph.output):
        wanted = np.stack([one[output.name] for one in computed(name)[:3]])
        wanted = wanted if wanted.ndim == 2 else np.concatenate(list(wanted))
        found = given[index] if isinstance(given, tuple) else given
        np.testing.assert_allclose(found.detach().numpy(), wanted, atol=1e-5)


def test_pytorch_joins_single_numbers() -> None:
    text = "(float[3] x, float by) => (float y) { m = ReduceSum<keepdims=0>(x) y = Mul(m, by) }"
    module = GraphModule(build(text))
    module.per_call = True
    x, by = np.arange(6, dtype=np.float32).reshape(2, 3), np.array([1, 10], np.float32)
    assert module(to_torch(x), to_torch(by)).tolist() == [3, 120]


@pytest.mark.parametrize("name", MODELS)
def test_training_learns_from_the_original(name: str) -> None:
    model = calls.NETWORKS[name]()
    for tensor in model.graph.initializer:
        if tensor.name in ("w2", "head"):
            tensor.CopyFrom(_scaled(tensor, 0.5))
    setup = TrainingSetup(source(name), calls.NETWORKS[name]())
    found = TorchTrainer(setup).train(model, options(epochs=6, batch=8, rate=0.01))
    assert found.metrics["last_loss"] < 0.3 * found.metrics["first_loss"]
    assert found.metrics["samples"] == calls.SAMPLES


def test_training_on_labels_of_calls_with_more_answers_is_refused() -> None:
    text = "(float[T, 4] x, float gain) => (float[T, 3] y) { l = Mul(x, gain) y = MatMul(l, w) }"
    model = build(text, w=np.ones((4, 3), np.float32))
    arrays = {"x": np.ones((6, 5, 4), np.float32), "gain": np.float32(1), "labels": np.zeros(6, np.int64)}
    data = open_source(arrays, model_inputs(model))
    with pytest.raises(PassError, match="no output is \\[batch, classes\\] as labels need"):
        TorchTrainer(TrainingSetup(data, None)).train(model, options(epochs=1, batch=2))


def test_parts_of_the_data_stay_calls() -> None:
    whole = source("stateful")
    parts: list[DataSource] = [Subset(whole, np.array([4, 2])), Share(whole, 1, 2, lambda count: True)]  # type: ignore[arg-type]
    for part in parts:
        batch = next(iter(part.batches(2)))
        assert batch.per_call
        assert batch[:1].per_call
        assert batch.call(0)["x"].shape == (1, calls.FEATURES)
        assert batch.call(0)["gain"] == np.float32(1.5)


@pytest.mark.parametrize("name", MODELS)
def test_a_sample_of_the_data_is_one_call(name: str) -> None:
    session = ort.session(calls.NETWORKS[name](), threads=1)
    feeds = sample_feeds(source(name), session, 8)
    assert ort.run(session, feeds).keys() == computed(name)[0].keys()
    assert {key: array.shape for key, array in feeds.items()} == {
        key: array.shape for key, array in calls.call(name, calls.samples(name), 0).items()
    }
    assert fed_one_by_one(source(name))
    assert not fed_one_by_one(None)
    assert ort.run(session, sample_feeds(None, session, 8)).keys() == computed(name)[0].keys()


def test_random_values_take_sizes_that_the_model_runs_on() -> None:
    text = '(float[N, L] x, float[2, N, 3] s) => (float[N, K] y, float[2, N, 3] t) { y = Pad<mode="reflect">(x, p) t = Neg(s) }'
    session = ort.session(build(text, p=np.array([0, 5, 0, 5])))
    shapes = {name: array.shape for name, array in sample_feeds(None, session, 8).items()}
    assert shapes == {"x": (1, 64), "s": (2, 1, 3)}
    text = "(float[N, L] x, float[N, M] z) => (float[N, 7] y) { w = Concat<axis=1>(x, z) y = Reshape(w, p) }"
    session = ort.session(build(text, p=np.array([-1, 7])))
    with pytest.raises(
        Exception, match=r"random values \('x' \[2, 1\], 'z' \[2, 1\]\): give --data of sizes"
    ):
        sample_feeds(None, session, 2)


@pytest.mark.parametrize(
    "name, wanted",
    [
        ("stateful", {"x": "1x12", "state": "2x1x16"}),
        ("recurrent", {"x": "7x2x12", "h": "1x2x16"}),
        ("spectral", {}),
    ],
)
def test_engines_are_built_for_a_call(name: str, wanted: Mapping[str, str]) -> None:
    target, model = find("tensorrt-rtx")(), calls.NETWORKS[name]()
    shapes = {key: array.shape for key, array in calls.call(name, calls.samples(name), 0).items()}
    fitted, notes = target.fitted(model, target.Config(), shapes, per_call=True)
    assert fitted.shapes == wanted
    assert len(notes) == len(wanted)


def test_a_signal_and_a_state_are_made_up_of_sizes_that_fit() -> None:
    """Of no names: a state of 64 samples beside one signal does not run, nor a signal of 1."""
    text = """(float[N, L] x, float[2, M, 4] state) => (float[A, B, C] y) {
        padded = Pad <mode = "reflect"> (x, pads)  m = ReduceSum <keepdims = 1> (padded, axis)
        one = Concat <axis = 1> (m, m, m, m)  u = Unsqueeze (one, zero)
        y = Concat <axis = 0> (state, u) }"""
    model = build(text, pads=np.array([0, 8, 0, 8]), axis=np.array([1]), zero=np.array([0]))
    for value in model.graph.input:
        for dim in value.type.tensor_type.shape.dim:
            dim.ClearField("dim_param")
    feeds = sample_feeds(None, ort.session(model), 8)
    assert {name: array.shape for name, array in feeds.items()} == {"x": (1, 64), "state": (2, 1, 4)}
