"""TT-SVD and the digits of a TT-matrix, against brute force and against what the papers promise."""

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from onnx_lathe.passes.numerics.rank.tensor_train import (
    Modes,
    balanced,
    bounded,
    full,
    largest_rank,
    norm,
    ranks_of,
    relative_error,
    truncated,
    tt_svd,
)

ANY_TIME = settings(deadline=None, max_examples=30)  # a busy machine may take any time
SIZES = st.lists(st.integers(1, 5), min_size=2, max_size=5).map(tuple)


def normal(shape: tuple[int, ...], seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


def error(tensor: np.ndarray, cores: list[np.ndarray]) -> float:
    return float(np.linalg.norm(full(cores) - tensor) / np.linalg.norm(tensor))


def unfolded_tails(tensor: np.ndarray, ranks: tuple[int, ...]) -> list[float]:
    """Error of the best approximation of each unfolding by the rank of its place, relative to the tensor."""
    tails = []
    for place, rank in enumerate(ranks, 1):
        values = np.linalg.svd(tensor.reshape(math.prod(tensor.shape[:place]), -1), compute_uv=False)
        tails.append(float(np.linalg.norm(values[rank:]) / np.linalg.norm(tensor)))
    return tails


@pytest.mark.parametrize("sizes", [(4, 5, 6), (2, 2, 2), (10, 3, 7)])
def test_a_sum_of_indices_has_rank_two(sizes: tuple[int, int, int]) -> None:
    """A(i1, i2, i3) = i1 + i2 + i3 = [i1 1] [[1 0] [i2 1]] [1 i3]^T, indices from 1."""
    first, second, third = (np.arange(1.0, size + 1) for size in sizes)
    tensor = first[:, None, None] + second[:, None] + third
    by_hand = [
        np.stack([first, np.ones(sizes[0])], axis=1)[None],
        np.stack([np.array([[1, 0], [i, 1]]) for i in second], axis=1),
        np.stack([np.ones(sizes[2]), third])[..., None],
    ]
    np.testing.assert_allclose(full(by_hand), tensor, rtol=1e-14)
    cores = tt_svd(tensor)
    assert (
        [core.shape for core in cores]
        == [core.shape for core in by_hand]
        == [(1, sizes[0], 2), (2, sizes[1], 2), (2, sizes[2], 1)]
    )
    np.testing.assert_allclose(full(cores), tensor, rtol=1e-12)
    assert tt_svd(tensor, rank=1)[0].shape == (1, sizes[0], 1)


@ANY_TIME
@given(SIZES, st.integers(0, 99))
def test_full_rank_is_exact(sizes: tuple[int, ...], seed: int) -> None:
    tensor = normal(sizes, seed)
    cores = tt_svd(tensor)
    assert ranks_of(cores) == bounded(sizes, math.prod(sizes))
    assert error(tensor, cores) < 1e-12
    assert relative_error(tensor, cores) < 1e-6


@ANY_TIME
@given(SIZES, st.integers(0, 99), st.floats(0.01, 0.9))
def test_the_error_is_within_the_tolerance(sizes: tuple[int, ...], seed: int, tolerance: float) -> None:
    tensor = normal(sizes, seed)
    assert error(tensor, tt_svd(tensor, tolerance)) <= tolerance * (1 + 1e-9)


@pytest.mark.parametrize("tolerance", [0.05, 0.3, 0.7])
def test_a_matrix_gets_the_smallest_rank(tolerance: float) -> None:
    matrix = normal((20, 30)) * 0.8 ** np.arange(30)
    (rank,) = ranks_of(tt_svd(matrix, tolerance))
    assert unfolded_tails(matrix, (rank,))[0] <= tolerance < unfolded_tails(matrix, (rank - 1,))[0]


@ANY_TIME
@given(SIZES, st.integers(0, 99), st.integers(1, 6))
def test_with_bounded_ranks_it_is_nearly_the_best(sizes: tuple[int, ...], seed: int, rank: int) -> None:
    """Oseledets, theorem 2.2: the squared error is at most the sum of the unfoldings'; no train of these
    ranks can do better than one.
    """
    tensor = normal(sizes, seed)
    cores = tt_svd(tensor, rank=rank)
    assert ranks_of(cores) == bounded(sizes, rank)
    tails = unfolded_tails(tensor, ranks_of(cores))
    assert max(tails) - 1e-9 <= error(tensor, cores) <= math.hypot(*tails) + 1e-9


def test_a_train_is_found_again() -> None:
    cores = [
        normal((left, size, right), seed)
        for seed, (left, size, right) in enumerate([(1, 6, 3), (3, 5, 2), (2, 4, 4), (4, 7, 1)])
    ]
    tensor = full(cores).astype(np.float32)
    assert ranks_of(tt_svd(tensor)) == (3, 2, 4), "noise of float32 is no reason for a higher rank"
    assert error(tensor, tt_svd(tensor)) < 1e-6
    assert relative_error(tensor, tt_svd(tensor, rank=2)) > 1e-3


def test_zeros_have_rank_one() -> None:
    cores = tt_svd(np.zeros((3, 4, 5)))
    assert ranks_of(cores) == (1, 1)
    assert relative_error(np.zeros((3, 4, 5)), cores) == 0


def test_truncation_counts_what_is_left_over() -> None:
    values = np.array([4.0, 3.0, 2.0, 1.0])
    assert [truncated(values, allowed) for allowed in (0.0, 1.0, 1.1, math.sqrt(5) + 1e-9, 100.0)] == [
        4,
        3,
        3,
        2,
        1,
    ]


@pytest.mark.parametrize("kernel", [None, 1, 9])
def test_digits_pair_inputs_with_outputs(kernel: int | None) -> None:
    """The output's first digit counts fastest, its others as written."""
    modes = Modes((2, 3, 4), (5, 1, 2), kernel)
    weight = normal((24, 10, kernel or 1))
    tensor = modes.fold(weight)
    assert tensor.shape == modes.sizes == ((10, 3, 8) if kernel is None else (10, 3, 8, kernel))
    for i, j in itertools.product(
        itertools.product(*map(range, modes.inputs)), itertools.product(*map(range, modes.outputs))
    ):
        row, column = (i[0] * 3 + i[1]) * 4 + i[2], (j[1] * 2 + j[2]) * 5 + j[0]
        element = tensor[i[0] * 5 + j[0], i[1] + j[1], i[2] * 2 + j[2]]
        np.testing.assert_array_equal(np.reshape(element, -1), weight[row, column])
    assert modes.size == weight.size


def test_counts_of_a_train() -> None:
    modes = Modes((2, 3), (5, 7), 9)
    assert modes.parameters((4, 6)) == 10 * 4 + 4 * 21 * 6 + 6 * 9
    kernel, last, first = 9 * 6 * (2 * 3), 2 * (3 * 6) * (4 * 7), 7 * (2 * 4) * 5
    assert modes.macs((4, 6)) == kernel + last + first
    assert Modes((2, 3), (5, 7)).macs((4,)) == 2 * 3 * (4 * 7) + first


@pytest.mark.parametrize(
    "number, count, factors",
    [
        (784, 2, (28, 28)),
        (784, 3, (7, 8, 14)),
        (784, 4, (4, 4, 7, 7)),
        (300, 2, (15, 20)),
        (10, 3, (1, 2, 5)),
        (13, 2, (1, 13)),
        (1, 2, (1, 1)),
    ],
)
def test_balanced_factors(number: int, count: int, factors: tuple[int, ...]) -> None:
    assert balanced(number, count) == factors


@pytest.mark.parametrize("count", [2, 3])
def test_balanced_factors_have_the_least_sum(count: int) -> None:
    for number in range(1, 31):
        every = [
            one for one in itertools.product(range(1, number + 1), repeat=count) if math.prod(one) == number
        ]
        found = balanced(number, count)
        assert math.prod(found) == number
        assert sum(found) == min(map(sum, every))


@ANY_TIME
@given(SIZES, st.integers(0, 300))
def test_the_largest_rank_that_fits(sizes: tuple[int, ...], budget: int) -> None:
    def fits(ranks: tuple[int, ...]) -> bool:
        return sum(ranks) <= budget

    every = [rank for rank in range(1, math.prod(sizes) + 1) if fits(bounded(sizes, rank))]
    found = largest_rank(sizes, fits)
    assert (found is None) == (not every)
    assert found is None or bounded(sizes, found) == bounded(sizes, max(every))


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e25])
def test_the_relative_error_does_not_depend_on_the_scale(scale: float) -> None:
    tensor = np.random.default_rng(1).standard_normal((6, 8)).astype(np.float32)
    expected = relative_error(tensor, tt_svd(tensor, rank=2))
    scaled = tensor * np.float32(scale)
    assert 0.1 < expected < 1
    assert relative_error(scaled, tt_svd(scaled, rank=2)) == pytest.approx(expected, rel=1e-3)
    assert norm(scaled) == pytest.approx(scale * norm(tensor), rel=1e-5)
