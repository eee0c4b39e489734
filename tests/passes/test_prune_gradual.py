"""prune inside one training: how zeros grow, which weights come back, and what is left in the model."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import pytest

from onnx_lathe import metadata
from onnx_lathe.errors import PassError
from onnx_lathe.passes.core.options import configure
from onnx_lathe.passes.core.report import PassReport
from onnx_lathe.passes.core.services import Context
from onnx_lathe.passes.graph.model import export_model, import_model
from onnx_lathe.passes.numerics.sparsity.gradual import RETURNS, SCHEDULES, Gradual
from onnx_lathe.passes.numerics.sparsity.weight_choice import Budget
from onnx_lathe.passes.prune.prune import Prune
from onnx_lathe.protocols import Shaping
from tests.support.builders import build, random, run

WEIGHTS = {
    "a": random(20, 30),
    "b": random(30, 10),
}
PLAN = Gradual(
    budgets=[Budget(("a", "b"), 810)], start=[90], links=[], score="magnitude", schedule="cubic", rounds=10, until=0.5, settle=0.8, regrow=True
)  # fmt: skip


def zeros(masks: Mapping[str, np.ndarray]) -> int:
    return sum(int((~mask).sum()) for mask in masks.values())


def fresh(**changes: Any) -> Gradual:
    return replace(PLAN, masks={}, been_zero={}, **changes)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_zeros_grow_as_scheduled_from_what_is_there_to_what_is_asked(schedule: str) -> None:
    plan, counts = fresh(schedule=schedule), []
    for step in range(101):
        counts.append(zeros(plan(step / 100, WEIGHTS)))
    grown = {"cubic": lambda t: 1 - (1 - t) ** 3, "linear": lambda t: t, "once": lambda t: 1.0}[schedule]
    assert counts == [90 + round(720 * grown(min(step // 5, 10) / 10)) for step in range(101)]
    assert counts[0] == (810 if schedule == "once" else 90)
    assert counts[50] == counts[100] == 810


@pytest.mark.parametrize(
    "rounds, turns", [(1, [0.0, 0.5]), (5, [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8])]
)
def test_zeros_are_chosen_so_many_times(rounds: int, turns: list[float]) -> None:
    plan, changes, before = fresh(rounds=rounds), [], None
    for step in range(101):
        masks = plan(step / 100, WEIGHTS)
        if masks is not before:
            changes.append(step / 100)
        before = masks
    assert changes == turns


def test_a_trainer_that_asks_once_gets_the_final_zeros() -> None:
    assert zeros(fresh()(1.0, WEIGHTS)) == 810


def test_weights_come_back_a_few_at_a_time_and_only_until_they_settle() -> None:
    plan = fresh(schedule="once", start=[810])
    before = {name: mask.copy() for name, mask in plan(0.0, WEIGHTS).items()}
    assert sum(int(mask.sum()) for mask in before.values()) == 90
    swapped = {
        name: np.where(before[name], 0.5, 10 + np.abs(value)).astype(np.float32)
        for name, value in WEIGHTS.items()
    }
    returned = []
    for step in range(1, 101):
        after = plan(step / 100, swapped)
        returned.append(sum(int((mask & ~before[name]).sum()) for name, mask in after.items()))
        before = {name: mask.copy() for name, mask in after.items()}
        assert zeros(after) == 810
    rounds = returned[4::5]
    assert 0 < rounds[0] <= 2 + RETURNS * 90, "of each layer, rounded up"
    assert all(count == 0 for step, count in enumerate(returned, 1) if step % 5 or step >= 80)
    assert sum(returned) == sum(int((plan.been_zero[name] & mask).sum()) for name, mask in plan.masks.items())


def test_without_regrow_a_zero_stays() -> None:
    plan, gone = fresh(regrow=False), {name: np.zeros(value.shape, bool) for name, value in WEIGHTS.items()}
    for step in range(101):
        moving = {name: value + np.float32(0.1) * random(*value.shape) for name, value in WEIGHTS.items()}
        for name, mask in plan(step / 100, moving).items():
            assert not (mask & gone[name]).any()
            gone[name] |= ~mask
    assert zeros(plan.masks) == 810


def test_the_trainers_arrays_are_only_read() -> None:
    frozen = {name: value.copy() for name, value in WEIGHTS.items()}
    for value in frozen.values():
        value.flags.writeable = False
    plan = fresh(regrow=False)
    for done in (0.0, 0.3, 1.0):
        assert all(mask.dtype == bool and not mask.flags.writeable for mask in plan(done, frozen).values())


def test_a_weight_that_does_not_train_is_refused() -> None:
    with pytest.raises(
        PassError, match="weight 'b' is not trained, so it cannot be pruned gradually; leave training out"
    ):
        fresh()(0.0, {"a": WEIGHTS["a"]})


@pytest.mark.parametrize("score", ["magnitude", "lamp"])
def test_a_weight_that_training_broke_is_refused(score: str) -> None:
    with pytest.raises(
        PassError,
        match="training made weight 'b' NaN or infinite; the model is left as it was; give a smaller rate in training=",
    ):
        fresh(score=score)(0.0, WEIGHTS | {"b": np.full_like(WEIGHTS["b"], np.nan)})


class Stub:
    """A trainer of 20 steps that adds noise to every weight, and notes what it was asked."""

    warnings: Sequence[str] = ()

    def train(
        self, model: onnx.ModelProto, settings: Mapping[str, Any], shaping: Shaping | None = None
    ) -> "Stub":
        assert shaping is not None
        self.settings, self.start = settings, model
        weights = {
            tensor.name: onnx.numpy_helper.to_array(tensor).copy() for tensor in model.graph.initializer
        }
        generator = np.random.default_rng(0)
        masks: Mapping[str, np.ndarray] = {}
        for step in range(21):
            masks = shaping(step / 20, weights)
            for value in weights.values() if step < 20 else ():
                value += np.float32(0.3) * generator.standard_normal(value.shape).astype(np.float32)
        self.values = {
            name: np.where(masks.get(name, True), value, np.float32(0)) for name, value in weights.items()
        }
        self.metrics, self.kept = {"last_loss": 0.5}, ()
        return self


TWO_LAYERS = "(float[N, 20] x) => (float[N, 10] y) { h = Gemm (x, a, bias) r = Relu (h) y = MatMul (r, b) }"


def two_layers() -> onnx.ModelProto:
    return build(TWO_LAYERS, bias=np.ones(30, np.float32), **WEIGHTS)


def prune(
    model: onnx.ModelProto, trainer: Any, **options: Any
) -> tuple[onnx.ModelProto, dict[str, np.ndarray], PassReport]:
    graph = import_model(model)
    report = configure(Prune, {"training": {"epochs": 3}} | options).apply(graph, Context(trainer=trainer))
    after = export_model(graph)
    onnx.checker.check_model(after, full_check=True)
    return (
        after,
        {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in after.graph.initializer},
        report,
    )


@pytest.mark.parametrize(
    "options",
    [{}, {"scope": "global"}, {"scope": "global", "score": "lamp"}, {"regrow": False}, {"clean": False}],
)
def test_the_model_has_the_trained_values_and_exactly_the_zeros_asked_for(options: dict[str, Any]) -> None:
    trainer = Stub()
    after, values, report = prune(two_layers(), trainer, sparsity=0.9, **options)
    for name in "ab":
        np.testing.assert_array_equal(values[name], trainer.values[name])
    counts = [int((values[name] == 0).sum()) for name in "ab"]
    assert sum(counts) == 810
    if "scope" not in options:
        assert counts == [540, 270]
    assert metadata.read_sparse(after.metadata_props) == {"a": "unstructured", "b": "unstructured"}
    assert metadata.read_sparse(trainer.start.metadata_props) == {}, (
        "while it is trained, zeros may come back"
    )
    assert report.metrics["sparsity"] == 0.9
    assert report.metrics["last_loss"] == 0.5
    assert (report.metrics["returned"] > 0) == options.get("regrow", True)
    assert (
        trainer.settings.items() >= {"epochs": 3, "rate": None, "batch": 64, "precision": "float32"}.items()
    )
    texts = {edit.what.partition(",")[0].partition(" weights")[0] for edit in report.edits}
    assert texts >= {f"{counts[0]} of 600", f"{counts[1]} of 300"}
    assert any(edit.what.startswith("bias changed by ") for edit in report.edits)
    x = random(4, 20)
    np.testing.assert_allclose(
        run(after, {"x": x})["y"], np.maximum(x @ values["a"] + values["bias"], 0) @ values["b"], rtol=1e-4, atol=1e-5
    )  # fmt: skip


def test_units_without_use_end_without_weights_and_bias() -> None:
    _, values, report = prune(two_layers(), Stub(), sparsity=0.93, scope="global")
    read, written = (values["b"] != 0).any(1), (values["a"] != 0).any(0)
    np.testing.assert_array_equal(read, written)
    assert report.metrics["dead_units"] == 30 - read.sum() > 0
    assert not values["bias"][~read].any()
    assert values["bias"][read].all()


def test_layers_have_their_own_fractions() -> None:
    _, values, _ = prune(two_layers(), Stub(), sparsity=0.5, layers={"a": 0.8})
    assert [int((values[name] == 0).sum()) for name in "ab"] == [480, 150]


def test_zeros_that_the_model_names_stay_and_count() -> None:
    once, _, _ = prune(two_layers(), Stub(), sparsity=0.5, layers={"b": 0.0})
    _, _, report = prune(once, Stub(), sparsity=0.2, layers={"b": 0.0})
    assert next(edit.what for edit in report.edits).startswith("bias")
    assert any(
        edit.what.startswith("300 of 600 weights are zero (50.0 %), 300 before") for edit in report.edits
    )


def test_a_layer_that_trained_and_kept_all_its_weights_is_no_skip() -> None:
    model = build(TWO_LAYERS, bias=np.ones(30, np.float32), a=WEIGHTS["a"] * 100, b=WEIGHTS["b"] / 100)
    after, _, report = prune(model, Stub(), sparsity=0.1, scope="global", clean=False)
    assert report.skips == []
    assert any(edit.what.startswith("0 of 600 weights are zero") for edit in report.edits)
    assert metadata.read_sparse(after.metadata_props) == {"b": "unstructured"}


def test_only_a_gradual_pruning_needs_training_data() -> None:
    assert configure(Prune, {}).needs == ()
    assert configure(Prune, {"training": {"epochs": 1}}).needs == ("trainer",)
    assert configure(Prune, {"training": {}, "sensitivity": True}).needs == ("trainer", "runner")
    with pytest.raises(PassError, match="needs training data; give --data or --train"):
        prune(two_layers(), None)


def test_nothing_to_prune_does_not_train() -> None:
    _, _, report = prune(two_layers(), None, sparsity=0.0)
    assert [skip.reason for skip in report.skips] == ["its sparsity is set to 0"] * 2
    assert report.edits == []


def test_a_network_is_pruned_for_real() -> None:
    pytest.importorskip("torch")
    from onnx_lathe.runtime.training import TorchTrainer, TrainingSetup
    from tests.support.training import Points, accuracy, model, options, updated

    dense = updated(
        model(),
        TorchTrainer(TrainingSetup(Points())).train(model(), options(epochs=15, rate=0.02, batch=32)).values,
    )
    at_once = import_model(dense)
    choice: dict[str, Any] = {"sparsity": 0.7, "scope": "global", "min_size": 1}
    configure(Prune, choice).apply(at_once, Context())
    graph = import_model(dense)
    settings = {"training": {"epochs": 12, "rate": 0.02, "batch": 32}, "rounds": 20}
    report = configure(Prune, choice | settings).apply(
        graph, Context(trainer=TorchTrainer(TrainingSetup(Points(), dense)))
    )
    after = export_model(graph)
    assert report.metrics["sparsity"] == 0.7
    assert accuracy(after) > accuracy(dense) - 0.05
    assert accuracy(after) > accuracy(export_model(at_once)) + 0.1
