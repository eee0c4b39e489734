"""int8(rounding=blocks): what a fitter is given, what becomes of what it finds, and what is said."""

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
import onnx
import pytest

from onnx_lathe.errors import PassError
from onnx_lathe.passes.core.options import configure
from onnx_lathe.passes.core.report import PassReport
from onnx_lathe.passes.core.services import Context
from onnx_lathe.passes.graph.model import export_model, import_model
from onnx_lathe.passes.int8.int8 import Int8
from onnx_lathe.passes.numerics.quantization.affine import signal_to_noise_db
from onnx_lathe.protocols import BlockTask, FittedBlock
from onnx_lathe.runtime.running.calibration import StreamingCalibrator
from onnx_lathe.runtime.training import TorchFitter
from tests.support.builders import build, random, run
from tests.support.int8 import Form
from tests.support.rounding import Samples, alike

INVERTED = """(float[{}, 8, 8, 8] x) => (float[N, O, P, Q] y) {{ c = Conv (x, a, ab)  r = Relu (c)
    d = Conv <group = 24, pads = [1, 1, 1, 1]> (r, b, bb)  s = Relu (d)  e = Conv (s, w, wb)  t = Add (e, x)  y = Conv (t, v) }}"""


def network(batch: int | str = "N") -> onnx.ModelProto:
    shapes = {"a": (24, 8, 1, 1), "b": (24, 1, 3, 3), "w": (8, 24, 1, 1), "v": (8, 8, 1, 1)}
    biases = {"ab": 24, "bb": 24, "wb": 8}
    return build(
        INVERTED.format(batch),
        **{name: random(*shape) for name, shape in shapes.items()},
        **{name: random(size) for name, size in biases.items()},
    )


@dataclass
class Recorder:
    """A fitter that keeps what it was given, and finds what it is told to."""

    find: Callable[[BlockTask], FittedBlock] = lambda task: FittedBlock(0.2, 0.3, {}, {})
    tasks: list[BlockTask] = field(default_factory=list)

    def fit(self, task: BlockTask, steps: int) -> FittedBlock:
        self.tasks.append(task)
        return self.find(task)


def fitted(
    model: onnx.ModelProto, data: Samples, fitter: object, **options: object
) -> tuple[onnx.ModelProto, PassReport]:
    graph = import_model(model)
    given = {"rounding": "blocks", "weight_bits": 4, "method": "minmax"} | options
    context = Context(calibrator=StreamingCalibrator(data), fitter=fitter)
    report = configure(Int8, given).apply(graph, context)
    result = export_model(graph)
    onnx.checker.check_model(result, full_check=True)
    return result, report


def answered(task: BlockTask, quantized: bool) -> np.ndarray:
    """What ONNX Runtime computes with the model of the block, as it begins."""
    masks = {name: np.full([1] * 4, quantized) for name in task.masks}
    starts = {name: (one.start * one.step).astype(np.float32) for name, one in task.levels.items()}
    model = onnx.ModelProto()
    model.CopyFrom(task.model)
    return next(iter(run(model, {task.source: task.x, **task.values, **masks, **starts}).values()))


def with_tensor(model: onnx.ModelProto, name: str) -> onnx.ModelProto:
    other = onnx.ModelProto()
    other.CopyFrom(model)
    other.graph.output.append(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None))
    return other


