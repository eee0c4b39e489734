"""What layers read and answer as moments, fits of them, the sweep of columns and the division of a budget: arrays alone."""

import itertools
from collections.abc import Sequence

import numpy as np
import pytest

from onnx_lathe.passes.numerics.allocation import allocate
from onnx_lathe.passes.numerics.quantization import int4
from onnx_lathe.passes.numerics.second_order import sweep as sweeping
from onnx_lathe.passes.numerics.second_order.elimination import Reader, eliminate
from onnx_lathe.passes.numerics.second_order.fitting import centered_bias, fit_free, fit_shared, gains
from onnx_lathe.passes.numerics.second_order.paired import JointMoments, SplitJointMoments
from onnx_lathe.passes.numerics.second_order.sweep import (
    Blocks,
    Grid,
    OfGroup,
    Rule,
    Share,
    Values,
    nearest,
    sweep,
)
from tests.support.builders import random
from tests.support.seeds import generator


def mixed(groups: int, count: int, size: int) -> np.ndarray:
    """Rows whose elements depend on each other, of a mean that is not 0."""
    return random(groups, count, size) @ random(groups, size, size) + random(groups, 1, size)


def test_units_whose_scores_overflow_go_once_each() -> None:
    units, one = np.arange(5), np.eye(5)
    reader = Reader(
        random(3, 5).astype(np.float64), one, one, 0.0, units
    )  # an energy of 0: scores are infinite
    for stop in (0, 3, 5):
        order, losses = eliminate([reader], np.ones(5), [stop])
        assert sorted(order.tolist()) == units.tolist()
        assert losses.shape == (1,)


def moments_of(x: np.ndarray, y: np.ndarray) -> JointMoments:
    found = JointMoments(x.shape[0], x.shape[2], y.shape[2])
    for start in range(0, x.shape[1], 700):
        found.add(x[:, start : start + 700], y[:, start : start + 700])
    found.settle()
    return found


@pytest.mark.parametrize("has_bias", [True, False])
def test_errors_follow_from_moments(has_bias: bool) -> None:
    x, y = mixed(2, 3000, 6), mixed(2, 3000, 4)
    weight, bias = random(2, 4, 6).astype(np.float64), random(2, 4).astype(np.float64)
    moments = moments_of(x, y)
    if not has_bias:
        moments, bias = moments.uncentered(), np.zeros((2, 4))
    answers = np.einsum("gnd,grd->gnr", x.astype(np.float64), weight) + bias[:, None]
    np.testing.assert_allclose(moments.error(weight, bias), np.square(answers - y).mean(axis=1), rtol=1e-4)


def test_a_fit_is_the_least_squares_solution_of_the_places_that_are_free() -> None:
    x = mixed(1, 20_000, 10)
    y = np.einsum("gnd,grd->gnr", x, random(1, 5, 10)) + random(1, 20_000, 5) + 3
    moments, free = moments_of(x, y), generator().random((1, 5, 10)) < 0.6
    weight = np.where(free, random(1, 5, 10), 0.0)
    found = fit_free(moments, weight, free)
    assert not found[~free].any()
    for row in range(5):
        inputs = np.c_[x[0][:, free[0, row]], np.ones(20_000)].astype(np.float64)
        exact = np.linalg.lstsq(inputs, y[0, :, row].astype(np.float64), rcond=None)[0]
        bias = centered_bias(moments, found)[0, row]
        residual = y[0, :, row] - inputs @ np.r_[found[0, row][free[0, row]], bias]
        least = y[0, :, row] - inputs @ exact
        # the damping costs a little
        assert np.square(residual).mean() < 1.02 * np.square(least).mean()


def test_without_free_places_or_with_inputs_that_never_vary_nothing_changes() -> None:
    x = mixed(1, 500, 4) * np.array([1, 1, 0, 1], np.float32)
    moments, weight = moments_of(x, mixed(1, 500, 3)), random(1, 3, 4).astype(np.float64)
    np.testing.assert_array_equal(fit_free(moments, weight, np.zeros(weight.shape, bool)), weight)
    found = fit_free(moments, weight, np.ones(weight.shape, bool))
    np.testing.assert_allclose(found[..., 2], weight[..., 2], rtol=1e-6)


@pytest.mark.parametrize("count", [5, 40])
def test_shared_values_are_fitted_together(count: int) -> None:
    x, exact = mixed(2, 8000, 12), random(count).astype(np.float64)
    places = generator().integers(0, count, (2, 9, 12))
    exact[0] = 0
    y = np.einsum("gnd,grd->gnr", x, exact[places])
    moments = moments_of(x, y)
    start = exact + random(count) * 0.1
    start[0] = 0
    found = fit_shared(moments, start[places], places, start, start == 0)
    assert found[0] == 0
    before, after = (
        moments.error(values[places], centered_bias(moments, values[places])).sum()
        for values in (start, found)
    )
    assert after < 0.05 * before


