"""The trainer and the built-in hook: what it learns from, repeatability, refusals, and that nothing is left
half done.
"""

import sys
from collections.abc import Iterator

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from onnx_lathe.errors import DataError, ModelError, PassError, UsageError
from onnx_lathe.passes.core.services import Trainer
from onnx_lathe.runtime.data import Batch, model_inputs, open_source
from onnx_lathe.runtime.training import TorchTrainer, TrainingSetup, require_torch
from tests.support import quantized
from tests.support.builders import build, random
from tests.support.training import CENTRES, CLASSES, Points, accuracy, disagreement, model, options, updated

torch = pytest.importorskip("torch")
from onnx_lathe.runtime.torch_bridge import GraphModule  # noqa: E402
from onnx_lathe.runtime.training import agreement  # noqa: E402
from onnx_lathe.runtime.training.loop import schedule  # noqa: E402
from onnx_lathe.runtime.training.loop.objective import Objective  # noqa: E402
from onnx_lathe.runtime.training.loop.settings import Settings  # noqa: E402


@pytest.fixture(scope="module")
def teacher() -> onnx.ModelProto:
    start = model()
    return updated(
        start,
        TorchTrainer(TrainingSetup(Points())).train(start, options(epochs=15, rate=0.02, batch=32)).values,
    )


def test_one_number_for_a_fixed_batch_is_refused_by_name() -> None:
    text = "(float[4, 6] x) => (float[4, 3] y, float total) { y = Gemm (x, w)  total = ReduceSum <keepdims = 0> (y) }"
    fixed = build(text, w=random(6, 3))
    with pytest.raises(PassError, match="output 'total' is one number for a whole batch of 4"):
        agreement.check(fixed, GraphModule(fixed), Points())


def test_learns_from_labels_alone(teacher: onnx.ModelProto) -> None:
    assert accuracy(model()) < 0.6
    assert accuracy(teacher) > 0.93


@pytest.mark.parametrize("optimizer, rate", [("adamw", 0.02), ("sgd", 0.05)])
def test_learns_from_the_original_model_alone(teacher: onnx.ModelProto, optimizer: str, rate: float) -> None:
    start = model(seed=3)
    trained = TorchTrainer(TrainingSetup(Points(labelled=False), teacher)).train(
        start, options(epochs=15, rate=rate, optimizer=optimizer, batch=32)
    )
    student = updated(start, trained.values)
    assert accuracy(student) > 0.9
    assert disagreement(student, teacher) < 0.25 < 1 < disagreement(start, teacher)
    assert trained.metrics["last_loss"] < 0.1 * trained.metrics["first_loss"]


def test_metrics_and_progress(teacher: onnx.ModelProto) -> None:
    lines: list[str] = []
    trainer: Trainer = TorchTrainer(TrainingSetup(Points(300), teacher, progress=lines.append))
    metrics = trainer.train(model(), options(epochs=2, batch=64)).metrics
    assert metrics.keys() == {"epochs", "seconds", "samples", "first_loss", "last_loss", "peak_memory_bytes"}
    assert (metrics["epochs"], metrics["samples"]) == (2, 300)
    assert metrics["seconds"] > 0
    assert lines[0] == "comparing PyTorch with ONNX Runtime"
    assert [line.partition(":")[0] for line in lines[1:]] == ["epoch 1/2", "epoch 2/2"]
    assert lines[-1].endswith(", 0 s left")


def test_the_same_seed_gives_the_same_weights(teacher: onnx.ModelProto) -> None:
    def values(seed: int) -> dict[str, bytes]:
        torch.rand(3)  # what the caller's generator is at does not matter
        result = TorchTrainer(TrainingSetup(Points(), teacher)).train(model(), options(seed=seed))
        return {name: value.tobytes() for name, value in result.values.items()}

    assert values(0) == values(0)
    assert values(0) != values(1)


def test_the_random_state_of_the_caller_stays(teacher: onnx.ModelProto) -> None:
    torch.manual_seed(3)
    before = torch.get_rng_state()
    TorchTrainer(TrainingSetup(Points(64), teacher)).train(model(), options(epochs=1))
    assert torch.equal(torch.get_rng_state(), before)


def test_a_rate_of_zero_changes_no_bit(teacher: onnx.ModelProto) -> None:
    for name, value in (
        TorchTrainer(TrainingSetup(Points(), teacher))
        .train(teacher, options(rate=0.0, weight_decay=0.1))
        .values.items()
    ):
        stored = next(tensor for tensor in teacher.graph.initializer if tensor.name == name)
        assert value.tobytes() == numpy_helper.to_array(stored).tobytes()


