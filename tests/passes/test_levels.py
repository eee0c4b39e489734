"""passes/numerics/second_order/levels.py: integers that answer best together."""

import numpy as np
import pytest

from onnx_lathe.passes.numerics.second_order.levels import descend


def problem(groups: int, rows: int, inputs: int, seed: int = 0) -> tuple[np.ndarray, ...]:
    """(weight, scale of 4 bits, covariance of inputs that are alike, residual, nearest levels)."""
    generator = np.random.default_rng(seed)
    weight = generator.standard_normal((groups, rows, inputs))
    x = generator.standard_normal((groups, 400, inputs)) + 3 * generator.standard_normal((groups, 400, 1))
    covariance = x.transpose(0, 2, 1) @ x / 400
    residual = 0.1 * generator.standard_normal(weight.shape)
    scale = np.abs(weight).max(axis=2) / 7
    return weight, scale, covariance, residual, np.rint(weight / scale[..., None])


def loss(
    levels: np.ndarray, weight: np.ndarray, scale: np.ndarray, covariance: np.ndarray, residual: np.ndarray
) -> np.ndarray:
    """Of each row."""
    change = levels * scale[..., None] - weight
    return np.einsum("grd,grd->gr", change @ covariance - 2 * residual, change)


@pytest.mark.parametrize("groups, rows, inputs", [(1, 5, 12), (3, 2, 9), (1, 4, 150)])
def test_no_single_level_could_be_better(groups: int, rows: int, inputs: int) -> None:
    weight, scale, covariance, residual, nearest = problem(groups, rows, inputs)
    found = descend(nearest, scale, weight, covariance, residual, (-7, 7), 50)
    assert (found == np.rint(found)).all()
    assert np.abs(found).max() <= 7
    before, after = (loss(levels, weight, scale, covariance, residual) for levels in (nearest, found))
    assert after.sum() < 0.5 * before.sum()
    gain = 0.0
    for place in np.ndindex(found.shape):
        for move in (-1, 1):
            tried = found.copy()
            tried[place] = np.clip(tried[place] + move, -7, 7)
            gain = max(gain, float((after - loss(tried, weight, scale, covariance, residual)).max()))
    assert gain < 1e-3 * after.sum()


def test_levels_stay_within_bounds_of_their_own() -> None:
    weight, scale, covariance, residual, nearest = problem(1, 4, 20)
    low, high = np.floor(weight / scale[..., None]), np.ceil(weight / scale[..., None])
    low[..., ::3] = high[..., ::3] = 0
    nearest[..., ::3] = 0
    found = descend(nearest, scale, weight, covariance, residual, (low, high), 20)
    assert ((found >= low) & (found <= high)).all()
    assert not found[..., ::3].any()


def test_without_rounds_nothing_moves() -> None:
    weight, scale, covariance, residual, nearest = problem(1, 4, 20)
    np.testing.assert_array_equal(descend(nearest, scale, weight, covariance, residual, (-7, 7), 0), nearest)


def test_each_round_brings_more() -> None:
    task = problem(1, 4, 40)
    weight, scale, covariance, residual, nearest = task
    losses = [
        float(loss(descend(nearest, scale, weight, covariance, residual, (-7, 7), rounds), *task[:4]).sum())
        for rounds in (0, 1, 20)
    ]
    assert losses[0] > losses[1] > losses[2]