def test_gains_restore_deviations_and_leave_constant_channels() -> None:
    x = mixed(1, 4000, 6)
    x[..., 5] = 2
    weight = random(1, 4, 6).astype(np.float64)
    weight[0, 3, :5] = 0  # a channel that reads the constant alone
    y = np.einsum("gnd,grd->gnr", x, weight) * np.array([1.5, 0.8, 9, 1])
    found = gains(moments_of(x, y), weight)
    np.testing.assert_allclose(found, [[1.5, 0.8, 2, 1]], rtol=1e-3)
    flat = moments_of(x, np.zeros_like(y))
    np.testing.assert_array_equal(gains(flat, weight), np.ones((1, 4)))


def test_of_few_samples_what_fits_judges_and_what_cannot_be_fitted_says_why() -> None:
    split = SplitJointMoments.of(1, 3, 2)
    assert "nothing" in str(split.refusal())
    split.add(random(1, 20, 3), np.ones((1, 20, 2), np.float32), 0)
    split.settle()
    assert split.judging is split.fitted
    assert "do not vary" in str(split.refusal())
    split.add(random(1, 20, 3), random(1, 20, 2), 3)
    split.settle()
    assert split.judging is split.held
    split.add(random(1, 20, 3) * np.float32(np.inf), random(1, 20, 2), 1)
    split.settle()
    assert "NaN or infinity" in str(split.refusal())


def energy(change: np.ndarray, covariance: np.ndarray) -> float:
    return float(np.einsum("grd,gde,gre->", change, covariance, change))


def test_the_sweep_makes_up_for_zeros() -> None:
    x = random(2, 4000, 30) @ random(2, 30, 150) + random(2, 4000, 150)  # inputs that tell of each other
    weight = random(2, 8, 150).astype(np.float64)
    covariance = np.einsum("gnd,gne->gde", x, x) / 4000 + 0.1 * np.eye(150)
    weight[0, 0, :40] = 0
    found = sweep(weight, covariance, Share(1200, weight.size))
    assert (found == 0).sum() == 1200
    assert not found[0, 0, :40].any()
    smallest = np.where(np.abs(weight) > np.sort(np.abs(weight), axis=None)[1199], weight, 0.0)
    assert energy(found - weight, covariance) < 0.5 * energy(smallest - weight, covariance)
    # where inputs do not depend on each other there is nothing to make up with
    alone = sweep(weight, np.tile(np.eye(150), (2, 1, 1)), Share(1200, weight.size))
    np.testing.assert_array_equal(alone[alone != 0], weight[alone != 0])


def test_nearest_factors_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def factored(covariance: np.ndarray) -> np.ndarray:
        raise AssertionError("an identity was factored")

    weight = random(2, 5, 30).astype(np.float64)
    scale = np.abs(weight).max(-1) / 7
    monkeypatch.setattr(sweeping, "factored", factored)
    found = nearest(weight, Grid(scale, -7, 7))
    np.testing.assert_allclose(found, np.rint(weight / scale[..., None]) * scale[..., None], rtol=1e-12)


def test_a_sweep_of_groups_keeps_n_of_m_and_of_short_rows_none_is_emptied() -> None:
    weight = random(1, 6, 24).astype(np.float64)
    covariance = np.einsum("gnd,gne->gde", x := mixed(1, 900, 24), x) / 900 + np.eye(24)
    found = sweep(weight, covariance, OfGroup(2, 4))
    assert ((found.reshape(6, 6, 4) != 0).sum(axis=-1) == 2).all()
    depthwise = random(40, 1, 9).astype(np.float64) * np.geomspace(1e-3, 1, 40)[:, None, None]
    kept = sweep(depthwise, np.tile(np.eye(9), (40, 1, 1)), Share(180, 360, each_row=True))
    assert (kept == 0).sum() == 180
    assert set((kept != 0).sum(axis=-1).ravel()) <= {4, 5}
    most = sweep(depthwise, np.tile(np.eye(9), (40, 1, 1)), Share(350, 360, each_row=True))
    assert ((most != 0).sum(axis=-1) == 1).all()


def test_a_budget_is_divided_so_that_least_is_lost() -> None:
    costs = [np.array([9.0, 5.0, 2.0]), np.array([7.0, 3.0]), np.array([4.0, 4.0, 1.0])]
    losses = [np.array([0.0, 1.0, 6.0]), np.array([0.0, 3.0]), np.array([0.5, 0.0, 2.0])]
    for budget in (6.0, 9.1, 11.1, 14.1, 20.1):  # a little more: costs are rounded up
        found = allocate(losses, costs, budget)
        assert found is not None
        every = [
            (sum(loss[place] for loss, place in zip(losses, places, strict=True)), places)
            for places in itertools.product(range(3), range(2), range(3))
            if sum(cost[place] for cost, place in zip(costs, places, strict=True)) <= budget
        ]
        assert sum(loss[place] for loss, place in zip(losses, found, strict=True)) == min(every)[0]
    assert allocate(losses, costs, 5.0) is None


def correlated(size: int) -> np.ndarray:
    x = random(2, 4000, 20) @ random(2, 20, size) + random(2, 4000, size)
    found: np.ndarray = np.einsum("gnd,gne->gde", x, x) / 4000 + 0.1 * np.eye(size)
    return found


