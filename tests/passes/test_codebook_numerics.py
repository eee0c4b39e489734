"""Kernels beside k-means: the price on code lengths, the exact optimum, few mantissa bits, and bits per
layer.
"""

import itertools

import ml_dtypes
import numpy as np
import pytest

from onnx_lathe.passes.numerics.clustering.bit_choice import Rung, choose, expected_noise, fewest_bytes
from onnx_lathe.passes.numerics.clustering.entropy_constrained import cheapest, code_lengths, entropy_bits
from onnx_lathe.passes.numerics.clustering.kmeans import (
    STARTS,
    Encoded,
    Rule,
    encode,
    mean_square,
    signal_and_noise,
)
from onnx_lathe.passes.numerics.clustering.mantissa import round_mantissa
from onnx_lathe.passes.numerics.clustering.points import gather
from onnx_lathe.passes.numerics.clustering.segmentation import AFFORDABLE, optimal_centroids


def laplace(size: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).laplace(size=size).astype(np.float32)


def noise(values: np.ndarray, encoded: Encoded) -> float:
    return signal_and_noise(values, encoded.centroids, encoded.indices[0])[1]


def cost(values: np.ndarray, encoded: Encoded, tradeoff: float, keep_zero: bool = False) -> float:
    """What the tradeoff minimizes, per weight: relative squared error and bits of the code."""
    counts = encoded.counts()
    coded = counts[encoded.centroids != 0] if keep_zero else counts
    return noise(values, encoded) / mean_square([values]) + tradeoff * coded.sum() * entropy_bits(coded)


def brute_force(values: np.ndarray, k: int, tradeoff: float = 0.0) -> float:
    """The least cost of any division of the sorted values into at most k intervals."""
    ordered, square = np.sort(values.astype(np.float64)), mean_square([values])
    best = np.inf
    for inner in itertools.chain(
        *(itertools.combinations(range(1, ordered.size), number) for number in range(k))
    ):
        parts = np.split(ordered, inner)
        error = sum(np.square(part - part.mean()).sum() for part in parts)
        best = min(
            best,
            error / square + tradeoff * ordered.size * entropy_bits(np.array([part.size for part in parts])),
        )
    return best


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("k", [1, 2, 3, 5])
def test_exact_is_the_optimum_of_brute_force(seed: int, k: int) -> None:
    values = np.random.default_rng(seed).standard_cauchy(11).astype(np.float32)
    found = noise(values, encode([values], k, Rule(exact=True))) / mean_square([values])
    assert found == pytest.approx(brute_force(values, k), rel=1e-5, abs=1e-9)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("tradeoff", [0.01, 0.1, 0.5])
def test_exact_with_a_tradeoff_is_the_optimum_of_brute_force(seed: int, tradeoff: float) -> None:
    values = laplace(11, seed)
    found = cost(values, encode([values], 4, Rule(exact=True, tradeoff=tradeoff)), tradeoff)
    assert found == pytest.approx(brute_force(values, 4, tradeoff), rel=1e-5)


@pytest.mark.parametrize("size", [500, AFFORDABLE, 50_000, 200_000])
@pytest.mark.parametrize("keep_zero", [False, True])
def test_exact_is_never_worse_than_lloyd(size: int, keep_zero: bool) -> None:
    values = np.random.default_rng(size).standard_t(3, size).astype(np.float32)
    values[np.abs(values) < 0.3] = 0.0
    exact = noise(values, encode([values], 16, Rule(exact=True), keep_zero))
    others = [noise(values, encode([values], 16, Rule(start=start), keep_zero)) for start in STARTS]
    assert exact <= min(others) * (1 + 1e-4)
    assert exact < max(others) * 0.99


def test_exact_divides_the_values_between_the_signs() -> None:
    values = np.array([-9, -8.9, 0, 1, 1.8, 3, 4, 4.1], np.float32)
    encoded = encode([values], 5, Rule(exact=True), keep_zero=True)
    np.testing.assert_allclose(encoded.centroids, [-8.95, 0, 1.4, 3, 4.05])


