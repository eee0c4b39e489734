"""Properties of the k-means kernel on any finite values."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from onnx_lathe.passes.numerics.clustering.kmeans import kmeans_1d, signal_and_noise

ANY = st.floats(width=32, allow_nan=False, allow_infinity=False)
ORDINARY = st.floats(-100, 100, width=32)
BINNED = 70_000  # more values than there are bins


def values_of(elements: st.SearchStrategy[float]) -> st.SearchStrategy[np.ndarray]:
    return arrays.arrays(np.float32, st.integers(1, 60), elements=elements)


@st.composite
def big_arrays(draw: st.DrawFn) -> np.ndarray:
    generator = np.random.default_rng(draw(st.integers(0, 1000)))
    shape = draw(st.sampled_from([generator.standard_normal, generator.standard_cauchy, generator.random]))
    values = shape(BINNED) * 10.0 ** draw(st.integers(-30, 30)) + draw(st.sampled_from([0.0, 1e-3, 1e6]))
    values[np.abs(values) < np.quantile(np.abs(values), draw(st.sampled_from([0.0, 0.5, 0.99])))] = 0.0
    return values.astype(np.float32)


def check_nearest(values: np.ndarray, centroids: np.ndarray, indices: np.ndarray) -> None:
    """Sorted, distinct, all used; and no centroid is nearer than the chosen one."""
    assert centroids.dtype == np.float32
    assert indices.dtype == np.uint8
    assert (np.diff(centroids) > 0).all()
    np.testing.assert_array_equal(np.unique(indices), np.arange(centroids.size))
    exact = values.astype(np.float64)
    chosen = np.abs(exact - centroids[indices])
    for centroid in centroids.astype(np.float64):
        assert (chosen <= np.abs(exact - centroid)).all()


@settings(max_examples=100, deadline=None)
@given(values_of(ANY), st.integers(1, 20))
def test_every_value_has_its_nearest_centroid(values: np.ndarray, k: int) -> None:
    centroids, indices = kmeans_1d(values, k)
    assert centroids.size <= k
    check_nearest(values, centroids, indices)


@settings(max_examples=12, deadline=None)
@given(big_arrays(), st.sampled_from([2, 16, 100]))
def test_every_value_of_a_big_array_has_its_nearest_centroid(values: np.ndarray, k: int) -> None:
    check_nearest(values, *kmeans_1d(values, k))


def error_of_linear_start(values: np.ndarray, k: int) -> float:
    start = np.linspace(values.min(), values.max(), k, dtype=np.float64)
    return float((np.abs(values.reshape(-1, 1).astype(np.float64) - start).min(axis=1) ** 2).sum())


@settings(max_examples=100, deadline=None)
@given(values_of(ORDINARY), st.integers(1, 20), st.integers(1, 30))
def test_the_error_is_never_above_that_of_the_linear_start(
    values: np.ndarray, k: int, iterations: int
) -> None:
    signal, noise = signal_and_noise(values, *kmeans_1d(values, k, iterations=iterations))
    # centroids are rounded to float32
    assert noise <= error_of_linear_start(values, k) * (1 + 1e-6) + 1e-12 * signal


@settings(max_examples=100, deadline=None)
@given(values_of(st.one_of(ANY, st.just(0.0))), st.integers(3, 20))
def test_zeros_and_only_zeros_are_kept(values: np.ndarray, k: int) -> None:
    centroids, indices = kmeans_1d(values, k, keep_zero=True)
    np.testing.assert_array_equal(np.sign(centroids[indices]), np.sign(values))


@settings(max_examples=12, deadline=None)
@given(big_arrays(), st.sampled_from([3, 16, 100]))
def test_zeros_and_only_zeros_are_kept_in_a_big_array(values: np.ndarray, k: int) -> None:
    centroids, indices = kmeans_1d(values, k, keep_zero=True)
    np.testing.assert_array_equal(np.sign(centroids[indices]), np.sign(values))


@settings(max_examples=100, deadline=None)
@given(values_of(ANY), st.integers(1, 20))
def test_what_is_clustered_already_stays_as_it_is(values: np.ndarray, k: int) -> None:
    centroids, indices = kmeans_1d(values, k)
    decoded = centroids[indices]
    again, same = kmeans_1d(decoded, k)
    np.testing.assert_array_equal(again[same], decoded)