def rules() -> dict[str, Rule]:
    tables = [np.linspace(-end, end, 16) for end in (2, 3)]
    return {
        "int8": Grid(np.full((2, 5), 0.02), -128, 127),
        "int4": Blocks(24, symmetric=True, search=True),
        "uint4": Blocks(24, symmetric=False, search=False),
        "whole rows": Blocks(240, symmetric=True, search=True),
        "values": Values(tables, np.tile(np.arange(5) % 2, (2, 1))),
    }


@pytest.mark.parametrize("name", rules())
def test_the_sweep_makes_up_for_rounding_in_whichever_blocks(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    weight, covariance = random(2, 5, 240).astype(np.float64), correlated(240)
    found, plain = [], nearest(weight, rules()[name])
    for block in (1, 24, 100, 128, 1000):  # what was reached together had all changes before it
        monkeypatch.setattr(sweeping, "BLOCK", block)
        rule = rules()[name]
        found.append(sweep(weight, covariance, rule))
        if isinstance(rule, Blocks):
            np.testing.assert_allclose(
                rule.encoded().restored(), found[-1].reshape(10, 240), rtol=1e-5, atol=1e-7
            )
    for other in found[1:]:
        np.testing.assert_allclose(other, found[0], rtol=1e-5, atol=1e-5)
    assert energy(found[0] - weight, covariance) < 0.8 * energy(plain - weight, covariance)


def test_without_compensation_levels_and_values_are_the_nearest() -> None:
    weight = random(1, 6, 48).astype(np.float64)
    rule = Blocks(16, symmetric=True, search=True)
    np.testing.assert_allclose(
        np.square(nearest(weight, rule) - weight).sum(),
        np.square(int4.encode(weight[0].astype(np.float32), 16, True, True).restored() - weight[0]).sum(),
        rtol=0.02,
    )
    table = np.float32([-1, 0.1, 2])
    found = nearest(weight, values := Values([table], np.zeros((1, 6), np.int64)))
    expected = np.abs(weight[..., None] - table).argmin(axis=-1)
    np.testing.assert_array_equal(found, table[expected])
    np.testing.assert_array_equal(values.places(found), expected)


def test_what_is_zero_stays_so_whatever_the_rule_makes_of_it() -> None:
    weight = random(1, 4, 30).astype(np.float64)
    weight[0, :, ::3] = 0
    values = Values([np.float32([-1, 1])], np.zeros((1, 4), np.int64))
    found = sweep(weight, correlated(30)[:1], values)
    np.testing.assert_array_equal(found == 0, weight == 0)
    assert sweep(weight, correlated(30)[:1], values, zero=np.zeros(weight.shape, bool)).all()


def _readers(block: int) -> list[Reader]:
    """Two that read six units, each `block` inputs of the first and one of the second, which reads another input too."""
    found = []
    for rows, units in ((3, np.repeat(np.arange(6), block)), (4, np.array([-1, 3, 1, 0, 2, 5, 4]))):
        weight = random(rows, units.size).astype(np.float64)
        covariance = np.cov(mixed(1, 500, units.size)[0].T.astype(np.float64))
        found.append(
            Reader(weight, covariance, covariance, float(np.vdot(weight @ covariance, weight)), units)
        )
    return found


def _exact_loss(reader: Reader, out: Sequence[int]) -> float:
    """Of the reader without these units, all other weights fitted."""
    stays = ~np.isin(reader.units, out)
    full = reader.weight @ reader.covariance
    fitted = np.zeros_like(reader.weight)
    fitted[:, stays] = np.linalg.solve(reader.covariance[np.ix_(stays, stays)], full[:, stays].T).T
    change = fitted - reader.weight
    return float(np.vdot(change @ reader.covariance, change)) / reader.energy


@pytest.mark.parametrize("block", [1, 4])
def test_the_unit_that_goes_is_the_one_that_others_stand_in_for_best(block: int) -> None:
    readers = _readers(block)
    order, losses = eliminate(readers, np.ones(6), [0, 1, 2, 4])
    gone: list[int] = []
    for unit in order[:4]:
        errors = {
            other: sum(_exact_loss(reader, [*gone, other]) for reader in readers)
            for other in set(range(6)) - set(gone)
        }
        assert unit == min(errors, key=lambda one: errors[one])
        gone.append(int(unit))
    expected = [
        sum(_exact_loss(reader, order[:count].tolist()) for reader in readers) for count in (0, 1, 2, 4)
    ]
    np.testing.assert_allclose(losses, expected, rtol=1e-6, atol=1e-12)
    assert sorted(order) == list(range(6))


def test_units_of_several_channels_are_compared_by_channel() -> None:
    weight = np.array([[1.0, 1.2, 5.0]])
    reader = Reader(weight, np.eye(3), np.eye(3), 1.0, np.arange(3))
    assert eliminate([reader], np.array([1, 2, 1]), [0, 1])[0].tolist() == [1, 0, 2]
    assert eliminate([reader], np.array([1, 1, 1]), [0, 1])[0].tolist() == [0, 1, 2]
