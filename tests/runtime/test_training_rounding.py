"""The fitter: a block of a quantized network, trained to what it should answer."""

import sys

import numpy as np
import pytest

from onnx_lathe.errors import ModelError, UsageError
from onnx_lathe.protocols import BlockTask, Levels
from onnx_lathe.runtime.training import TorchFitter
from tests.support.builders import build, run

TEXT = """(float[N, 4, 8, 8] x, bool[A, B, C, D] m, float[8, 4, 1, 1] v, float[8] vb, float[6, 8, 1, 1] w) => (float[N, 6, 8, 8] y) {
    q = QuantizeLinear (x, s, z)  e = DequantizeLinear (q, s, z)  d = Where (m, e, x)
    c = Conv (d, v, vb)  r = Relu (c)  y = Conv (r, w) }"""


def random(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng((seed, *shape)).standard_normal(shape).astype(np.float32)


def task(samples: int = 48) -> BlockTask:
    """Of a block whose bias is off and whose levels are the nearest, of 4 bits."""
    model = build(TEXT, s=np.float32(0.05), z=np.int8(0))
    x = random(samples, 4, 8, 8) + 2 * random(samples, 1, 8, 8)
    weights = {"v": random(8, 4, 1, 1), "w": random(6, 8, 1, 1)}
    bias, mask = random(8), np.ones((1, 1, 1, 1), bool)
    target = run(model, {"x": x, "m": mask, "vb": bias, **weights})["y"]
    levels = {}
    for name, weight in weights.items():
        step = np.abs(weight).max(axis=(1, 2, 3), keepdims=True) / 7
        free = np.ones(weight.shape, bool)
        free[0] = False
        levels[name] = Levels(np.rint(weight / step).astype(np.int8), step, 7, free)
    held = np.arange(samples) % 8 == 7
    return BlockTask(model, "x", levels, {"vb": bias + 0.3}, {"m": "x"}, x, target, held, None)


def test_answers_of_samples_kept_apart_come_nearer() -> None:
    given = task()
    found = TorchFitter().fit(given, 80)
    assert found.after < 0.8 * found.before
    starts = {name: (one.start * one.step).astype(np.float32) for name, one in given.levels.items()}
    ends = {name: (levels * step).astype(np.float32) for name, (levels, step) in found.levels.items()}
    held = given.held
    for error, weights, values in (
        (found.before, starts, given.values),
        (found.after, ends, found.values),
    ):
        feeds = {"x": given.x[held], "m": np.ones((1, 1, 1, 1), bool), **weights, **values}
        off = np.square(run(given.model, feeds)["y"] - given.target[held]).mean()
        assert off / given.target.var() == pytest.approx(error, rel=1e-2)
    for name, (levels, step) in found.levels.items():
        start = given.levels[name]
        assert levels.dtype == np.int8
        assert np.abs(levels).max() <= start.largest
        np.testing.assert_array_equal(levels[0], start.start[0])
        assert (step > 0).all()


def test_the_same_seed_gives_the_same() -> None:
    import torch

    state = torch.random.get_rng_state()
    first, again, other = (TorchFitter(seed).fit(task(), 20) for seed in (1, 1, 2))
    assert (first.before, first.after) == (again.before, again.after)
    assert first.after != other.after
    assert torch.equal(torch.random.get_rng_state(), state)


def test_where_nothing_is_gained_nothing_is_given() -> None:
    given = task()
    exact = {name: (one.start * one.step).astype(np.float32) for name, one in given.levels.items()}
    feeds = {"x": given.x, "m": np.ones((1, 1, 1, 1), bool), **exact, **given.values}
    target = run(given.model, feeds)["y"]
    found = TorchFitter().fit(BlockTask(**{**vars(given), "target": target}), 5)
    assert found.before < 1e-9
    assert not found.levels
    assert not found.values


def test_progress_names_the_block() -> None:
    lines: list[str] = []
    TorchFitter(progress=lines.append).fit(task(), 101)
    assert lines == [
        "fitting the block up to y: step 50 of 101",
        "fitting the block up to y: step 100 of 101",
    ]


def test_a_block_that_pytorch_cannot_run_is_refused() -> None:
    given = task()
    given.model.graph.node[-1].op_type = "Convolve"
    with pytest.raises(ModelError, match="PyTorch cannot run 1 of the model's nodes"):
        TorchFitter().fit(given, 1)


def test_without_pytorch_the_error_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    given = task()
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(
        UsageError, match=r"int8\(rounding=blocks\) needs PyTorch; pip install 'onnx-lathe\[train\]'"
    ):
        TorchFitter().fit(given, 1)