def test_data_of_unknown_size_trains_alike(teacher: onnx.ModelProto) -> None:
    known = TorchTrainer(TrainingSetup(Points(300), teacher)).train(model(), options())
    unknown = TorchTrainer(TrainingSetup(Points(300, known=False), teacher)).train(model(), options())
    assert unknown.metrics["samples"] == 300
    assert all(np.array_equal(known.values[name], value) for name, value in unknown.values.items())


@pytest.mark.parametrize(
    "tail", ["z = Gemm(h, v, c)  y = Softmax(z)", "z = Gemm(h, v, c)  s = LogSoftmax(z)  y = Identity(s)"]
)
def test_probabilities_are_learned_like_logits(teacher: onnx.ModelProto, tail: str) -> None:
    plain = TorchTrainer(TrainingSetup(Points(), teacher)).train(model(), options(rate=0.01)).values
    soft = updated(
        model(tail), {tensor.name: numpy_helper.to_array(tensor) for tensor in teacher.graph.initializer}
    )
    ended = TorchTrainer(TrainingSetup(Points(), soft)).train(model(tail), options(rate=0.01)).values
    for name, value in plain.items():
        np.testing.assert_allclose(ended[name], value, rtol=0, atol=2e-3)


def test_the_objective_is_hintons() -> None:
    settings = Settings.read(options(distill=0.25, temperature=3.0, label_smoothing=0.1))
    student, taught = (
        torch.randn(5, 4, generator=torch.Generator().manual_seed(0)),
        torch.linspace(-2, 2, 20).reshape(5, 4),
    )
    labels = torch.tensor([0, 1, 2, 3, 0])
    p, q = torch.softmax(taught / 3, 1), torch.softmax(student / 3, 1)
    want = 0.25 * 9 * (p * (p / q).log()).sum(1).mean()
    smooth = torch.full((5, 4), 0.025)
    smooth[range(5), labels] += 0.9
    want += 0.75 * -(smooth * torch.log_softmax(student, 1)).sum(1).mean()
    objective = Objective(["Gemm"], [student], 5, True, True, settings)
    torch.testing.assert_close(objective([student], [taught], labels), want)
    probabilities = Objective(["Softmax"], [student], 5, True, True, settings)
    torch.testing.assert_close(probabilities([student.softmax(1)], [taught.softmax(1)], labels), want)


@pytest.mark.parametrize("operator, shape", [("Sigmoid", (5, 4)), ("Conv", (5, 4, 2, 2)), ("Gemm", (5, 1))])
def test_other_outputs_are_compared_by_square_error(operator: str, shape: tuple[int, ...]) -> None:
    student, taught, counts = torch.rand(shape) + 1, torch.rand(shape), torch.arange(5)
    objective = Objective(
        [operator, ""], [student, counts], 5, True, True, Settings.read(options(distill=0.3))
    )
    want = (student - taught).square().mean() / taught.square().mean()
    torch.testing.assert_close(
        objective([student, counts], [taught, counts], torch.zeros(5, dtype=torch.int64)), want
    )


def test_all_float_outputs_are_distilled() -> None:
    scores, box = torch.randn(5, 4), torch.randn(5, 2, 2)
    objective = Objective(["Gemm", "Conv"], [scores, box], 5, False, True, Settings.read(options()))
    assert objective([scores, box], [scores, box], None).item() == pytest.approx(0, abs=1e-6)
    assert objective([scores, box], [scores, 2 * box], None).item() == pytest.approx(0.25)


def test_the_schedule_rises_and_falls() -> None:
    cosine = [schedule.rate("cosine", progress, 0.1) for progress in (0.0, 0.05, 0.1, 0.55, 1.0, 1.2)]
    assert cosine == pytest.approx([0, 0.5, 1, 0.5, 0, 0])
    assert schedule.rate("cosine", 0.0, 0.0) == 1
    assert schedule.rate("cosine", 0.025, None) == pytest.approx(0.5)
    assert [schedule.rate("constant", progress, 0.1) for progress in (0.05, 0.1, 1.0)] == pytest.approx(
        [0.5, 1, 1]
    )
    cycle = [schedule.rate("onecycle", progress, None) for progress in (0.0, 0.15, 0.3, 0.65, 1.0)]
    assert cycle == pytest.approx([0.04, 0.52, 1, 0.50005, 1e-4])
    assert [
        schedule.momentum("onecycle", progress, None, 0.95) for progress in (0.0, 0.3, 1.0)
    ] == pytest.approx([0.946, 0.85, 0.95], abs=1e-4)
    assert schedule.momentum("cosine", 0.5, None, 0.9) == 0.9