def test_a_block_alone_computes_what_it_computes_in_the_network() -> None:
    model, data, recorder = network(), Samples(40, 8, 8, 8), Recorder()
    result, report = fitted(model, data, recorder)
    assert [(task.source, task.model.graph.output[0].name) for task in recorder.tasks] == [
        ("x", "t"),
        ("t", "y"),
    ]
    first, second = recorder.tasks
    assert set(first.levels) == {"a", "w"}
    assert set(first.values) == {"b", "ab", "bb", "wb"}
    inside = run(with_tensor(result, "t"), {"x": data.x})
    np.testing.assert_allclose(answered(first, True), inside["t"], rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(answered(second, True), inside["y"], rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(second.x, inside["t"], rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(
        first.target, run(with_tensor(model, "t"), {"x": data.x})["t"], rtol=1e-4, atol=1e-3
    )
    assert np.abs(answered(first, False) - answered(first, True)).max() > 1e-2
    assert 0 < first.held.sum() < len(first.x) // 4
    reasons = [skip.reason for skip in report.skips if "block" in skip.reason]
    assert reasons[0] == "block of 3 layers up to t: nothing better was found (error 20 % of its variance)"
    assert (report.metrics["blocks"], report.metrics["blocks_trained"]) == (2, 0)


def test_what_is_found_is_written_and_the_next_block_reads_it() -> None:
    def find(task: BlockTask) -> FittedBlock:
        levels = {name: (np.zeros_like(one.start), 2 * one.step) for name, one in task.levels.items()}
        return FittedBlock(0.2, 0.1, levels, {name: 0 * one for name, one in task.values.items()})

    recorder = Recorder(find)
    model, data = network(), Samples(40, 8, 8, 8)
    result, report = fitted(model, data, recorder)
    form = Form(result)
    assert not form.constants["a_int8"].any()
    assert not form.constants["b"].any()
    np.testing.assert_allclose(
        recorder.tasks[1].x, data.x, rtol=1e-5, atol=0.2
    )  # what is added to nothing, quantized
    whats = [edit.what for edit in report.edits]
    assert "block of 3 layers up to t: error 20 % of its variance -> 10 % of its variance" in whats


def test_answers_come_nearer_than_by_layers_alone() -> None:
    model, data, unseen = network(), Samples(64, 8, 8, 8), alike(40, 8, 8, 8)
    start, _ = fitted(model, data, Recorder())
    trained, report = fitted(model, data, TorchFitter(), block_steps=50)
    nearest, _ = fitted(model, data, None, rounding="nearest")
    wanted, by_nearest, by_layers, by_blocks = (
        run(with_tensor(one, "t"), {"x": unseen})["t"] for one in (model, nearest, start, trained)
    )
    before, between, after = (signal_to_noise_db(wanted, one) for one in (by_nearest, by_layers, by_blocks))
    assert between > before + 2
    assert after > between + 0.3
    assert report.metrics["blocks_trained"] >= 1
    assert report.metrics["outputs_sqnr"] > 12
    assert "bias_correction_gain_db" not in report.metrics


def test_a_layer_begins_with_what_trained_blocks_give(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is held between two steps is nothing that the training of a block has changed."""

    def find(task: BlockTask) -> FittedBlock:
        levels = {name: (-one.start, one.step) for name, one in task.levels.items()}
        return FittedBlock(0.2, 0.1, levels, dict(task.values))

    model, data = network(), Samples(40, 8, 8, 8)
    near, _ = fitted(model, data, Recorder(find))
    monkeypatch.setattr("onnx_lathe.passes.graph.answers.walk.HELD_BYTES", 1)
    far, _ = fitted(model, data, Recorder(find))
    for name, values in Form(near).constants.items():
        np.testing.assert_allclose(Form(far).constants[name], values, rtol=1e-3, atol=1e-4, err_msg=name)


@pytest.mark.parametrize("bits, levels", [(8, 127), (4, 7), (3, 3)])
def test_levels_are_as_few_as_asked_for(bits: int, levels: int) -> None:
    recorder = Recorder()
    result, _ = fitted(network(), Samples(40, 8, 8, 8), recorder, weight_bits=bits)
    assert {one.largest for task in recorder.tasks for one in task.levels.values()} == {levels}
    assert np.abs(Form(result).constants["a_int8"]).max() <= levels


def test_zeros_are_not_free() -> None:
    model = network()
    (weight,) = [one for one in model.graph.initializer if one.name == "a"]
    values = onnx.numpy_helper.to_array(weight).copy()
    values[:, 3] = 0
    weight.CopyFrom(onnx.numpy_helper.from_array(values, "a"))
    recorder = Recorder()
    fitted(model, Samples(40, 8, 8, 8), recorder)
    np.testing.assert_array_equal(recorder.tasks[0].levels["a"].free, values != 0)


def test_a_network_for_one_sample_is_fitted_one_by_one() -> None:
    recorder = Recorder()
    fitted(network(1), Samples(40, 8, 8, 8), recorder)
    assert recorder.tasks[0].batch == 1
    assert len(recorder.tasks[0].x) == 40


def test_what_pytorch_cannot_run_stays_and_is_said() -> None:
    text = "(float[N, 8, 8, 8] x) => (float[N, O, P, Q] y) { a = Conv (x, w)  b = Relu (a)  c = Det (b)  e = Mul (b, b)  y = Add (e, b) }"
    model = build(text.replace("c = Det (b)", "c = Shape (b)"), w=random(8, 8, 1, 1))

    class Refusing:
        def fit(self, task: BlockTask, steps: int) -> FittedBlock:
            from onnx_lathe.errors import ModelError

            raise ModelError("PyTorch cannot run 1 of\nthe model's nodes")

    _, report = fitted(model, Samples(40, 8, 8, 8), Refusing())
    assert "its block is not trained: PyTorch cannot run it (PyTorch cannot run 1 of the model's nodes)" in [
        skip.reason for skip in report.skips
    ]


def test_without_a_fitter_it_says_what_to_do() -> None:
    with pytest.raises(
        PassError, match="rounding=blocks needs PyTorch's fitter, and there is none; give rounding=adaptive"
    ):
        fitted(network(), Samples(8, 8, 8, 8), None)
    assert set(configure(Int8, {"rounding": "blocks"}).needs) == {"calibrator", "fitter"}
