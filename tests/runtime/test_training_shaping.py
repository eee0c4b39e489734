"""What a pass does while training runs: when it is asked, what the network computes with, what comes back."""

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import onnx
import pytest

from onnx_lathe.errors import PassError
from onnx_lathe.metadata import SPARSE, format_sparse
from onnx_lathe.runtime.training import TorchTrainer, TrainingSetup
from tests.support import quantized
from tests.support.builders import build
from tests.support.training import Points, model, options, updated

torch = pytest.importorskip("torch")
from onnx_lathe.runtime.torch_bridge import GraphModule  # noqa: E402

GENERATOR = np.random.default_rng(7)
W = GENERATOR.standard_normal((4, 4)).astype(np.float32)
X = GENERATOR.standard_normal((3, 4)).astype(np.float32)
PRODUCT = "(float[n, 4] x) => (float[n, 4] y) { y = MatMul(x, w) }"


class Shaping:
    """Notes every call and answers with `answer(done, weights)`."""

    def __init__(
        self, answer: Callable[[float, Mapping[str, np.ndarray]], Mapping[str, np.ndarray]], every: int = 1
    ) -> None:
        self.answer, self.every = answer, every
        self.calls: list[tuple[float, dict[str, np.ndarray]]] = []

    def __call__(self, done: float, weights: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        self.calls.append((done, {name: value.copy() for name, value in weights.items()}))
        return self.answer(done, weights)


def half_kept(done: float, weights: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {
        name: np.abs(value) > np.median(np.abs(value)) for name, value in weights.items() if value.ndim == 2
    }


def rounded(done: float, weights: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {name: np.round(value * 2) / 2 for name, value in weights.items() if value.ndim == 2}


@pytest.mark.parametrize("stand_in", [np.abs(W) > 0.5, np.round(W)], ids=["mask", "values"])
def test_the_graph_reads_the_stand_in_and_the_weight_gets_the_whole_gradient(stand_in: np.ndarray) -> None:
    module = GraphModule(build(PRODUCT, w=W))
    module.impose({"w": stand_in})
    read = np.where(stand_in, W, 0) if stand_in.dtype == bool else stand_in
    result = module(torch.from_numpy(X))
    np.testing.assert_allclose(result.numpy(force=True), X @ read, rtol=1e-5, atol=1e-6)
    result.sum().backward()
    np.testing.assert_allclose(
        module.weights()["w"].grad.numpy(), np.tile(X.sum(0)[:, None], (1, 4)), rtol=1e-5, atol=1e-6
    )
    assert module.values()["w"].tobytes() == (read + np.float32(0)).tobytes(), "a zero is 0.0, never -0.0"
    np.testing.assert_array_equal(module.trained()["w"], W)
    module.impose({})
    assert module.values()["w"].tobytes() == W.tobytes()


def test_stand_ins_keep_the_zeros_that_the_model_names() -> None:
    pruned = np.where(np.abs(W) < 0.5, 0, W).astype(np.float32)
    start = build(PRODUCT, w=pruned)
    start.metadata_props.add(key=SPARSE, value=format_sparse({"w": "unstructured"}))
    module = GraphModule(start)
    for stand_in in (np.ones((4, 4), bool), np.ones((4, 4), np.float32)):
        module.impose({"w": stand_in})
        module.zero_grad()
        module(torch.from_numpy(X)).sum().backward()
        assert np.array_equal(module.values()["w"] == 0, pruned == 0)
        assert np.array_equal(module.weights()["w"].grad.numpy() == 0, pruned == 0)


def test_a_read_only_stand_in_given_again_is_not_copied_again_but_another_is() -> None:
    module = GraphModule(build(PRODUCT, w=W))
    frozen, open_ = np.ones((4, 4), bool), np.ones((4, 4), bool)
    frozen.flags.writeable = False
    for mask, copies in ((frozen, False), (open_, True)):
        module.impose({"w": mask})
        first = module._stand_ins["weight_0"].tensor
        module.impose({"w": mask})
        assert (module._stand_ins["weight_0"].tensor is not first) == copies
    open_[:] = False
    module.impose({"w": open_})
    assert not module.values()["w"].any()


@pytest.mark.parametrize(
    "stand_ins, message",
    [
        ({"v": np.ones((4, 4), bool)}, "shaping names 'v', which is no trained weight of the model"),
        (
            {"w": np.ones((4, 5), bool)},
            r"shaping gives bool \[4, 5\] for w; wanted is bool or float \[4, 4\]",
        ),
        ({"w": np.ones((4, 4), np.int64)}, r"shaping gives int64 \[4, 4\] for w"),
    ],
)
def test_what_fits_no_weight_is_refused(stand_ins: dict[str, np.ndarray], message: str) -> None:
    with pytest.raises(PassError, match=message):
        GraphModule(build(PRODUCT, w=W)).impose(stand_ins)


def test_trained_weights_are_views_that_nobody_can_write_to() -> None:
    module = GraphModule(build(PRODUCT, w=W))
    view = module.trained()["w"]
    with torch.no_grad():
        module.weights()["w"].add_(1)
    np.testing.assert_array_equal(view, W + 1)
    with pytest.raises(ValueError, match="read-only"):
        view[0, 0] = 0


@pytest.mark.parametrize("every, steps", [(1, 10), (4, 10), (100, 10)])
def test_it_is_asked_before_the_first_step_every_so_many_and_after_the_last(every: int, steps: int) -> None:
    shaping = Shaping(half_kept, every)
    TorchTrainer(TrainingSetup(Points(160))).train(model(), options(epochs=2, batch=32), shaping)
    assert [done for done, _ in shaping.calls] == pytest.approx(
        [index / steps for index in range(0, steps, every)] + [1.0]
    )
    start = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in model().graph.initializer}
    assert shaping.calls[0][1].keys() == start.keys()
    np.testing.assert_array_equal(shaping.calls[0][1]["w"], start["w"])
    assert all((shaping.calls[-1][1][name] != start[name]).all() for name in "wv"), (
        "weights that read as zero are trained too"
    )


@pytest.mark.parametrize("answer", [half_kept, rounded])
def test_the_result_is_what_stands_in_at_the_end(answer: Callable[..., dict[str, np.ndarray]]) -> None:
    shaping = Shaping(answer, every=3)
    result = TorchTrainer(TrainingSetup(Points())).train(
        model(), options(epochs=12, rate=0.02, batch=32), shaping
    )
    done, weights = shaping.calls[-1]
    assert done == 1.0
    for name, stand_in in answer(1.0, weights).items():
        wanted = np.where(stand_in, weights[name], 0) if stand_in.dtype == bool else stand_in
        np.testing.assert_array_equal(result.values[name], wanted)
    assert result.metrics["last_loss"] < 0.3 * result.metrics["first_loss"]
    data = Points(1000, seed=5)
    scores = quantized.run(updated(model(), result.values), {"x": data.points})[0]
    assert (scores.argmax(1) == data.labels).mean() > 0.85


def test_a_mask_that_stays_is_an_ordinary_sparse_training() -> None:
    """The weights that are kept move as they do when `lathe.sparse` holds the zeros: what is underneath a
    zero changes nothing.
    """
    start = model()
    masks = half_kept(0, {t.name: onnx.numpy_helper.to_array(t) for t in start.graph.initializer})
    pruned = updated(
        start,
        {
            t.name: onnx.numpy_helper.to_array(t) * masks[t.name]
            for t in start.graph.initializer
            if t.name in masks
        },
    )
    pruned.metadata_props.add(key=SPARSE, value=format_sparse(dict.fromkeys(masks, "unstructured")))
    settings = options(epochs=2, batch=64, clip=0.0)  # the length of the gradient counts what is underneath
    held = TorchTrainer(TrainingSetup(Points())).train(pruned, settings).values
    shaped = (
        TorchTrainer(TrainingSetup(Points()))
        .train(start, settings, Shaping(lambda done, weights: masks))
        .values
    )
    for name, value in held.items():
        np.testing.assert_allclose(shaped[name], value, rtol=0, atol=1e-6)


def test_no_epoch_is_chosen_while_weights_are_shaped() -> None:
    """The best epoch is the one before training here; it would have no zeros."""
    spoiling = Points(256)
    spoiling.labels = (spoiling.labels + 1) % 4
    good = updated(
        model(),
        TorchTrainer(TrainingSetup(Points())).train(model(), options(epochs=8, rate=0.02, batch=32)).values,
    )
    trainer = TorchTrainer(TrainingSetup(spoiling, validation=Points(256, seed=2)))
    result = trainer.train(good, options(rate=0.05, batch=32), Shaping(half_kept))
    assert "best_epoch" not in result.metrics
    assert int((result.values["w"] == 0).sum()) == result.values["w"].size // 2


def test_a_hook_asks_the_pass_itself(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(
        """
import torch

def retrain(module, job):
    assert job.shaped
    for step in range(5):
        job.shape(step / 5)
        with torch.no_grad():
            module.weights()["w"].add_(0.5)
""",
        encoding="utf-8",
    )
    shaping = Shaping(half_kept, every=2)
    result = TorchTrainer(TrainingSetup(Points(), hook=f"{path}:retrain")).train(model(), options(), shaping)
    assert [done for done, _ in shaping.calls] == [0.0, 0.4, 0.8, 1.0]
    moved = shaping.calls[-1][1]["w"]
    np.testing.assert_array_equal(result.values["w"], np.where(half_kept(1.0, {"w": moved})["w"], moved, 0))


def test_a_hook_that_never_asks_gets_the_last_shape(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text("def retrain(module, job):\n    pass\n", encoding="utf-8")
    result = TorchTrainer(TrainingSetup(Points(), hook=f"{path}:retrain")).train(
        model(), options(), Shaping(half_kept)
    )
    assert int((result.values["v"] == 0).sum()) == result.values["v"].size // 2


def test_without_shaping_a_job_is_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "mine.py"
    path.write_text(
        "def retrain(module, job):\n    assert not job.shaped\n    job.shape(0.5)\n", encoding="utf-8"
    )
    start = model()
    values = TorchTrainer(TrainingSetup(Points(), hook=f"{path}:retrain")).train(start, options()).values
    assert all(values[tensor.name].tobytes() == tensor.raw_data for tensor in start.graph.initializer)
