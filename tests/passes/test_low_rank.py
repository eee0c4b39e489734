"""Kernels of low rank: streamed moments against all data at once, fits against brute force, ranks against
exhaustive search.
"""

import itertools
import tracemalloc

import numpy as np
import pytest

from onnx_lathe.passes.numerics.rank import principal as decomposing
from onnx_lathe.passes.numerics.rank import responses as streaming
from onnx_lathe.passes.numerics.rank.low_rank import (
    auxiliary,
    balanced,
    fit,
    fit_relu,
)
from onnx_lathe.passes.numerics.rank.principal import principal, truncated, weight_spectrum
from onnx_lathe.passes.numerics.rank.rank_choice import Ladder, rank_for_energy, saving_ranks, within_budget
from onnx_lathe.passes.numerics.rank.responses import Responses, as_rows


def mixed(generator: np.random.Generator, rows: int, channels: int) -> np.ndarray:
    """Correlated rows far from a mean of zero, float32."""
    mix = generator.standard_normal((channels, channels)) * np.geomspace(1, 0.01, channels)[:, None]
    return (generator.standard_normal((rows, channels)) @ mix + 5).astype(np.float32)


def gathered(
    wanted: np.ndarray, found: np.ndarray | None = None, sample: int = 0, step: int = 97
) -> Responses:
    responses = Responses(wanted.shape[1], sample)
    for start in range(0, len(wanted), step):
        part = slice(start, start + step)
        responses.add(wanted[part], None if found is None else found[part])
    return responses


