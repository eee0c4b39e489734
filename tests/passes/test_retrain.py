"""The pass: values are written back, and nothing else changes."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from onnx_lathe.errors import PassError, UsageError
from onnx_lathe.passes.core.options import configure
from onnx_lathe.passes.core.report import PassReport
from onnx_lathe.passes.core.services import Context
from onnx_lathe.passes.core.training_options import relative_change
from onnx_lathe.passes.graph import Graph
from onnx_lathe.passes.graph.initializers import read
from onnx_lathe.passes.graph.model import export_model, import_model, set_sparse_tensors, sparse_tensors
from onnx_lathe.passes.retrain import Retrain
from onnx_lathe.protocols import Shaping
from onnx_lathe.runtime.data import Batch, DataSource
from onnx_lathe.runtime.training import TorchTrainer, TrainingSetup
from onnx_lathe.tiles import Tiles
from tests.support import quantized
from tests.support.builders import build, random


@dataclass
class Stub:
    """A trainer that returns given values and notes what it was asked."""

    values: Mapping[str, np.ndarray]
    metrics: Mapping[str, float] = field(default_factory=lambda: {"epochs": 2.0, "last_loss": 0.5})
    kept: Sequence[tuple[str, str]] = ()
    warnings: Sequence[str] = ()

    def train(
        self,
        model: onnx.ModelProto,
        settings: Mapping[str, Any],
        shaping: Shaping | None = None,
        tiles: Mapping[str, Tiles] | None = None,
    ) -> "Stub":
        self.asked, self.settings, self.tiles = model, settings, tiles
        return self


def apply(model: onnx.ModelProto, trainer: Stub | None, **options: Any) -> tuple[onnx.ModelProto, PassReport]:
    graph = import_model(model)
    report = configure(Retrain, options).apply(graph, Context(trainer=trainer))
    return export_model(graph), report


W = random(4, 5)
MODEL = build("(float[n, 4] x) => (float[n, 5] y) { [fc] y = Gemm(x, w, b) }", w=W, b=np.zeros(5, np.float32))


def test_changed_values_are_written_and_reported() -> None:
    w, b = (W * np.float32(1.1)).astype(np.float32), np.ones(5, np.float32)
    after, report = apply(MODEL, Stub({"w": w, "b": b}))
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in after.graph.initializer}
    np.testing.assert_array_equal(stored["w"], w)
    np.testing.assert_array_equal(stored["b"], b)
    assert [(edit.node, edit.what) for edit in report.edits] == [
        ("fc", "w changed by 10 %"),
        ("fc", "b changed by 224 %"),
    ]
    assert report.metrics == {"epochs": 2.0, "last_loss": 0.5}
    assert len(after.graph.node) == 1
    assert (list(after.graph.node[0].input), list(after.graph.node[0].output)) == (["x", "w", "b"], ["y"])
    x = random(3, 4)
    np.testing.assert_allclose(quantized.run(after, {"x": x})[0], x @ w + b, atol=1e-5)


def test_equal_values_are_no_edit() -> None:
    after, report = apply(MODEL, Stub({"w": W.copy()}))
    assert report.edits == []
    assert numpy_helper.to_array(after.graph.initializer[0]).tobytes() == W.tobytes()


def test_the_trainer_gets_the_graph_and_all_options() -> None:
    trainer = Stub({})
    apply(MODEL, trainer, epochs=5, rate=0.25, optimizer="sgd")
    assert trainer.asked.graph.node[0].op_type == "Gemm"
    assert trainer.settings.items() >= {"epochs": 5, "rate": 0.25, "optimizer": "sgd"}.items()
    assert trainer.settings.keys() == {
        "epochs", "rate", "optimizer", "batch", "weight_decay", "momentum", "distill", "temperature", "label_smoothing", "warmup", "clip",
        "shift", "flip", "precision", "seed", "decay", "holdout", "patience", "learn_scales", "normalization", "gradients", "gradient_rank",
        "gradient_threshold", "dense", "winograd",
    }  # fmt: skip


@pytest.mark.parametrize(
    "values",
    [
        pytest.param({"w": np.zeros((4, 5), np.float64)}, id="dtype"),
        pytest.param({"w": np.zeros((5, 4), np.float32)}, id="shape"),
        pytest.param({"y": np.zeros(5, np.float32)}, id="computed"),
        pytest.param({"no": np.zeros(1, np.float32)}, id="unknown"),
    ],
)
def test_values_that_fit_no_initializer_are_refused(values: dict[str, np.ndarray]) -> None:
    with pytest.raises(
        PassError,
        match=f"retraining returned '{next(iter(values))}' as .* which is no initializer of the model",
    ):
        apply(MODEL, Stub(values))


def test_training_data_is_needed() -> None:
    with pytest.raises(PassError, match="needs training data; give --data or --train"):
        apply(MODEL, None)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"epochs": 0}, "must be at least 1"),
        ({"distill": 1.5}, "must be 0.0 to 1.0"),
        ({"optimizer": "lion"}, "must be one of adamw, sgd"),
        ({"temperature": 0.0}, "must be at least 0.1"),
        ({"epoch": 3}, "no option 'epoch'; did you mean 'epochs'"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        configure(Retrain, options)


def test_bfloat16_values_are_written() -> None:
    old = random(4, 5).astype(ml_dtypes.bfloat16)
    model = build("(bfloat16[n, 4] x) => (bfloat16[n, 5] y) { [fc] y = MatMul(x, w) }", w=old)
    new = (old * ml_dtypes.bfloat16(2)).astype(ml_dtypes.bfloat16)
    after, report = apply(model, Stub({"w": new}))
    assert [(edit.node, edit.what) for edit in report.edits] == [("fc", "w changed by 100 %")]
    assert after.graph.initializer[0].data_type == onnx.TensorProto.BFLOAT16
    assert numpy_helper.to_array(after.graph.initializer[0]).tobytes() == new.tobytes()
    onnx.checker.check_model(after, full_check=True)


def test_layers_with_integer_weights_are_skipped() -> None:
    text = "(float[n, 4] x) => (float[n, 5] y) { w = DequantizeLinear(q, s)  [fc] a = Gemm(x, w, b)  [next] y = MatMul(a, v) }"
    model = build(
        text, q=np.ones((4, 5), np.int8), s=np.float32(0.1), b=np.zeros(5, np.float32), v=random(5, 5)
    )
    _, report = apply(model, Stub({"b": np.ones(5, np.float32)}))
    assert [(skip.node, skip.reason) for skip in report.skips] == [
        ("fc", "its weight is stored as int8, which does not train; retrain before int8")
    ]
    assert len(report.edits) == 1


def test_relative_change() -> None:
    assert relative_change(
        np.array([3.0, 4.0], np.float32), np.array([3.0, 4.5], np.float32)
    ) == pytest.approx(0.1)
    assert relative_change(np.zeros(2, np.float32), np.array([3, 4], np.float32)) == pytest.approx(5)


def probabilities(logits: np.ndarray) -> np.ndarray:
    powers = np.exp(logits - logits.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


@pytest.mark.parametrize("codebook, rate", [(False, 0.001), (True, 0.01)])
def test_a_network_is_retrained_for_real(codebook: bool, rate: float) -> None:
    pytest.importorskip("torch")
    from onnx_lathe.runtime.data import Batch
    from onnx_lathe.runtime.training import TorchTrainer, TrainingSetup

    class Images(DataSource):
        labelled, count, fingerprint, description = False, 4, "images", "images"

        def batches(self, size: int, shuffle_seed: int | None = None):
            yield Batch(dict(quantized.IMAGES))

    original = quantized.lenet(codebook=False, int8=False)
    start = quantized.lenet(codebook=codebook, int8=False)
    for tensor in start.graph.initializer:
        if tensor.name == "b1":  # damage that training has to mend
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) + np.float32(0.3), "b1"))
    trainer = TorchTrainer(TrainingSetup(Images(), original))  # type: ignore[arg-type]
    after, report = apply(start, trainer, epochs=20, rate=rate)  # type: ignore[arg-type]
    onnx.checker.check_model(after, full_check=True)
    assert report.metrics["last_loss"] < 0.3 * report.metrics["first_loss"]
    want, before, now = (
        probabilities(quantized.run(model, quantized.IMAGES)[0]) for model in (original, start, after)
    )
    assert np.abs(now - want).mean() < 0.5 * np.abs(before - want).mean()
    indices = [tensor for tensor in after.graph.initializer if tensor.name.endswith("_indices")]
    assert [t.SerializeToString() for t in indices] == [
        quantized.stored(start)[t.name].SerializeToString() for t in indices
    ]


class Noise(DataSource):
    labelled, count, fingerprint, description = False, 64, "noise", "noise"

    def batches(self, size: int, shuffle_seed: int | None = None) -> Iterator[Batch]:
        images = np.random.default_rng(1).standard_normal((64, 4)).astype(np.float32)
        yield from (Batch({"x": images[start : start + size]}) for start in range(0, 64, size))


def test_lifting_the_sparsity_lets_zeros_change_again() -> None:
    start = build(
        "(float[n, 4] x) => (float[n, 3] y) { y = MatMul(x, w) }",
        w=np.float32([[0, 1, 0], [2, 0, 0], [0, 0, 3], [1, 0, 1]]),
    )
    sparse = import_model(start)
    set_sparse_tensors(sparse, {"w": "unstructured"})
    sparse = export_model(sparse)
    teacher = build("(float[n, 4] x) => (float[n, 3] y) { y = MatMul(x, w) }", w=np.ones((4, 3), np.float32))

    def after(**options) -> tuple[np.ndarray, Graph, PassReport]:
        graph = import_model(sparse)
        trainer = TorchTrainer(TrainingSetup(Noise(), teacher))
        report = configure(Retrain, {"epochs": 3, "rate": 0.05, "batch": 16} | options).apply(
            graph, Context(trainer=trainer)
        )
        return read(graph.tensors()["w"]), graph, report

    weight, graph, _ = after()
    assert np.count_nonzero(weight) == 5
    assert sparse_tensors(graph) == {"w": "unstructured"}
    weight, graph, report = after(dense=True)
    assert np.count_nonzero(weight) == 12
    assert sparse_tensors(graph) == {}
    assert "the zeros of w may change again" in {edit.what for edit in report.edits}
    dense = import_model(start)
    report = configure(Retrain, {"epochs": 1, "dense": True}).apply(
        dense, Context(trainer=TorchTrainer(TrainingSetup(Noise(), teacher)))
    )
    assert ("model", "no weight has zeros that must stay; dense=true changes nothing") in {
        (skip.node, skip.reason) for skip in report.skips
    }


def test_options_that_find_nothing_to_do_are_told() -> None:
    _, report = apply(MODEL, Stub({"w": W + 1}), normalization="train", learn_scales=True)
    assert {(skip.node, skip.reason) for skip in report.skips} == {
        ("model", "it has no batch normalization; normalization=train changes nothing"),
        ("model", "it has no Q/DQ pairs; learn_scales=true changes nothing"),
    }


def test_signs_of_gradients_are_for_sgd() -> None:
    with pytest.raises(UsageError, match="give optimizer=sgd too"):
        configure(Retrain, {"gradients": "threshold"})
    assert (
        configure(Retrain, {"gradients": "threshold", "optimizer": "sgd"}).config.gradient_threshold == 1e-3
    )


def test_what_stays_not_a_number_does_not_hide_a_change() -> None:
    start = build("(float[n, 2] x) => (float[n, 2] y) { [fc] y = Mul(x, w) }", w=np.float32([np.nan, 2]))
    after, report = apply(start, Stub({"w": np.float32([np.nan, 3])}))
    assert [edit.what for edit in report.edits] == ["w changed by 50 %"]
    np.testing.assert_array_equal(numpy_helper.to_array(after.graph.initializer[0]), [np.nan, 3])
    assert apply(start, Stub({"w": np.float32([np.nan, 2])}))[1].edits == []


def test_what_training_left_alone_is_named() -> None:
    kept = [("branch", "If runs in ONNX Runtime, without a gradient")]
    _, report = apply(MODEL, Stub({}, kept=kept))
    assert [(skip.node, skip.reason) for skip in report.skips] == kept


def test_what_training_has_to_say_is_warned_of() -> None:
    _, report = apply(MODEL, Stub({}, warnings=["lost worker 2"]))
    assert report.warnings == ["lost worker 2"]