@pytest.mark.parametrize(
    "values", [[-1, 1, 2], [1, 2, 3], [-3, -2, -1], [-2, -1, 1, 2], [-1, 0, 2], [1e-45, 1, 2]], ids=str
)
def test_few_values_are_kept_with_or_without_a_zero_among_them(values: list[float]) -> None:
    weights = np.array(values, np.float32)
    for keep_zero in (False, True):
        encoded = encode([weights], 8, Rule(), keep_zero)
        np.testing.assert_array_equal(encoded.centroids[encoded.indices[0]], weights)


def test_optimal_centroids_of_as_many_points_are_the_points() -> None:
    values = laplace(7)
    np.testing.assert_allclose(
        optimal_centroids(gather([values], drop_zeros=False), 7), np.sort(values), rtol=1e-6
    )


@pytest.mark.parametrize("size", [3_000, 100_000])
@pytest.mark.parametrize("keep_zero", [False, True])
@pytest.mark.parametrize("k", [16, 256])
def test_a_tradeoff_costs_less_than_the_nearest_value(size: int, keep_zero: bool, k: int) -> None:
    values = laplace(size)
    values[np.abs(values) < 0.5] = 0.0
    before = np.inf
    for tradeoff in (0.3, 0.05, 0.01):
        encoded = encode([values], k, Rule(tradeoff=tradeoff), keep_zero)
        plain = encode([values], k, Rule(), keep_zero)
        assert cost(values, encoded, tradeoff, keep_zero) < cost(values, plain, tradeoff, keep_zero)
        assert entropy_bits(encoded.counts()) < entropy_bits(plain.counts())
        assert noise(values, plain) < noise(values, encoded) < before
        before = noise(values, encoded)
        if keep_zero:
            np.testing.assert_array_equal(encoded.centroids[encoded.indices[0]] == 0, values == 0)


def test_every_value_goes_where_it_costs_least() -> None:
    values, tradeoff = laplace(60_000), 0.05
    encoded = encode([values], 16, Rule(tradeoff=tradeoff))
    price = tradeoff * mean_square([values]) * code_lengths(encoded.counts().astype(float))
    all_costs = np.square(values[:, None].astype(np.float64) - encoded.centroids) + price
    chosen = np.take_along_axis(all_costs, encoded.indices[0][:, None].astype(int), 1)[:, 0]
    assert (chosen - all_costs.min(axis=1)).max() < 1e-4, "up to what code lengths moved in the last step"


def test_a_tradeoff_beats_any_number_of_nearest_values_at_the_same_rate() -> None:
    """For Laplacian weights at about two bits: entropy-constrained quantization gains 1.5 dB and more over
    k-means.
    """
    values = laplace(100_000)
    priced = encode([values], 64, Rule(tradeoff=0.08))
    bits = entropy_bits(priced.counts())
    plain = [encode([values], k, Rule()) for k in range(2, 12)]
    rates = [entropy_bits(one.counts()) for one in plain]
    decibels = [-10 * np.log10(noise(values, one)) for one in plain]
    assert 1.5 < bits < 2.5
    assert -10 * np.log10(noise(values, priced)) >= np.interp(bits, rates, decibels) + 1


def test_a_high_price_leaves_one_value_of_each_sign() -> None:
    values = laplace(5_000)
    values[:2_500] = 0.0
    encoded = encode([values], 16, Rule(tradeoff=100.0), keep_zero=True)
    np.testing.assert_array_equal(np.sign(encoded.centroids), [-1, 0, 1])
    assert encode([values], 16, Rule(tradeoff=100.0)).centroids.size == 1


def test_entropy() -> None:
    assert entropy_bits(np.array([8, 8, 0, 8, 8])) == 2
    assert entropy_bits(np.array([5])) == 0
    assert entropy_bits(np.array([], int)) == 0
    np.testing.assert_allclose(code_lengths(np.array([1.0, 3.0])), [2, np.log2(4 / 3)])


def test_the_envelope_drops_hidden_centroids() -> None:
    kept, edges = cheapest(np.array([-1.0, 0.1, 1.0, 1.0]), np.array([0.0, 9.0, 0.5, 0.0]), signed=False)
    np.testing.assert_array_equal(kept, [0, 3])
    np.testing.assert_allclose(edges, [0.0])
    kept, edges = cheapest(np.array([-2.0, -1.0, 1.0]), np.array([0.0, 8.0, 8.0]), signed=True)
    np.testing.assert_array_equal(kept, [0, 1, 2])
    np.testing.assert_allclose(edges, [0.0, 0.0])