def test_streamed_moments_are_those_of_all_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streaming, "CHUNK_ROWS", 40)
    generator = np.random.default_rng(0)
    wanted, found = mixed(generator, 1000, 6), mixed(generator, 1000, 6)
    together = gathered(wanted, found)
    every = np.cov(np.concatenate([wanted, found], axis=1).T.astype(np.float64), bias=True)
    np.testing.assert_allclose(together.covariance, every[6:, 6:], rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(together.cross, every[:6, 6:], rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(together.wanted_mean, wanted.mean(axis=0, dtype=np.float64), rtol=1e-9)
    np.testing.assert_allclose(together.found_mean, found.mean(axis=0, dtype=np.float64), rtol=1e-9)
    alone = gathered(wanted)
    np.testing.assert_allclose(alone.covariance, every[:6, :6], rtol=1e-9, atol=1e-9)
    np.testing.assert_array_equal(alone.cross, alone.covariance)
    np.testing.assert_allclose(
        alone.spectrum(), np.linalg.eigvalsh(every[:6, :6])[::-1], rtol=1e-6, atol=1e-9
    )


def test_the_sample_is_bounded_paired_and_even() -> None:
    rows = np.arange(20_000, dtype=np.float32)[:, None]
    wanted, found = gathered(rows, -rows, sample=500).sampled
    assert wanted.shape == found.shape == (500, 1)
    np.testing.assert_array_equal(wanted, -found)
    assert len(np.unique(wanted)) == 500
    assert abs(wanted.mean() / 10_000 - 1) < 4 * 0.577 / np.sqrt(500)  # four standard errors
    assert len(gathered(rows[:30], sample=500).sampled[0]) == 30


def test_rows_are_positions_and_columns_channels() -> None:
    values = np.arange(2 * 3 * 4 * 5).reshape(2, 3, 4, 5)
    np.testing.assert_array_equal(as_rows(values, 1)[7], values[0, :, 1, 2])
    np.testing.assert_array_equal(as_rows(values, -1)[7], values[0, 1, 3])


def test_a_truncated_product_is_the_nearest_of_its_rank() -> None:
    matrix = np.random.default_rng(1).standard_normal((7, 12)).astype(np.float32)
    energies = weight_spectrum(matrix)
    for rank in (1, 3, 7):
        left, right = balanced(*truncated(matrix, rank))
        assert left.shape == (7, rank)
        assert right.shape == (rank, 12)
        assert np.square(matrix - left @ right).sum() == pytest.approx(
            energies[rank:].sum(), rel=1e-4, abs=1e-9
        )
        np.testing.assert_allclose(np.linalg.norm(left, axis=0), np.linalg.norm(right, axis=1), rtol=1e-5)


@pytest.mark.parametrize("shape", [(40, 300), (300, 40), (40, 40)])
def test_a_spectrum_by_the_gram_matrix_is_that_of_the_svd(
    shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Singular values to 1e-7 of the largest, over eight powers of ten; products and errors to float32's rounding."""
    monkeypatch.setattr(decomposing, "BLOCK_ELEMENTS", 40 * 17)
    generator = np.random.default_rng(11)
    u, v = (np.linalg.qr(generator.standard_normal((size, 40)))[0] for size in shape)
    matrix = ((u * np.geomspace(1, 1e-8, 40)) @ v.T).astype(np.float32)
    u, s, vt = np.linalg.svd(matrix.astype(np.float64), full_matrices=False)
    energies, vectors = principal(matrix)
    np.testing.assert_allclose(np.sqrt(energies), s, rtol=0, atol=1e-7)
    np.testing.assert_allclose(np.sqrt(energies)[s > 1e-4], s[s > 1e-4], rtol=1e-7)
    np.testing.assert_allclose(weight_spectrum(matrix), energies, atol=1e-14)
    for rank in (1, 10, 40):
        for known in (None, vectors):
            left, right = truncated(matrix, rank, known)
            assert left.dtype == right.dtype == np.float32
            exact = (u[:, :rank] * s[:rank]) @ vt[:rank]
            np.testing.assert_allclose(left.astype(np.float64) @ right, exact, rtol=0, atol=2e-7)


def test_a_large_matrix_is_decomposed_without_a_copy_in_float64(monkeypatch: pytest.MonkeyPatch) -> None:
    """In less than half of the matrix's own bytes: a copy in float64 alone is twice as large."""
    monkeypatch.setattr(decomposing, "BLOCK_ELEMENTS", 1 << 18)
    matrix = np.random.default_rng(12).standard_normal((64, 1 << 17)).astype(np.float32)
    principal(matrix[:, :128])  # what is imported when it is first called
    tracemalloc.start()
    try:
        energies, vectors = principal(matrix)
        left, right = balanced(*truncated(matrix, 4, vectors))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert (left.shape, right.shape, energies.shape) == ((64, 4), (4, 1 << 17), (64,))
    assert peak < 0.5 * matrix.nbytes


@pytest.mark.parametrize("size", [1e25, 1e-25])
def test_balancing_takes_values_whose_squares_float32_has_not(size: float) -> None:
    left, right = np.eye(2, dtype=np.float32), np.full((2, 3), size, np.float32)
    balanced_left, balanced_right = balanced(left, right)
    np.testing.assert_allclose(balanced_left @ balanced_right, right, rtol=1e-6)
    np.testing.assert_allclose(
        np.linalg.norm(balanced_left, axis=0), np.linalg.norm(balanced_right, axis=1), rtol=1e-5
    )


def test_balancing_leaves_components_of_nothing_alone() -> None:
    left, right = balanced(np.array([[1.0, 0], [1, 0]]), np.array([[4.0, 0], [0, 3]]))
    np.testing.assert_allclose(left @ right, [[4, 0], [4, 0]], rtol=1e-6)
    assert np.isfinite(left).all()
    assert np.isfinite(right).all()


def test_unpaired_responses_are_kept_in_their_principal_subspace() -> None:
    rows = mixed(np.random.default_rng(2), 3000, 8)
    responses = gathered(rows)
    for rank in (1, 4):
        error = np.square(rows - fit(responses, rank)(rows)).sum(axis=1).mean()
        assert error == pytest.approx(responses.spectrum()[rank:].sum(), rel=1e-4)
    np.testing.assert_allclose(fit(responses, 8)(rows), rows, rtol=1e-5, atol=1e-5)


@pytest.mark.slow
def test_paired_responses_are_fitted_as_well_as_brute_force_does() -> None:
    """Reduced-rank regression: no map near it, and none found by alternating least squares, does better."""
    generator = np.random.default_rng(3)
    found = mixed(generator, 20_000, 6)
    wanted = (
        found @ generator.standard_normal((6, 6)) - 2 + 0.3 * generator.standard_normal(found.shape)
    ).astype(np.float32)
    low = fit(gathered(wanted, found), 2)

    def error(rows: np.ndarray) -> float:
        return float(np.square(wanted - rows).sum(axis=1).mean())

    y, x = (rows - rows.mean(axis=0) for rows in (wanted.astype(np.float64), found.astype(np.float64)))
    left = generator.standard_normal((6, 2))
    for _ in range(300):
        right = np.linalg.lstsq(x, y @ left @ np.linalg.inv(left.T @ left), rcond=None)[0]
        left = np.linalg.lstsq(x @ right, y, rcond=None)[0].T
    best = error(wanted.mean(axis=0, dtype=np.float64) + x @ right @ left.T)
    assert error(low(found)) <= best * 1.005  # the ridge costs a little
    assert np.linalg.matrix_rank(low.left @ low.right) == 2


def test_channels_that_few_rows_say_nothing_of_stay_what_they_are() -> None:
    """Five pairs in forty dimensions: whatever lies outside of them is not mapped to zero."""
    generator = np.random.default_rng(4)
    found = generator.standard_normal((5, 40)).astype(np.float32)
    low = fit(
        gathered(found + np.float32(0.01) * generator.standard_normal(found.shape).astype(np.float32), found),
        40,
    )
    unseen = np.linalg.svd(found - found.mean(axis=0))[2][-1]
    np.testing.assert_allclose(low.left @ (low.right @ unseen), unseen, atol=0.02)


@pytest.mark.parametrize("paired", [True, False])
@pytest.mark.parametrize("rank", [4, 7, 13, 30, 48])
def test_few_rows_are_fitted_as_by_their_covariance(
    paired: bool, rank: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same error, and where the rows determine it the same map; the energies and means, too."""
    generator = np.random.default_rng(13)
    wanted = mixed(generator, 8, 48)
    found = wanted + np.float32(0.3) * mixed(generator, 8, 48) if paired else None
    few = gathered(wanted, found, step=3)
    monkeypatch.setattr(streaming, "FEW", 1000)
    many = gathered(wanted, found, step=3)
    assert few.deviations() is not None
    assert many.deviations() is None
    np.testing.assert_allclose(few.spectrum(), many.spectrum(), rtol=1e-9, atol=1e-9)
    np.testing.assert_allclose(few.found_mean, many.found_mean, rtol=1e-12)
    np.testing.assert_allclose(few.cross, many.cross, rtol=1e-9, atol=1e-9)
    one, other = fit(few, rank), fit(many, rank)
    assert one.left.shape == (48, rank)
    assert one.right.shape == (rank, 48)
    np.testing.assert_allclose(one.left.T @ one.left, np.eye(rank), atol=1e-12)
    rows = wanted if found is None else found
    np.testing.assert_allclose(one(rows), other(rows), rtol=1e-4, atol=1e-4)
    if rank in (4, 48):  # between them, directions are free
        np.testing.assert_allclose(one.left @ one.right, other.left @ other.right, atol=1e-9)


def test_few_rows_of_many_channels_need_no_matrix_of_channels_squared() -> None:
    generator = np.random.default_rng(14)
    wanted = generator.standard_normal((8, 4096)).astype(np.float32)
    tracemalloc.start()
    try:
        responses = gathered(
            wanted, wanted + np.float32(0.1) * generator.standard_normal(wanted.shape).astype(np.float32)
        )
        responses.spectrum()
        fit(responses, 64)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 0.25 * 8 * 4096**2


@pytest.mark.parametrize("penalty", [0.01, 1.0])
def test_auxiliary_variables_are_the_best_there_are(penalty: float) -> None:
    generator = np.random.default_rng(5)
    wanted, given = generator.standard_normal((2, 200))
    grid = np.linspace(-5, 5, 20_001)[:, None]

    def cost(z: np.ndarray) -> np.ndarray:
        return np.asarray((np.maximum(wanted, 0) - np.maximum(z, 0)) ** 2 + penalty * (z - given) ** 2)

    best = cost(auxiliary(wanted, given, penalty))
    assert (best <= cost(grid).min(axis=0) + 1e-7).all()


def test_taking_the_relu_into_account_lowers_the_error_behind_it() -> None:
    """What varies most is in channels that the ReLU shuts; the linear fit spends its rank on them."""
    generator = np.random.default_rng(6)
    rows = (
        generator.standard_normal((6000, 8)) * np.float32([1, 1, 1, 1, 3, 3, 3, 3])
        - np.float32([0] * 4 + [15] * 4)
    ).astype(np.float32)
    fresh, responses = rows[3000:], gathered(rows[:3000], sample=3000)
    low, ratio = fit_relu(responses, 4)
    linear = fit(responses, 4)

    def error(rows: np.ndarray) -> float:
        return float(np.square(np.maximum(fresh, 0) - np.maximum(rows, 0)).sum())

    assert error(low(fresh)) < 0.5 * error(linear(fresh))
    assert ratio == pytest.approx(error(low(fresh)) / error(linear(fresh)), abs=0.1)


def test_the_linear_fit_stands_where_it_is_exact() -> None:
    rows = np.random.default_rng(7).standard_normal((50, 3)).astype(np.float32)
    low, ratio = fit_relu(gathered(np.zeros_like(rows), sample=50), 2)
    assert ratio == 1.0
    np.testing.assert_array_equal(low(np.zeros_like(rows)), np.zeros_like(rows))


def test_rank_for_energy() -> None:
    energies = np.array([6.0, 2.0, 1.0, 1.0])
    assert [rank_for_energy(energies, share, 1) for share in (0.5, 0.6, 0.8, 0.85, 1.0)] == [1, 1, 2, 3, 4]
    assert rank_for_energy(energies, 0.85, 2) == 4
    assert rank_for_energy(energies, 0.85, 3) == 3
    assert rank_for_energy(energies, 0.95, 3) == 4
    assert rank_for_energy(np.zeros(4), 0.95, 1) == 1


def test_ranks_that_save() -> None:
    assert saving_ranks(full=32, whole=100, per_rank=4, multiple=8, least=0.1) == (8, 16, 24)
    assert saving_ranks(full=32, whole=96, per_rank=4, multiple=8, least=0.3) == (16,)
    assert saving_ranks(full=6, whole=100, per_rank=30, multiple=8, least=0.0) == (1, 2, 3)
    assert saving_ranks(full=6, whole=100, per_rank=200, multiple=1, least=0.0) == ()


@pytest.mark.parametrize("share", [0.9, 0.6, 0.4])
def test_a_budget_is_met_with_nearly_the_most_energy(share: float) -> None:
    generator = np.random.default_rng(8)
    ladders = []
    for whole in (100.0, 300.0, 50.0):
        energies = np.sort(generator.exponential(size=8))[::-1] ** 3
        ladders.append(Ladder(energies, whole, whole / 6, saving_ranks(8, whole, whole / 6, 1, 0.1)))
    budget = share * 450

    def value(ranks: tuple[int | None, ...]) -> float:
        fits = sum(ladder.macs(rank) for ladder, rank in zip(ladders, ranks, strict=True)) <= budget
        return float(fits) * float(
            np.prod([ladder.kept(rank) for ladder, rank in zip(ladders, ranks, strict=True)])
        )

    best = max(value(ranks) for ranks in itertools.product(*((None, *ladder.ranks) for ladder in ladders)))
    assert value(tuple(within_budget(ladders, budget))) >= 0.97 * best > 0


def test_budgets_that_are_met_or_out_of_reach() -> None:
    ladder = Ladder(np.array([3.0, 2.0, 1.0]), 30.0, 12.0, (1, 2))
    assert within_budget([ladder], 30.0) == [None]
    assert within_budget([ladder], 29.0) == [2]
    assert within_budget([ladder], 1.0) == [1]
    assert within_budget([], 1.0) == []
