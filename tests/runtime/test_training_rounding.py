"""The rounder: levels of one layer by gradient descent."""

import sys

import numpy as np
import onnx
import pytest

from onnx_lathe.errors import ModelError, UsageError
from onnx_lathe.passes.numerics.quantization.affine import signal_to_noise_db
from onnx_lathe.passes.numerics.quantization.rounding import neighbours
from onnx_lathe.protocols import Rounded
from onnx_lathe.runtime.training import TorchRounder
from tests.support.builders import build, run

FOUR_BITS = 7


def random(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng((seed, *shape)).standard_normal(shape).astype(np.float32)


def alike(samples: int, *shape: int, seed: int = 0) -> np.ndarray:
    """Inputs whose channels are alike, so that errors of weights can cancel."""
    return random(samples, *shape, seed=seed) + 3 * random(samples, *[1] * len(shape), seed=seed)


LAYERS = {
    "Conv": (
        "(float[N, 4, 8, 8] x, float[8, 4, 3, 3] w) => (float[N, 8, 6, 6] y) { c = Conv (x, w, b)  y = Relu (c) }",
        (4, 8, 8),
    ),
    "Gemm": (
        "(float[N, 36] x, float[8, 36] w) => (float[N, 8] y) { y = Gemm <transB = 1> (x, w, b) }",
        (36,),
    ),
}


class Task:
    """A layer with weights in four bits, and its inputs."""

    def __init__(self, text: str, shape: tuple[int, ...], samples: int = 400) -> None:
        self.layer = build(text, b=random(8))
        self.x = alike(samples, *shape)
        weight = random(*[dim.dim_value for dim in self.layer.graph.input[1].type.tensor_type.shape.dim])
        others = tuple(range(1, weight.ndim))
        self.step = np.abs(weight).max(axis=others, keepdims=True) / FOUR_BITS
        self.exact, self.low, self.high = neighbours(weight, self.step, FOUR_BITS)
        self.nearest = np.rint(self.exact).astype(np.int8)

    def outputs(self, levels: np.ndarray, x: np.ndarray) -> np.ndarray:
        return run(self.layer, {"x": x, "w": (levels * self.step).astype(np.float32)})["y"]

    def round(self, rounder: TorchRounder, steps: int = 150, target: np.ndarray | None = None) -> Rounded:
        target = self.outputs(self.exact, self.x) if target is None else target
        return rounder.round(
            self.layer, "w", self.exact, self.low, self.high, self.step, {"x": self.x}, target, steps
        )


@pytest.mark.parametrize("text, shape", LAYERS.values(), ids=LAYERS)
def test_four_bit_levels_keep_what_the_layer_computes(text: str, shape: tuple[int, ...]) -> None:
    task, unseen = Task(text, shape), alike(100, *shape, seed=1)
    found = task.round(TorchRounder())
    assert found.levels is not None
    assert found.levels.dtype == np.int8
    assert ((found.levels == task.low) | (found.levels == task.high)).all()
    wanted = task.outputs(task.exact, unseen)
    before, after = (
        signal_to_noise_db(wanted, task.outputs(levels, unseen)) for levels in (task.nearest, found.levels)
    )
    assert after > before + 2.5
    assert found.after - found.before == pytest.approx(after - before, abs=2)


def test_the_same_seed_gives_the_same_levels() -> None:
    task = Task(*LAYERS["Gemm"])
    first, again, other = (task.round(TorchRounder(seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(first.levels, again.levels)
    assert (first.before, first.after) == (again.before, again.after)
    assert not np.array_equal(first.levels, other.levels)


def test_the_callers_random_state_is_left_alone() -> None:
    import torch

    state = torch.random.get_rng_state()
    Task(*LAYERS["Gemm"]).round(TorchRounder(), steps=2)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_nearest_levels_that_nothing_betters_are_kept() -> None:
    task = Task(*LAYERS["Gemm"])
    found = task.round(TorchRounder(), target=task.outputs(task.nearest, task.x))
    assert found.levels is None
    assert found.before > 100


def test_a_weight_on_its_levels_has_nothing_to_choose() -> None:
    task = Task(*LAYERS["Gemm"])
    task.exact = task.nearest.astype(np.float32)
    task.low = task.high = task.nearest
    found = task.round(TorchRounder(), target=random(400, 8))
    assert (found.levels, found.after) == (None, found.before)


@pytest.mark.parametrize("samples", [1, 2])
def test_a_handful_of_samples_is_enough_to_run(samples: int) -> None:
    task = Task(*LAYERS["Conv"], samples=samples)
    assert np.isfinite(task.round(TorchRounder(), steps=5).before)


def test_progress_names_the_weight() -> None:
    lines: list[str] = []
    Task(*LAYERS["Gemm"]).round(TorchRounder(progress=lines.append), steps=210)
    assert lines == ["rounding w: step 100 of 210", "rounding w: step 200 of 210"]


def test_a_layer_that_pytorch_cannot_run_is_refused() -> None:
    task = Task(*LAYERS["Gemm"])
    task.layer.graph.node[0].op_type = "Germ"
    with pytest.raises(ModelError, match="PyTorch cannot run 1 of the model's nodes"):
        TorchRounder().round(
            task.layer, "w", task.exact, task.low, task.high, task.step, {"x": task.x}, random(400, 8), 1
        )


def test_without_pytorch_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(
        UsageError, match=r"int8\(rounding=adaptive\) needs PyTorch; pip install 'onnx-lathe\[train\]'"
    ):
        TorchRounder().round(onnx.ModelProto(), "w", *[random(1, 1)] * 4, {}, random(1, 1), 1)
