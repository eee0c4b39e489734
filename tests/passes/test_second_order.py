"""Second moments of what layers read, and shared values that make up for each other: arrays alone."""

import itertools
import tracemalloc

import numpy as np
import pytest

from onnx_lathe.passes.numerics.clustering.kmeans import Rule, encode
from onnx_lathe.passes.numerics.second_order.moments import Moments, SplitMoments, response_energy
from onnx_lathe.passes.numerics.second_order.shared_values import Task, compensate
from onnx_lathe.passes.numerics.second_order.windows import Window
from tests.support.builders import build, random, run
from tests.support.seeds import generator


@pytest.mark.parametrize("centered", [True, False])
def test_moments_of_parts_are_those_of_the_whole(centered: bool) -> None:
    rows = random(2, 5000, 7) * 3 + 5
    moments = Moments(2, 7)
    for start, stop in itertools.pairwise((0, 1, 40, 3000, 5000)):
        moments.add(rows[:, start:stop])
    exact = rows.astype(np.float64)
    exact -= exact.mean(axis=1, keepdims=True) * centered
    np.testing.assert_allclose(
        moments.covariance(centered), exact.transpose(0, 2, 1) @ exact / 5000, rtol=1e-5, atol=1e-5
    )
    np.testing.assert_allclose(moments.mean, rows.mean(axis=1), rtol=1e-5)


def test_the_energy_is_that_of_the_responses() -> None:
    moments, rows, change = Moments(3, 6), random(3, 500, 6) + 1, random(3, 4, 6)
    moments.add(rows)
    responses = np.einsum("gnd,grd->gnr", rows.astype(np.float64), change)
    assert response_energy(change, moments.covariance(False)) == pytest.approx(
        np.square(responses).sum() / 500, rel=1e-5
    )
    moved = responses - responses.mean(axis=1, keepdims=True)
    assert response_energy(change, moments.covariance(True)) == pytest.approx(
        np.square(moved).sum() / 500, rel=1e-5
    )


def test_of_few_rows_and_of_inputs_that_are_never_active_the_moments_can_be_inverted() -> None:
    moments = Moments(1, 40)
    moments.add(random(1, 3, 40) * (np.arange(40) > 9))
    found = moments.regular(centered=True)[0]
    assert np.linalg.eigvalsh(found).min() > 0
    np.linalg.cholesky(found)
    many = Moments(1, 4)
    many.add(random(1, 100_000, 4))
    np.testing.assert_allclose(many.regular(False)[0], many.covariance(False)[0], atol=0.02)


