"""The k-means kernel: error near the theoretical optimum, exactness, zeros, and the binned path for big
tensors.
"""

import numpy as np
import pytest
from sklearn.cluster import KMeans

from onnx_lathe.passes.numerics.clustering.kmeans import (
    STARTS,
    Rule,
    distinct_values,
    encode,
    kmeans_1d,
    signal_and_noise,
)

SMALL, BIG = 20_000, 100_000
"""Values that are points themselves, and values that are counted into bins."""


def normal(size: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(size).astype(np.float32)


def decibels(values: np.ndarray, centroids: np.ndarray, indices: np.ndarray) -> float:
    signal, noise = signal_and_noise(values, centroids, indices)
    return 10 * float(np.log10(signal / noise))


# The best possible: Max, "Quantizing for Minimum Distortion", IRE Transactions on Information Theory 6,
# 1960, table I.
@pytest.mark.parametrize("size", [SMALL, BIG])
@pytest.mark.parametrize("bits, best", [(1, 4.40), (2, 9.30), (3, 14.62), (4, 20.22), (5, 26.02)])
def test_error_is_near_the_optimum_for_a_normal_distribution(size: int, bits: int, best: float) -> None:
    values = normal(size)
    assert decibels(values, *kmeans_1d(values, 2**bits)) >= best - 0.25


@pytest.mark.parametrize("size", [SMALL, BIG])
def test_error_is_not_above_that_of_scikit_learn_from_the_same_start(size: int) -> None:
    values = normal(size, seed=1)
    start = np.linspace(values.min(), values.max(), 16).reshape(-1, 1)
    peer = KMeans(16, init=start, n_init=1, max_iter=300).fit(values.reshape(-1, 1))
    _, noise = signal_and_noise(values, *kmeans_1d(values, 16, iterations=300))
    assert noise <= peer.inertia_


@pytest.mark.parametrize("size", [SMALL, BIG])
def test_centroids_are_the_means_of_their_values(size: int) -> None:
    values = normal(size)
    centroids, indices = kmeans_1d(values, 16)
    means = [values[indices == index].mean(dtype=np.float64) for index in range(16)]
    np.testing.assert_allclose(centroids, means, atol=2e-3)  # clusters are 0.3 wide and more


@pytest.mark.parametrize("size", [SMALL, BIG])
def test_an_outlier_gets_a_centroid_of_its_own_and_the_others_share_the_rest(size: int) -> None:
    values = normal(size)
    values[7] = 1000.0
    centroids, indices = kmeans_1d(values, 16)
    assert centroids[-1] == 1000.0
    rest = np.arange(size) != 7
    # 15 values for a normal distribution; 16 reach 20.2
    assert decibels(values[rest], centroids, indices[rest]) >= 19.0


@pytest.mark.parametrize("size", [SMALL, BIG])
def test_an_offset_costs_no_precision(size: int) -> None:
    values = np.float32(1) + np.float32(1e-4) * normal(size)
    centroids, indices = kmeans_1d(values, 16)
    spread = values - np.float32(1)
    assert decibels(spread, centroids - np.float32(1), indices) >= 19.5  # of the offsets alone


@pytest.mark.parametrize("size", [SMALL, BIG])
@pytest.mark.parametrize("k", [3, 16, 256])
def test_keep_zero_decodes_zeros_and_nothing_else_to_zero(size: int, k: int) -> None:
    values = normal(size)
    values[np.abs(values) < 0.05] = 0.0
    values[3] = 1e-30
    values[4] = -1e-30
    centroids, indices = kmeans_1d(values, k, keep_zero=True)
    assert centroids.size <= k
    np.testing.assert_array_equal(np.sign(centroids[indices]), np.sign(values))


def test_keep_zero_spends_no_centroid_on_the_gap() -> None:
    values = normal(BIG)
    values[np.abs(values) < 1.64] = 0.0  # 90 % zeros
    assert decibels(values, *kmeans_1d(values, 16, keep_zero=True)) >= 29.5


def test_keep_zero_is_no_loss_for_values_of_one_sign() -> None:
    values = np.abs(normal(SMALL))
    centroids, _ = kmeans_1d(values, 16, keep_zero=True)
    assert centroids.size == 15
    assert centroids.min() > 0


@pytest.mark.parametrize("size", [100, SMALL, BIG])
@pytest.mark.parametrize("distinct", [1, 2, 16])
def test_few_distinct_values_are_exact(size: int, distinct: int) -> None:
    palette = normal(distinct, seed=2)
    values = palette[np.random.default_rng(0).integers(0, distinct, size)]
    centroids, indices = kmeans_1d(values, 16)
    np.testing.assert_array_equal(centroids[indices], values)
    np.testing.assert_array_equal(centroids, np.unique(values))


def test_negative_zero_is_zero() -> None:
    centroids, indices = kmeans_1d(np.array([-0.0, 1.0, 0.0], np.float32), 2)
    np.testing.assert_array_equal(indices, [0, 1, 0])
    assert not np.signbit(centroids).any()


def test_distinct_values_that_come_late_are_found() -> None:
    values = np.zeros(300_000, np.float32)
    values[-1] = 1.0
    np.testing.assert_array_equal(distinct_values([values], 2), [0.0, 1.0])
    assert distinct_values([values], 1) is None


def test_shape_is_kept_and_every_index_is_used() -> None:
    values = normal(60).reshape(3, 4, 5)
    centroids, indices = kmeans_1d(values, 256)
    assert indices.shape == values.shape
    np.testing.assert_array_equal(centroids[indices], values)
    centroids, indices = kmeans_1d(normal(BIG), 256)
    np.testing.assert_array_equal(np.unique(indices), np.arange(centroids.size))


def test_a_value_midway_goes_to_the_upper_centroid() -> None:
    values = np.array([0.0, 0.0, 0.0, 1.0, 2.0, 2.0, 2.0], np.float32)
    centroids, indices = kmeans_1d(values, 2, iterations=1)
    np.testing.assert_array_equal(indices, [0, 0, 0, 1, 1, 1, 1])
    np.testing.assert_array_equal(centroids, [0.0, 1.75])


def test_the_same_input_gives_the_same_bits() -> None:
    values = normal(BIG)
    for first, second in zip(kmeans_1d(values, 16), kmeans_1d(values.copy(), 16), strict=True):
        assert first.tobytes() == second.tobytes()


@pytest.mark.parametrize(
    "values, k, keep_zero, message",
    [
        ([1.0, 2.0], 0, False, "k must be 1 to 256"),
        ([1.0, 2.0], 257, False, "k must be 1 to 256"),
        ([1.0, np.nan], 2, False, "finite"),
        ([1.0, np.inf], 2, False, "finite"),
        ([], 2, False, "at least one"),
        ([-1.0, 0.0, 1.0], 2, True, "at least 3"),
    ],
)
def test_what_cannot_be_clustered_is_refused(
    values: list[float], k: int, keep_zero: bool, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        kmeans_1d(np.array(values, np.float32), k, keep_zero=keep_zero)


def of_the_largest(values: np.ndarray, start: str) -> float:
    """Signal to noise in dB of the largest thousandth of the values, with 64 shared values from this start."""
    encoded = encode([values], 64, Rule(start=start))
    largest = np.argsort(-np.abs(values))[: values.size // 1000]
    return decibels(values[largest], encoded.centroids, encoded.indices[0][largest])


@pytest.mark.parametrize("seed", [0, 1])
def test_the_linear_start_keeps_large_weights_best(seed: int) -> None:
    """Why it is the default (Han, 2016, section 3.2). On such weights it came out 3.6 dB and more above the
    others.
    """
    values = np.random.default_rng(seed).laplace(size=BIG).astype(np.float32)
    linear, density, apart = (of_the_largest(values, start) for start in ("linear", "density", "kmeans++"))
    assert linear >= max(density, apart) + 2


@pytest.mark.parametrize("size", [SMALL, BIG])
@pytest.mark.parametrize("start", STARTS)
@pytest.mark.parametrize("k", [8, 16])
def test_every_start_ends_near_the_optimum_for_a_normal_distribution(size: int, start: str, k: int) -> None:
    values = normal(size)
    encoded = encode([values], k, Rule(start=start))
    assert decibels(values, encoded.centroids, encoded.indices[0]) >= {8: 14.62, 16: 20.22}[k] - 0.25


def test_the_density_start_gives_every_centroid_as_many_values() -> None:
    values = np.arange(1000, dtype=np.float32) ** 2
    encoded = encode([values], 10, Rule(start="density", iterations=1))
    first = encode([values], 10, Rule(start="linear", iterations=1))
    assert np.ptp(encoded.counts()) < np.ptp(first.counts()) / 2


def test_the_seed_decides_where_kmeans_plus_plus_starts() -> None:
    values = normal(SMALL)
    first, same, other = (
        encode([values], 16, Rule(start="kmeans++", iterations=1, seed=seed)) for seed in (0, 0, 1)
    )
    np.testing.assert_array_equal(first.centroids, same.centroids)
    assert (first.centroids != other.centroids).any()


@pytest.mark.parametrize("start", STARTS)
def test_a_start_without_values_of_one_sign_keeps_the_signs_apart(start: str) -> None:
    values = np.abs(normal(SMALL)) + np.float32(1)
    values[::2000] = [-5.0, -0.5, -1e-6, -3.0, -2.0, -1.0, -0.1, -4.0, 0.0, 0.0]
    encoded = encode([values], 3, Rule(start=start), keep_zero=True)
    np.testing.assert_array_equal(np.sign(encoded.centroids[encoded.indices[0]]), np.sign(values))


@pytest.mark.parametrize("sizes", [(500, 700), (70_000, 50_000)])
def test_several_arrays_share_one_codebook(sizes: tuple[int, int]) -> None:
    arrays = [normal(sizes[0], seed=1).reshape(2, -1), normal(sizes[1], seed=2) * np.float32(3)]
    encoded = encode(arrays, 16, Rule())
    assert [indices.shape for indices in encoded.indices] == [array.shape for array in arrays]
    joined = encode([np.concatenate([array.reshape(-1) for array in arrays])], 16, Rule())
    # the middle of the bins is another; clusters are 0.5 wide
    np.testing.assert_allclose(encoded.centroids, joined.centroids, atol=1e-2)
    np.testing.assert_array_equal(encoded.counts().sum(), sum(sizes))