def test_weight_decay_spares_vectors() -> None:
    start = updated(model(), {"b": np.ones(8, np.float32)})
    one_step = options(
        epochs=1, batch=512, rate=0.1, weight_decay=0.5, warmup=0.0, optimizer="sgd", momentum=0.0
    )
    # its own teacher: there is no other gradient
    values = TorchTrainer(TrainingSetup(Points(labelled=False), start)).train(start, one_step).values
    shrunk = 1 - 0.1 * schedule.rate("cosine", 0.5, 0.0) * 0.5
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in start.graph.initializer}
    np.testing.assert_allclose(values["w"], shrunk * stored["w"], rtol=0, atol=1e-4)
    np.testing.assert_allclose(values["b"], 1, rtol=0, atol=1e-4)


def test_validation_keeps_the_best_epoch(teacher: onnx.ModelProto) -> None:
    spoiling = Points(256)
    spoiling.labels = (spoiling.labels + 1) % CLASSES
    spoiled = TorchTrainer(TrainingSetup(spoiling)).train(teacher, options(rate=0.05, batch=32))
    assert accuracy(updated(teacher, spoiled.values)) < 0.5
    kept = TorchTrainer(TrainingSetup(spoiling, validation=Points(256, seed=2))).train(
        teacher, options(rate=0.05, batch=32)
    )
    assert kept.metrics["best_epoch"] == 0
    assert accuracy(updated(teacher, kept.values)) == accuracy(teacher)
    better = TorchTrainer(TrainingSetup(Points(), validation=Points(256, seed=2))).train(
        model(), options(rate=0.02, batch=32)
    )
    assert better.metrics["best_epoch"] >= 1


def test_a_model_for_one_batch_size_is_trained_at_any(teacher: onnx.ModelProto) -> None:
    values = {tensor.name: numpy_helper.to_array(tensor) for tensor in teacher.graph.initializer}
    reshaped = "s = Reshape(h, shape)  y = Gemm(s, v, c)"
    fixed, free = model(reshaped, batch="2", shape=np.array([2, 8])), model(reshaped, shape=np.array([-1, 8]))
    results = [
        TorchTrainer(TrainingSetup(Points(99), updated(start, values))).train(start, options(batch=32)).values
        for start in (fixed, free)
    ]
    for name, value in results[0].items():
        np.testing.assert_allclose(value, results[1][name], atol=1e-4)


def test_a_batch_size_that_only_the_signature_has_costs_nothing() -> None:
    fixed = model(batch="8")
    module = GraphModule(fixed)
    agreement.check(fixed, module, Points())
    assert module.fixed_batch is None


@pytest.mark.parametrize("features", [8, 16])
def test_a_state_for_one_sample_beside_a_dynamic_batch_is_run_one_by_one(features: int) -> None:
    mixed = build(
        f"(float[N,{features}] x, float[1,{features}] s) => (float[N,3] y) {{ h = Mul(x, s) y = MatMul(h, w) }}",
        w=random(features, 3),
    )
    data = open_source({"x": random(9, features), "s": random(9, features)}, model_inputs(mixed))
    module = GraphModule(mixed)
    agreement.check(mixed, module, data)
    TorchTrainer(TrainingSetup(data, mixed)).train(mixed, options(epochs=1, batch=4))


def test_images_train_through_a_quantized_codebook() -> None:
    class Images(Points):
        def batches(self, size: int, shuffle_seed: int | None = None) -> Iterator[Batch]:
            yield Batch(dict(quantized.IMAGES), np.arange(4))

    start = quantized.lenet()
    original = quantized.lenet(codebook=False, int8=False)
    trained = TorchTrainer(TrainingSetup(Images(4), original)).train(
        start, options(epochs=30, rate=0.03, distill=0.5, temperature=2.0)
    )
    assert trained.metrics["last_loss"] < 0.5 * trained.metrics["first_loss"]
    onnx.checker.check_model(updated(start, trained.values), full_check=True)


def test_a_diverging_training_is_refused(teacher: onnx.ModelProto) -> None:
    with pytest.raises(
        PassError,
        match=r"the loss became (nan|inf) in epoch 1; the model is left as it was; give a smaller rate=",
    ):
        TorchTrainer(TrainingSetup(Points())).train(teacher, options(rate=1e30, optimizer="sgd"))