def test_one_sample_of_four_is_kept_apart_and_the_mean_is_of_all() -> None:
    split = SplitMoments.of(1, 3)
    samples = [random(1, 10, 3) + number for number in range(8)]
    for number, sample in enumerate(samples):
        split.add(sample, number)
    assert (split.fitted.count, split.held.count) == (60, 20)
    apart = np.concatenate([samples[3], samples[7]], 1)[0].astype(np.float64) - split.fitted.mean[0]
    np.testing.assert_allclose(split.judging(centered=True)[0], apart.T @ apart / 20, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(split.mean[0], np.concatenate(samples, 1)[0].mean(axis=0), rtol=1e-5)
    few = SplitMoments.of(1, 3)
    few.add(samples[0], 0)
    np.testing.assert_array_equal(few.judging(centered=True), few.fitted.regular(centered=True))


def test_one_held_out_row_is_judged_by_and_inputs_that_are_always_the_same_are_not_fitted_by() -> None:
    split = SplitMoments.of(1, 3)
    for number in range(4):
        split.add(random(1, 1, 3), number)
    assert response_energy(random(1, 5, 3), split.judging(centered=True)) > 0.01
    assert split.refusal(centered=True) is None
    same = SplitMoments.of(1, 3)
    for number in range(30):
        same.add(np.full((1, 1, 3), np.float32(0.1)), number)
    assert same.refusal(centered=True) == "do not vary"
    assert same.refusal(centered=False) is None


@pytest.mark.parametrize("mantissa", [0, 1, 2])
def test_mantissas_are_short_where_no_round_is_better_than_the_start(mantissa: int) -> None:
    for _ in range(5):
        weight, moments = random(1, 8, 6), correlated(6)
        tables, indices = start_of(weight, 8)
        found = compensate(
            Task(weight, moments, np.zeros((1, 8), np.int64), mantissa=mantissa), tables, indices
        )
        assert not (found.tables[0].view(np.uint32) & (0x7FFFFF >> mantissa)).any()


def test_windows_with_large_dilations_take_no_more_memory_than_what_is_read() -> None:
    window = Window((3, 3), (1, 1), (24, 24), (24, 24, 24, 24))
    sample = random(32, 60, 60)
    tracemalloc.start()
    rows = window.rows(sample, 100, generator())
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert rows.shape == (1, 100, 32 * 9)
    assert peak < 10 * rows.nbytes + 2 * 32 * 108 * 108 * 4


@pytest.mark.parametrize(
    "attributes, kernel, sizes, window",
    [
        ("pads = [1, 2, 0, 1], strides = [2, 1]", (3, 2), (9, 8), {"strides": (2, 1), "pads": (1, 2, 0, 1)}),
        ("dilations = [2, 3], group = 3", (3, 2), (9, 8), {"dilations": (2, 3), "group": 3}),
        ('auto_pad = "SAME_UPPER", strides = [2, 2]', (3, 3), (8, 9), {"strides": (2, 2), "auto_pad": "SAME_UPPER"}),
        ('auto_pad = "SAME_LOWER"', (2, 4), (5, 6), {"auto_pad": "SAME_LOWER"}),
        ('auto_pad = "VALID"', (2, 3), (5, 6), {"auto_pad": "VALID"}),
        ("pads = [2, 0], strides = [3]", (4,), (17,), {"strides": (3,), "pads": (2, 0)}),
        ("pads = [1, 0, 1, 1, 0, 1]", (2, 1, 3), (4, 3, 5), {"pads": (1, 0, 1, 1, 0, 1)}),
    ],
)  # fmt: skip
def test_windows_times_the_weight_are_what_a_convolution_answers(
    attributes: str, kernel: tuple[int, ...], sizes: tuple[int, ...], window: dict[str, object]
) -> None:
    axes = len(kernel)
    group = int(str(window.get("group", 1)))
    weight, sample = random(6, 6 // group, *kernel), random(6, *sizes)
    text = f"(float[1, 6, {', '.join(map(str, sizes))}] x) => (float[N, 6{', M' * axes}] y) {{ y = Conv <{attributes}> (x, w) }}"
    wanted = run(build(text, w=weight), {"x": sample[None]})["y"][0].reshape(6, -1)
    plain = {"strides": (1,) * axes, "dilations": (1,) * axes, "pads": (0,) * 2 * axes}
    rows = Window(kernel, **{**plain, **window}).rows(sample, 10**6, generator())  # type: ignore[arg-type]
    found = np.matmul(weight.reshape(group, 6 // group, -1), rows.transpose(0, 2, 1)).reshape(6, -1)
    np.testing.assert_allclose(found, wanted, rtol=1e-4, atol=1e-4)
    few = Window(kernel, **{**plain, **window}).rows(sample, 3, generator())  # type: ignore[arg-type]
    assert few.shape == (group, 3, rows.shape[2])
    whole = {row.tobytes() for row in rows[0]}
    assert {row.tobytes() for row in few[0]} <= whole
    assert len({row.tobytes() for row in few[0]}) == 3


def correlated(size: int, groups: int = 1) -> np.ndarray:
    """Second moments [groups, size, size] of inputs that depend on each other."""
    factors = random(groups, size, size // 2 + 1).astype(np.float64)
    return factors @ factors.transpose(0, 2, 1) + 0.1 * np.eye(size)


def start_of(weight: np.ndarray, k: int, keep_zero: bool = False) -> tuple[list[np.ndarray], np.ndarray]:
    encoded = encode([weight], k, Rule(), keep_zero)
    return [encoded.centroids], encoded.indices[0]


def error_of(weight: np.ndarray, moments: np.ndarray, tables: object, indices: np.ndarray) -> float:
    return response_energy(np.asarray(tables)[0].astype(np.float64)[indices] - weight, moments)


def test_no_single_weight_would_do_better_and_responses_are_nearer_than_by_nearest_values() -> None:
    weight, moments = random(1, 20, 30), correlated(30)
    tables, indices = start_of(weight, 8)
    table = np.zeros((1, 20), np.int64)
    found = compensate(Task(weight, moments, table), tables, indices)
    before, after = (
        error_of(weight, moments, *one) for one in ((tables, indices), (found.tables, found.indices))
    )
    assert after < 0.4 * before
    change = found.tables[0].astype(np.float64)[found.indices] - weight
    gradient, curve = change @ moments, np.einsum("gii->gi", moments)
    worse = 0
    for value in found.tables[0]:
        step = value - weight - change  # every weight, alone, to this value
        gain = -(2 * step * gradient + curve[:, None] * np.square(step))
        worse += int((gain > 1e-3 * after).sum())
    assert worse <= 0.02 * weight.size * len(
        found.tables[0]
    )  # the last refit moved values after the last sweep


def test_on_a_small_task_few_choices_are_better() -> None:
    weight, moments = random(1, 1, 6), correlated(6)
    tables, indices = start_of(weight, 3)
    found = compensate(Task(weight, moments, np.zeros((1, 1), np.int64)), tables, indices)
    values = found.tables[0].astype(np.float64)
    every = np.array(list(itertools.product(values, repeat=6))) - weight[0, 0]
    errors = np.einsum("nd,de,ne->n", every, moments[0], every)
    mine = error_of(weight, moments, found.tables, found.indices)
    assert (errors < mine * (1 - 1e-6)).mean() < 0.05


def test_a_price_makes_codes_shorter_and_an_unused_value_leaves_the_table() -> None:
    weight, moments = random(1, 40, 30), correlated(30)
    tables, indices = start_of(weight, 32)
    energy, entropies, errors = response_energy(weight, moments), [], []
    for tradeoff in (0.0, 0.01, 0.05):
        task = Task(weight, moments, np.zeros((1, 40), np.int64), price=tradeoff * energy / weight.size)
        found = compensate(task, tables, indices)
        counts = np.bincount(found.indices.reshape(-1), minlength=len(found.tables[0]))
        assert counts.min() > 0
        assert (np.diff(found.tables[0]) > 0).all()
        shares = counts / counts.sum()
        entropies.append(-(shares * np.log2(shares)).sum())
        errors.append(error_of(weight, moments, found.tables, found.indices))
    assert entropies == sorted(entropies, reverse=True)
    assert entropies[2] < entropies[0] - 0.5
    assert errors == sorted(errors)
    assert len(found.tables[0]) < 32


def test_zeros_stay_and_nothing_else_becomes_zero() -> None:
    weight, moments = random(2, 10, 20), correlated(20, groups=2)
    weight[generator().random(weight.shape) < 0.5] = 0
    tables, indices = start_of(weight, 6, keep_zero=True)
    task = Task(weight, moments, np.zeros((2, 10), np.int64), zeros=weight == 0, price=1e-3)
    found = compensate(task, tables, indices)
    now = found.tables[0][found.indices]
    np.testing.assert_array_equal(now == 0, weight == 0)
    assert error_of(weight, moments, found.tables, found.indices) < error_of(weight, moments, tables, indices)


def test_each_row_has_the_values_of_its_own_table_and_mantissas_are_short() -> None:
    weight, moments = random(1, 12, 10) * np.repeat([1, 100], 6)[None, :, None], correlated(10)
    table = np.repeat([0, 1], 6)[None]
    parts = [start_of(weight[:, :6], 4), start_of(weight[:, 6:], 4)]
    indices = np.concatenate([part[1] for part in parts], axis=1)
    found = compensate(Task(weight, moments, table, mantissa=3), [part[0][0] for part in parts], indices)
    assert len(found.tables) == 2
    for number, values in enumerate(found.tables):
        np.testing.assert_array_equal(values.view(np.uint32) & 0xFFFFF, 0)
        assert found.indices[table == number].max() < len(values)
    shared = np.stack([found.tables[n][found.indices[0, row]] for row, n in enumerate(table[0])])
    error = response_energy((shared - weight[0]).astype(np.float64)[None], moments)
    assert error < 0.3 * response_energy(weight, moments)
