"""Sums over calls are those over all values at once; what has no figure says so."""

import math

import numpy as np
import pytest

from onnx_lathe.runtime.running.differences import Difference
from tests.support.builders import random


def test_sums_over_calls() -> None:
    one, noise = random(6, 5, 7), 0.01 * random(6, 5, 7)
    found = Difference()
    for start in (0, 2, 4):
        found.add(one[start : start + 2], (one + noise)[start : start + 2])
    error = (one + noise).astype(np.float64) - one
    assert found.sqnr == pytest.approx(
        10 * math.log10(np.square(one, dtype=np.float64).sum() / np.square(error).sum())
    )
    assert found.max_abs == pytest.approx(np.abs(error).max())
    assert (found.calls, found.values, found.differing) == (3, one.size, np.count_nonzero(error))
    assert found.histogram.sum() == one.size
    assert found.verdict == "differs"


def test_the_channel_with_the_error() -> None:
    one = random(2, 5, 7)
    other = one.copy()
    other[:, 3] *= 2
    found = Difference()
    assert found.add(one, other) < 20
    assert found.worst_channel == (3, pytest.approx(1.0))


def test_relative_errors_leave_out_what_is_nearly_zero() -> None:
    one = np.array([1.0, 1e-9, -2.0], np.float32)
    found = Difference()
    found.add(one, one + np.float32(0.01))
    assert found.max_relative == pytest.approx(0.01, rel=1e-3)


@pytest.mark.parametrize(
    "one, other, verdict, closeness",
    [
        ([1, np.nan], [1, np.nan], "equal", math.inf),
        ([np.inf, 1], [np.inf, 1], "equal", math.inf),
        ([1, 2], [1, np.nan], "not finite", -math.inf),
        ([np.inf, 2], [-np.inf, 2], "not finite", -math.inf),
        ([0, 0], [0, 1e-3], "differs", 10 * math.log10(2e-12 / 1e-6)),
    ],
)
def test_special_values(one: list[float], other: list[float], verdict: str, closeness: float) -> None:
    found = Difference()
    found.add(np.array(one, np.float64), np.array(other, np.float64))
    assert (found.verdict, found.closeness) == (verdict, pytest.approx(closeness))


@pytest.mark.parametrize("scale", [1e-25, 1e25])
def test_values_whose_squares_float32_cannot_hold(scale: float) -> None:
    one = (scale * random(4, 6)).astype(np.float32)
    found = Difference()
    found.add(one, one * np.float32(1.01))
    assert found.differing == one.size
    if scale > 1:
        assert found.max_relative == pytest.approx(0.01, rel=1e-3)
        assert found.sqnr == pytest.approx(40.0, abs=0.01)
    else:
        assert found.max_abs == pytest.approx(0.01 * np.abs(one).max(), rel=1e-3)


def test_integers_and_shapes() -> None:
    found = Difference()
    found.add(np.arange(10), np.array([0, 1, 2, 3, 4, 5, 6, 7, 8, 8]))
    assert (found.sqnr, found.differing, found.closeness) == (None, 1, pytest.approx(10.0))
    found.add(np.arange(10), np.arange(9))
    assert (found.verdict, found.closeness, found.shapes) == ("shape", -math.inf, ((10,), (9,)))


def test_single_numbers() -> None:
    found = Difference()
    found.add(np.float32(4), np.float32(4.4))
    assert (found.max_abs, found.max_relative) == (pytest.approx(0.4), pytest.approx(0.1))
    assert found.sqnr == pytest.approx(20.0, abs=1e-3)


def test_nothing_to_compare() -> None:
    found = Difference()
    assert found.add(np.zeros((0, 3), np.float32), np.zeros((0, 3), np.float32)) == math.inf
    assert (found.sqnr, found.closeness) == (None, math.inf)