def test_clipping_shortens_long_gradients() -> None:
    def moved(clip: float) -> float:
        start = model(scale=30.0)
        settings = options(
            rate=1e-3, optimizer="sgd", momentum=0.0, epochs=1, batch=512, warmup=0.0, clip=clip
        )
        values = TorchTrainer(TrainingSetup(Points())).train(start, settings).values
        stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in start.graph.initializer}
        return float(
            np.sqrt(sum(np.sum((values[name] - stored[name]).astype(np.float64) ** 2) for name in values))
        )

    rate = 1e-3 * schedule.rate("cosine", 0.5, 0.0)
    assert moved(0.0) > 10 * rate
    assert moved(0.5) == pytest.approx(0.5 * rate, rel=0.05)


def test_nothing_to_learn_from_is_refused() -> None:
    with pytest.raises(
        PassError, match="nothing to learn from: the data has no labels, and there is no original model"
    ):
        TorchTrainer(TrainingSetup(Points(labelled=False))).train(model(), options())
    with pytest.raises(PassError, match=r"no output is \[batch, classes\]"):
        TorchTrainer(TrainingSetup(Points())).train(model("z = Gemm(h, v, c)  y = Sigmoid(z)"), options())


def test_nothing_to_train_is_refused() -> None:
    bare = build("(float[n, 6] x) => (float[n, 6] y) { y = Relu(x) }")
    with pytest.raises(PassError, match="nothing to train: no weight of the model is a float initializer"):
        TorchTrainer(TrainingSetup(Points(), bare)).train(bare, options())


def test_outputs_of_integers_alone_are_refused() -> None:
    start = build(
        "(float[n, 6] x) => (int64[n] y) { z = MatMul(x, w)  y = ArgMax <axis = 1, keepdims = 0> (z) }",
        w=CENTRES.T.copy(),
    )
    with pytest.raises(PassError, match="no output is floating point; cut off the ArgMax"):
        TorchTrainer(TrainingSetup(Points(), start)).train(start, options())


def test_a_failed_allocation_on_a_cpu_says_what_to_do(
    teacher: onnx.ModelProto, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*arguments: object, **more: object) -> None:
        raise RuntimeError(
            "DefaultCPUAllocator: can't allocate memory: you tried to allocate 10000 bytes. Error code 12"
        )

    monkeypatch.setattr(Objective, "__call__", fail)
    with pytest.raises(
        PassError, match="not enough memory to train 32 samples at once; give a smaller batch="
    ):
        TorchTrainer(TrainingSetup(Points())).train(teacher, options(batch=32))


def test_data_that_does_not_fit_is_refused(teacher: onnx.ModelProto) -> None:
    many = Points()
    many.labels = many.labels + CLASSES
    with pytest.raises(DataError, match=r"label \d in the data, but the model has classes 0 to 3"):
        TorchTrainer(TrainingSetup(many, teacher)).train(model(), options())
    with pytest.raises(DataError, match="the training data has no samples"):
        TorchTrainer(TrainingSetup(Points(0), teacher)).train(model(), options())


def test_a_model_that_pytorch_cannot_run_is_refused() -> None:
    odd = build("(float[n, 6] x) => (float[n, 6] y) { y = Relu(x)  z = RandomNormalLike(x) }")
    odd.graph.output.append(onnx.helper.make_tensor_value_info("z", onnx.TensorProto.FLOAT, ["n", 6]))
    with pytest.raises(ModelError, match="RandomNormalLike"):
        TorchTrainer(TrainingSetup(Points())).train(odd, options())


def test_a_node_that_computes_something_else_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    from onnx_lathe.runtime.torch_bridge import registry

    registry.find("", "Relu", 17)
    wrong = registry.Operator(lambda node: torch.abs, ())
    monkeypatch.setitem(registry._TABLE, ("", "Relu"), {6: wrong})
    with pytest.raises(PassError, match=r"node 'h' \(Relu\) differs first, by \S+ of its output 'h'"):
        TorchTrainer(TrainingSetup(Points())).train(model(), options())


def test_missing_options_are_named() -> None:
    with pytest.raises(UsageError, match="options rate, batch; see: optimize passes retrain"):
        TorchTrainer(TrainingSetup(Points())).train(
            model(), {key: value for key, value in options().items() if key not in ("rate", "batch")}
        )


def test_an_unknown_device_is_refused() -> None:
    with pytest.raises(UsageError, match="there is no device 'gpu'"):
        TorchTrainer(TrainingSetup(Points(), device="gpu")).train(model(), options())


def test_without_pytorch_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    for call in (require_torch, lambda: TorchTrainer(TrainingSetup(Points())).train(model(), options())):
        with pytest.raises(UsageError, match=r"retrain needs PyTorch; pip install 'onnx-lathe\[train\]'"):
            call()
