"""Properties of what chooses shared values, on any finite values."""

import numpy as np
from hypothesis import example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from onnx_lathe.passes.numerics.clustering.codebook_pools import Clustered, CodebookGroup, channel_groups
from onnx_lathe.passes.numerics.clustering.entropy_constrained import entropy_bits
from onnx_lathe.passes.numerics.clustering.kmeans import STARTS, Rule, encode, mean_square, signal_and_noise
from onnx_lathe.passes.numerics.clustering.mantissa import round_mantissa

ANY = st.floats(width=32, allow_nan=False, allow_infinity=False)
ORDINARY = st.one_of(st.floats(-100, 100, width=32), st.just(0.0))
RULES = st.builds(
    Rule,
    start=st.sampled_from(STARTS),
    exact=st.booleans(),
    tradeoff=st.sampled_from([0.0, 1e-3, 0.1, 10.0]),
    iterations=st.integers(1, 40),
    seed=st.integers(0, 3),
    mantissa=st.sampled_from([None, None, 0, 2, 7]),
)


def values_of(elements: st.SearchStrategy[float], most: int = 60) -> st.SearchStrategy[np.ndarray]:
    return arrays.arrays(np.float32, st.integers(1, most), elements=elements)


@settings(max_examples=300, deadline=None)
@given(values_of(st.one_of(ANY, st.just(0.0))), st.integers(3, 20), RULES, st.booleans())
@example(np.array([0.0, -1.5e-18, 4.0, 1.0], np.float32), 3, Rule(exact=True, iterations=1), True)
def test_at_most_k_values_all_used_and_zeros_kept(
    values: np.ndarray, k: int, rule: Rule, keep_zero: bool
) -> None:
    encoded = encode([values], k, rule, keep_zero)
    assert encoded.centroids.size <= k
    assert encoded.centroids.dtype == np.float32
    assert np.isfinite(encoded.centroids).all()
    assert (np.diff(encoded.centroids) > 0).all()
    assert (encoded.counts() > 0).all()
    assert encoded.counts().sum() == values.size
    if keep_zero:
        np.testing.assert_array_equal(np.sign(encoded.centroids[encoded.indices[0]]), np.sign(values))


@settings(max_examples=150, deadline=None)
@given(values_of(ORDINARY), st.integers(3, 12), st.booleans())
def test_exact_is_never_worse_than_lloyd_from_any_start(values: np.ndarray, k: int, keep_zero: bool) -> None:
    signal, exact = signal_and_noise(values, *first_of(encode([values], k, Rule(exact=True), keep_zero)))
    for start in STARTS:
        _, noise = signal_and_noise(values, *first_of(encode([values], k, Rule(start=start), keep_zero)))
        assert exact <= noise * (1 + 1e-6) + 1e-12 * signal  # centroids are rounded to float32


@settings(max_examples=150, deadline=None)
@given(values_of(ORDINARY), st.integers(2, 12), st.sampled_from([1e-3, 0.02, 0.3, 5.0]))
def test_a_tradeoff_never_costs_more_than_without(values: np.ndarray, k: int, tradeoff: float) -> None:
    """Except where at most two values are kept without loss."""
    if np.unique(values).size <= 2:
        return
    costs, unit = [], mean_square([values])
    for rule in (Rule(tradeoff=tradeoff), Rule()):
        encoded = encode([values], k, rule)
        _, noise = signal_and_noise(values, *first_of(encoded))
        costs.append(noise / unit + tradeoff * values.size * entropy_bits(encoded.counts()))
    assert costs[0] <= costs[1] * (1 + 1e-6) + 1e-9 * values.size


@settings(max_examples=200, deadline=None)
@given(values_of(ANY), st.integers(0, 23))
def test_rounding_a_mantissa_is_the_nearest_and_idempotent(values: np.ndarray, bits: int) -> None:
    rounded = round_mantissa(values, bits)
    np.testing.assert_array_equal(np.sign(rounded), np.sign(values))
    np.testing.assert_array_equal(round_mantissa(rounded, bits), rounded)
    normal = (np.abs(values) >= np.finfo(np.float32).tiny) & (np.abs(values) < 1e38)
    error = np.abs(rounded[normal].astype(np.float64) - values[normal])
    assert (error <= np.abs(values[normal].astype(np.float64)) * 2.0 ** -(bits + 1)).all()


@settings(max_examples=60, deadline=None)
@given(
    arrays.arrays(np.float32, st.tuples(st.integers(2, 9), st.integers(2, 9)), elements=ORDINARY),
    st.integers(3, 8),
    st.integers(1, 12),
    st.sampled_from([0, 1]),
    st.lists(st.floats(0, 1), min_size=1, max_size=6),
    RULES,
)
def test_a_training_ends_with_at_most_k_values_in_every_group(
    weight: np.ndarray, k: int, groups: int, axis: int, times: list[float], rule: Rule
) -> None:
    pieces = channel_groups("w", axis, weight.shape[axis], groups)
    assert len(pieces) == min(groups, weight.shape[axis])
    assert sum(piece.of(weight).size for piece in pieces) == weight.size
    shaping = Clustered([(CodebookGroup(k, True, (piece,)), rule) for piece in pieces], every=1, freeze=0.5)
    generator = np.random.default_rng(0)
    for done in sorted([*times, 1.0]):
        shaped = shaping(
            done,
            {"w": weight + np.float32(done) * generator.standard_normal(weight.shape).astype(np.float32)},
        )["w"]
    for piece in pieces:
        assert np.unique(piece.of(shaped)).size <= k


def first_of(encoded: object) -> tuple[np.ndarray, np.ndarray]:
    return encoded.centroids, encoded.indices[0]  # type: ignore[attr-defined]