def test_seven_bits_of_mantissa_are_bfloat16() -> None:
    values = np.concatenate(
        [laplace(10_000), laplace(1000) * np.float32(1e-37), np.float32([0, -0.0, 1, -1.5])]
    )
    ours, theirs = round_mantissa(values, 7), values.astype(ml_dtypes.bfloat16).astype(np.float32)
    lost = (theirs == 0) & (values != 0)
    np.testing.assert_array_equal(ours[~lost], theirs[~lost])
    np.testing.assert_array_equal(np.sign(ours), np.sign(values))
    np.testing.assert_array_equal(np.signbit(ours), np.signbit(values))


@pytest.mark.parametrize("bits", [0, 1, 7, 22, 23, None])
def test_rounding_keeps_signs_and_stays_finite(bits: int | None) -> None:
    largest, smallest = np.finfo(np.float32).max, np.finfo(np.float32).smallest_subnormal
    values = np.float32([largest, -largest, smallest, -smallest, 3 * smallest, 0.0, 1.1, -7.3])
    rounded = round_mantissa(values, bits)
    assert np.isfinite(rounded).all()
    np.testing.assert_array_equal(np.sign(rounded), np.sign(values))
    assert (np.abs(rounded[-2:] / values[-2:] - 1) <= 2.0 ** -((23 if bits is None else bits) + 1)).all()
    np.testing.assert_array_equal(round_mantissa(rounded, bits), rounded)


def test_centroids_are_rounded_before_values_choose_theirs() -> None:
    values = laplace(5_000)
    encoded = encode([values], 16, Rule(mantissa=2))
    np.testing.assert_array_equal(round_mantissa(encoded.centroids, 2), encoded.centroids)
    distance = np.abs(values[:, None].astype(np.float64) - encoded.centroids)
    np.testing.assert_array_equal(
        np.abs(values - encoded.centroids[encoded.indices[0]].astype(np.float64)), distance.min(axis=1)
    )


LADDERS = [
    [Rung(bits, 100.0 * bits, 1.0 * 4.0**-bits) for bits in range(1, 9)] + [Rung(None, 3200.0, 0.0)],
    [Rung(bits, 10.0 * bits, 50.0 * 4.0**-bits) for bits in range(1, 9)] + [Rung(None, 320.0, 0.0)],
]


def test_bits_go_first_to_the_layer_where_they_remove_most_error_per_byte() -> None:
    assert choose(LADDERS, 1e9) == (1, 1)
    assert choose(LADDERS, 0.0) == (None, None)
    bits = choose(LADDERS, 0.02)
    assert bits == (3, 7)
    every = [(a, b) for a in LADDERS[0] for b in LADDERS[1] if a.noise + b.noise <= 0.02]
    assert sum(ladder[b - 1].size for ladder, b in zip(LADDERS, bits, strict=True)) <= 1.1 * min(
        a.size + b.size for a, b in every
    )


@pytest.mark.parametrize("factor", [0.2, 1.0, 5.0])
def test_the_bound_holds_for_what_is_measured(factor: float) -> None:
    """However far the sum of expected noises is from the truth."""
    runs = []

    def measure(bits: tuple[int | None, ...]) -> float:
        runs.append(bits)
        return factor * sum(
            next(rung.noise for rung in ladder if rung.bits == one)
            for ladder, one in zip(LADDERS, bits, strict=True)
        )

    bits, found = fewest_bytes(LADDERS, 0.02, measure)
    assert found <= 0.02
    assert bits in runs
    assert len(runs) <= 10
    assert found >= 0.02 / 16, "a bit less in one layer would have done"


def test_what_cannot_be_within_the_bound_stays_as_it_is() -> None:
    bits, found = fewest_bytes(LADDERS, 0.02, lambda bits: 0.0 if bits == (None, None) else 1.0)
    assert (bits, found) == ((None, None), 0.0)


def test_expected_noise_follows_the_weights_error_between_measurements() -> None:
    distortion = {bits: 4.0**-bits for bits in range(1, 9)}
    expected = expected_noise(distortion, {3: 2 * 4.0**-3, 5: 2 * 4.0**-5})
    assert expected == pytest.approx({bits: 2 * error for bits, error in distortion.items()})
    assert expected_noise(distortion, {3: 0.0}) == dict.fromkeys(distortion, 0.0)
