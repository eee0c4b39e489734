"""Kernels of channel pruning: sets that are balanced over blocks, and removal under constraints."""

import numpy as np
import pytest

from onnx_lathe.passes.numerics.sparsity.channel_choice import (
    Cost,
    Removal,
    Savings,
    Shares,
    remove_globally,
    remove_per_group,
    round_up,
)
from onnx_lathe.passes.numerics.sparsity.group_balance import balanced_sets, nonnegative_least_squares


def assert_balanced(constraints: list[np.ndarray], sets: list[list[int]]) -> None:
    for members in sets:
        for constraint in constraints:
            counts = np.isin(constraint, members).sum(1)
            assert (counts == counts[0]).all(), (members, counts)


def test_one_of_each_block() -> None:
    constraint = np.arange(12).reshape(3, 4)
    sets, left = balanced_sets([constraint], np.ones(12, bool))
    assert sets == [[0, 4, 8], [1, 5, 9], [2, 6, 10], [3, 7, 11]]
    assert left == []


def test_units_that_are_balanced_stay_alone() -> None:
    sets, left = balanced_sets([np.array([[0, 1, 2], [2, 0, 1]])], np.ones(3, bool))
    assert sets == [[0], [1], [2]]
    assert left == []


def test_what_stays_leaves_others_over() -> None:
    movable = np.ones(6, bool)
    movable[[0, 1]] = False
    sets, left = balanced_sets([np.arange(6).reshape(2, 3)], movable)
    assert sets == [[2, 3]]
    assert left == [4, 5]


def test_a_shuffle_between_two_grouped_convolutions() -> None:
    """Columns of a shuffle of 3 x 10 channels, of which the fourth and the seventh lie in two groups of the
    next convolution.
    """
    first = np.tile(np.arange(10), (3, 1))
    second = np.repeat(np.arange(10), 3).reshape(3, 10)
    sets, left = balanced_sets([first, second], np.ones(10, bool))
    assert_balanced([first, second], sets)
    assert sorted(unit for members in sets for unit in members) + left == list(range(10))
    assert [len(members) for members in sets] == [3, 3, 4]


def test_a_trunk_of_concatenations_between_grouped_convolutions() -> None:
    """ShuffleNet's: 24 + 112 channels, then as many again, twice. Each block of the reading convolution
    takes from several writing ones.
    """
    stem, first, second, third = np.split(np.arange(544), [24, 136, 272])
    trunks = [np.arange(136), np.arange(272), np.arange(544)]
    constraints = [part.reshape(4, -1) for part in (stem, first, second, third, *trunks)]
    sets, left = balanced_sets(constraints, np.ones(544, bool))
    assert_balanced(constraints, sets)
    assert left == []
    assert sorted(len(members) for members in sets) == [16] * 10 + [64] * 6


def test_nonnegative_least_squares_leaves_out_what_would_be_negative() -> None:
    matrix = np.array([[1.0, 1, 0], [0, 1, 1], [1, 0, 1]])
    np.testing.assert_allclose(nonnegative_least_squares(matrix, matrix @ [1.0, 2, 3]), [1, 2, 3])
    found = nonnegative_least_squares(matrix, matrix @ [1.0, -2, 3])
    slope = matrix.T @ (matrix @ [1.0, -2, 3] - matrix @ found)
    assert (found >= 0).all()
    assert (slope <= 1e-9).all()
    np.testing.assert_allclose(slope * found, 0, atol=1e-9)


@pytest.mark.parametrize("seed", range(10))
def test_sets_are_balanced_for_any_constraints(seed: int) -> None:
    generator = np.random.default_rng(seed)
    constraints = [generator.permutation(24).reshape(blocks, -1) for blocks in (2, 3)]
    movable = generator.random(24) < 0.8
    sets, left = balanced_sets(constraints, movable)
    assert_balanced(constraints, sets)
    assert sorted([unit for members in sets for unit in members] + left) == np.flatnonzero(movable).tolist()
    assert sets


def two_groups() -> Removal:
    return Removal(
        6,
        [np.array([0, 1, 2]), np.array([3, 4, 5]), np.array([2, 3])],
        np.array([0, 0, 0, 1, 1, 1]),
        np.ones(6, bool),
    )


def test_no_view_runs_empty() -> None:
    state = two_groups()
    remove_per_group(state, np.array([3.0, 2, 1, 1, 2, 3]), np.ones(6), {0: 0.99, 1: 0.99})
    assert state.removed.tolist() == [False, True, True, False, True, True]


def test_wide_units_count_for_what_they_are() -> None:
    state = Removal(4, [np.array([0, 0, 0, 1, 2, 3])], np.zeros(4, np.int64), np.ones(4, bool))
    remove_per_group(state, np.array([1.0, 2, 3, 4]), np.array([3.0, 1, 1, 1]), {0: 0.34})
    assert state.removed.tolist() == [False, True, True, False], (
        "three of six are more than was asked for by half of them"
    )


def test_a_wide_unit_goes_when_each_of_its_channels_is_least() -> None:
    state = Removal(4, [np.array([0, 0, 0, 1, 2, 3])], np.zeros(4, np.int64), np.ones(4, bool))
    remove_per_group(state, np.array([3.0, 2, 3, 4]), np.array([3.0, 1, 1, 1]), {0: 0.5})
    assert state.removed.tolist() == [True, False, False, False]


def test_rounding_gives_back_the_most_important() -> None:
    state = Removal(8, [np.arange(8)], np.zeros(8, np.int64), np.ones(8, bool))
    remove_per_group(state, np.arange(8.0), np.ones(8), {0: 0.4})
    round_up(state, {0: [np.arange(8)]}, 6)
    assert np.flatnonzero(state.removed).tolist() == [0, 1]


def test_savings_are_what_removal_saves() -> None:
    state = two_groups()
    costs = [
        Cost(10.0, (state.number(np.array([0, 1, 2])), state.number(np.array([3, 4, 5])))),
        Cost(7.0, (2,)),
        Cost(5.0, ()),
    ]
    savings = Savings(state, costs)
    assert savings.macs() == 10 * 9 + 7 * 2 + 5
    for unit in (0, 2, 4):
        before, promised = savings.macs(), savings()[unit]
        state.remove(unit)
        assert before - savings.macs() == promised


def test_shares_grow_as_others_go() -> None:
    state = two_groups()
    shares = Shares(
        state,
        [(np.array([0, 1, 2]), np.array([1.0, 1, 2])), (np.array([2, 3, 4, 5]), np.array([1.0, 1, 1, 1]))],
    )
    np.testing.assert_allclose(shares(), [0.25, 0.25, 0.75, 0.25, 0.25, 0.25])
    state.remove(0)
    np.testing.assert_allclose(shares()[1:3], [1 / 3, 2 / 3 + 0.25])


def test_competing_groups_keep_a_tenth() -> None:
    state = Removal(20, [np.arange(20)], np.repeat([0, 1], 10), np.ones(20, bool))
    remove_globally(state, lambda: np.repeat([0.0, 1.0], 10), lambda: int(state.removed.sum()) >= 12)
    assert state.removed[:10].sum() == 9
    assert state.removed[10:].sum() == 3
