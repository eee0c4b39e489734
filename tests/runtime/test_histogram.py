"""Streamed histograms: the counts are those of all values at once, whatever their size, and percentiles are
true to one bin.
"""

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from onnx_lathe.runtime.running.histogram import MANTISSA_BITS, SMALLEST, Histogram

ALL = 1 << 30
BATCHES = st.lists(
    st.lists(st.floats(-(2.0**100), 2.0**100, width=32), min_size=1, max_size=20), min_size=1, max_size=6
)


def histogram(*batches: object, sampled: int = ALL) -> Histogram:
    result = Histogram()
    for batch in batches:
        assert result.add(np.array(batch, np.float32), sampled)
    return result


@pytest.mark.slow
@settings(max_examples=100, deadline=None)
@given(BATCHES)
@example([[0.0, -0.0]])
@example([[2.0**-126]])
@example([[-1.0], [2.0**-32, 1e-45, -1e-40]])
def test_every_value_is_in_its_bin(batches: list[list[float]]) -> None:
    found = histogram(*batches)
    values = np.concatenate([np.array(batch, np.float32) for batch in batches]).astype(np.float64)
    assert (found.minimum, found.maximum) == (values.min(), values.max())
    edges, counts = found.distribution()
    assert counts.sum() == found.counted == values.size
    assert counts[0]
    assert counts[-1]
    assert (np.diff(edges) >= 0).all()
    values.sort()
    within = np.searchsorted(values, edges[1:], "right") - np.searchsorted(values, edges[:-1], "left")
    assert (counts <= within).all()


def test_a_bin_is_a_small_part_of_its_value() -> None:
    edges, counts = histogram(
        np.geomspace(1e-6, 1e6, 100_000), -np.geomspace(1e-6, 1e6, 100_000)
    ).distribution()
    used = np.flatnonzero(counts)
    middle = np.abs(edges[used] + edges[used + 1]) / 2
    assert (np.diff(edges)[used] / middle <= 2.0**-MANTISSA_BITS).all()
    reference, _ = np.histogram(
        np.concatenate([np.geomspace(1e-6, 1e6, 100_000), -np.geomspace(1e-6, 1e6, 100_000)]).astype(
            np.float32
        ),
        edges,
    )
    # an edge belongs to the bin above it there, to the one farther from zero here
    assert np.abs(reference - counts).sum() <= 60


def test_half_and_double_precision() -> None:
    values = np.array([-2.5, 0.125, 7.0])
    for dtype in (np.float16, np.float64):
        found = Histogram()
        assert found.add(values.astype(dtype), ALL)
        for one, other in zip(found.distribution(), histogram(values).distribution(), strict=True):
            np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e300])
def test_what_is_not_finite_counts_nothing(bad: float) -> None:
    found = histogram([1.0, 2.0])
    assert not found.add(np.array([0.5, bad, 9.0]), ALL)
    assert (found.minimum, found.maximum, found.counted) == (1.0, 2.0, 2)


def test_nothing_is_added_by_nothing() -> None:
    found = histogram([])
    assert found.counted == 0
    assert found.minimum > found.maximum


@settings(max_examples=100, deadline=None)
@given(BATCHES, st.floats(50, 100))
@example([[0.0, 0.0, 0.0, 0.0, -1.0]], 50.0)
@example([[5.605193857299268e-45]], 50.0)
def test_a_percentile_is_within_one_bin(batches: list[list[float]], percent: float) -> None:
    found = histogram(*batches)
    values = np.sort(np.concatenate([np.array(batch, np.float32) for batch in batches]).astype(np.float64))
    low, high = found.percentile(percent)
    assert found.minimum <= low <= high <= found.maximum
    outside = len(values) * (100 - percent) / 200
    slack = 1e-9 * len(values)
    widths = [abs(bound) * 2.0**-MANTISSA_BITS + SMALLEST for bound in (low, high)]
    assert (values < low - widths[0]).sum() <= outside + slack
    assert (values > high + widths[1]).sum() <= outside + slack
    assert (values <= low + widths[0]).sum() >= outside - slack
    assert (values >= high - widths[1]).sum() >= outside - slack


def test_percentiles_of_a_known_distribution() -> None:
    values = np.linspace(-1, 3, 100_000, dtype=np.float32)
    found = histogram(*np.array_split(values[np.random.default_rng(0).permutation(values.size)], 7))
    low, high = found.percentile(99.0)
    assert (low, high) == (pytest.approx(-0.98, abs=1e-3), pytest.approx(2.98, abs=1e-3))
    assert found.percentile(100.0) == (-1.0, 3.0)


def test_the_zeros_behind_a_relu_are_the_lower_end() -> None:
    low, high = histogram(np.maximum(np.random.default_rng(0).standard_normal(10_000), 0)).percentile(99.0)
    assert low == 0.0
    assert 2.4 < high < 2.75  # 0.5 % of all values lie above 2.576


def test_a_huge_value_costs_the_others_nothing() -> None:
    values = np.random.default_rng(0).standard_normal(1_000_000)
    alone = histogram(values).percentile(99.99)
    values[123_456] = 1e30
    found = histogram(values)
    assert found.percentile(99.99) == pytest.approx(alone, rel=0.01)
    assert found.maximum == np.float32(1e30)
    assert len(found.distribution()[1]) < 1 << 17


def test_of_a_large_batch_an_even_sample_is_counted_but_the_extremes_are_seen() -> None:
    values = np.random.default_rng(0).random((100, 101))
    values[50, 50], values[51, 51] = -3, 7
    found = histogram(values, sampled=1000)
    assert (found.minimum, found.maximum) == (-3.0, 7.0)
    assert 500 < found.counted < 2000
    assert found.percentile(90.0)[1] == pytest.approx(0.95, abs=0.03)


def test_batches_are_sampled_at_other_places() -> None:
    batch = np.arange(1.0, 1001.0)
    found = histogram(*[batch] * 50, sampled=10)
    assert (found.distribution()[1] > 0).sum() > 200
