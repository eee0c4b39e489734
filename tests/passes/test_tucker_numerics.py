"""Tucker-2 and CP of a convolution's weight in a norm: what is recovered, what becomes least, and by how much."""

import numpy as np
import pytest

from onnx_lathe.passes.numerics.rank import tucker as tucker_numerics
from onnx_lathe.passes.numerics.rank.cp import Cp, cp, one_round, rounds
from onnx_lathe.passes.numerics.rank.tucker import (
    Problem,
    Tucker,
    behind,
    input_directions,
    least_squares,
    tucker,
)

SIZES = (10, 8, 9)


def drawn(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape)


def norm(seed: int = 5) -> np.ndarray:
    """Of inputs that differ by a factor of a thousand in energy, along directions of their own."""
    _, inputs, kernel = SIZES
    mixed = drawn(inputs * kernel, inputs * kernel, seed=seed) * np.geomspace(1, 1e-3, inputs * kernel)
    found: np.ndarray = mixed @ mixed.T + 1e-3 * np.eye(inputs * kernel)
    return found


def problem(target: np.ndarray | None = None) -> Problem:
    return Problem(drawn(*SIZES, seed=1) if target is None else target, norm())


def test_a_weight_of_low_rank_is_found_again() -> None:
    target = Tucker(drawn(3, 8), drawn(4, 3, 9), drawn(10, 4)).weight()
    for weighed in (problem(target), Problem(target, np.eye(72))):
        found = tucker(weighed, (3, 4))
        assert weighed.error(found.weight()) < 1e-8
        assert (found.first.shape, found.core.shape, found.last.shape) == ((3, 8), (4, 3, 9), (10, 4))


def test_full_ranks_lose_nothing() -> None:
    weighed = problem()
    assert weighed.error(tucker(weighed, (8, 10)).weight()) < 1e-8
    assert weighed.error(cp(weighed, 8 * 9, sweeps=0).weight()) < 1e-6


def test_what_stands_behind_is_the_best_there_is() -> None:
    """Against the closed form: reduced-rank regression on the inputs that are left."""
    weighed = problem()
    first = input_directions(weighed)[:4]
    last, core, explained = behind(weighed, first)
    np.testing.assert_allclose(last.T @ last, np.eye(last.shape[1]), atol=1e-10)
    energy = float(np.vdot(weighed.target, weighed.weighed(weighed.target)))
    root = np.linalg.cholesky(weighed.norm)
    reached = np.kron(first, np.eye(9)) @ root
    wanted = weighed.matrix @ root
    projected = wanted @ np.linalg.pinv(reached) @ reached
    for rank in (1, 3, 6):
        error = weighed.error(Tucker(first, core[:rank], last[:, :rank]).weight())
        values = np.linalg.svd(projected, compute_uv=False)
        best = np.square(wanted - projected).sum() + np.square(values[rank:]).sum()
        assert error == pytest.approx(best / energy, rel=1e-5)
        assert error == pytest.approx(1 - explained[:rank].sum() / energy, rel=1e-5)


@pytest.mark.parametrize("ranks", [(3, 4), (20,)])
def test_alternating_makes_the_error_smaller(ranks: tuple[int, ...]) -> None:
    weighed = problem()
    errors = []
    for sweeps in (0, 2, 12):
        found = cp(weighed, ranks[0], sweeps) if len(ranks) == 1 else tucker(weighed, (3, 4), sweeps)
        errors.append(weighed.error(found.weight()))
    assert errors[0] > errors[1] > errors[2]


@pytest.mark.parametrize("form", ["tucker", "cp"])
def test_the_norm_decides_what_is_lost(form: str) -> None:
    weighed, plain = problem(), Problem(problem().target, np.eye(72))

    def found(one: Problem) -> np.ndarray:
        return tucker(one, (4, 5)).weight() if form == "tucker" else cp(one, 24).weight()

    assert weighed.error(found(weighed)) < 0.7 * weighed.error(found(plain))
    assert plain.error(found(plain)) < plain.error(found(weighed))


def test_terms_of_a_weight_that_has_few_are_nearly_found() -> None:
    target = Cp(drawn(5, 8), drawn(5, 9), drawn(10, 5)).weight()
    weighed = problem(target)
    found = cp(weighed, 8, sweeps=100)
    assert weighed.error(found.weight()) < 2e-3
    assert all(np.isfinite(part).all() for part in (found.first, found.core, found.last))


def test_inputs_that_never_vary_are_no_reason_to_fail() -> None:
    dead = norm().reshape(8, 9, 8, 9)
    dead[3], dead[:, :, 3] = 0, 0
    weighed = Problem(problem().target, dead.reshape(72, 72) + 1e-9 * np.eye(72))
    assert 0 <= weighed.error(tucker(weighed, (4, 6)).weight()) < 1
    assert 0 <= weighed.error(cp(weighed, 24).weight()) < 1


def test_least_squares_solve() -> None:
    mixed = drawn(4, 4)
    matrix, wanted = mixed @ mixed.T + np.eye(4), drawn(4, 1, seed=2)
    found = least_squares(lambda x: matrix @ x, wanted, np.zeros((4, 1)), lambda x: x)
    np.testing.assert_allclose(found, np.linalg.solve(matrix, wanted), rtol=1e-6)


def test_rounds_keep_within_the_work_of_wide_layers() -> None:
    def wide(channels: int) -> Problem:
        return Problem(np.zeros((channels, channels, 9)), np.broadcast_to(0.0, (9 * channels, 9 * channels)))

    made = [rounds(wide(channels), 2 * channels, 30, 2e11, 4) for channels in (64, 128, 256, 512)]
    assert made[0] == 30
    assert made == sorted(made, reverse=True)
    assert made[-1] == 4


def test_a_round_starts_further_on_and_few_do_what_many_did() -> None:
    """Against alternating alone, by rounds of one each: twice as many of these lose as much."""
    weighed = problem()
    plain = start = cp(weighed, 20, sweeps=0)
    for _ in range(24):
        plain = one_round(weighed, plain)
    assert weighed.error(plain.weight()) < weighed.error(start.weight())
    assert weighed.error(cp(weighed, 20, sweeps=12).weight()) < 1.02 * weighed.error(plain.weight())


def test_products_in_float32_lose_nothing_that_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    exact, target = cp(problem(), 20).weight(), problem()
    monkeypatch.setattr(tucker_numerics, "LARGE", 10)
    light = cp(problem(), 20).weight()
    assert target.error(light) == pytest.approx(target.error(exact), rel=0.02)
    assert (light != exact).any()
