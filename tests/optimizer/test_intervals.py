"""Confidence intervals: published values, and that they hold a known true difference as often as they say."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest

from onnx_lathe.errors import UsageError
from onnx_lathe.optimizer.gate import Gate
from onnx_lathe.optimizer.judging.bootstrap import resampled
from onnx_lathe.optimizer.judging.evidence import Evidence, parse_confidence
from onnx_lathe.optimizer.judging.intervals import (
    Interval,
    NoIntervalError,
    bonett_price,
    of_loss,
    of_ratio,
    of_value,
    tango,
    wilson,
)
from onnx_lathe.runtime.running.tasks.samples import Redrawn, Sums, mean, quotient, right

PAIRS = 200
SETTINGS = [  # samples, accuracy of the base, share of samples that one model alone has right, true drop
    (200, 0.90, 0.05, 0.01),
    (200, 0.60, 0.30, 0.05),
    (500, 0.95, 0.02, 0.0),
    (1000, 0.76, 0.06, 0.03),
    (2000, 0.99, 0.005, 0.001),
    (2000, 0.70, 0.10, -0.01),
    (10000, 0.99, 0.01, 0.0),
]
"""Each with two or more samples on which the models part: with fewer every interval of shares holds too often."""


def pair(
    generator: np.random.Generator, samples: int, accuracy: float, parted: float, drop: float
) -> np.ndarray:
    """Whether base and candidate are right, bool [2, samples], of models with this true drop."""
    lost, won = (parted + drop) / 2, (parted - drop) / 2
    kinds = generator.choice(4, samples, p=[accuracy - lost, lost, won, 1 - accuracy - won])
    return np.stack([(kinds == 0) | (kinds == 1), (kinds == 0) | (kinds == 2)])


def holds(found: Interval, value: float) -> bool:
    return found.low <= value <= found.high


@pytest.mark.parametrize("samples, accuracy, parted, drop", SETTINGS)
def test_a_drop_lies_in_its_interval_as_often_as_is_said(
    samples: int, accuracy: float, parted: float, drop: float
) -> None:
    generator, held, relative = np.random.default_rng(17), 0, 0
    for _ in range(PAIRS):
        base, candidate = map(right, pair(generator, samples, accuracy, parted, drop))
        held += holds(of_loss(base, candidate, 0.95, 1, False), drop)
        relative += holds(of_loss(base, candidate, 0.95, 1, True), drop / accuracy)
    assert 0.90 * PAIRS <= held <= 0.99 * PAIRS
    assert 0.90 * PAIRS <= relative <= 0.99 * PAIRS


@pytest.mark.parametrize("samples, accuracy", [(100, 0.9), (500, 0.7), (2000, 0.99)])
def test_a_value_lies_in_its_interval_as_often_as_is_said(samples: int, accuracy: float) -> None:
    generator = np.random.default_rng(3)
    held = sum(
        holds(of_value(right(generator.random(samples) < accuracy), 0.95), accuracy) for _ in range(PAIRS)
    )
    assert 0.90 * PAIRS <= held <= 0.99 * PAIRS


def resampling(share: Callable[[np.ndarray], Sums], true: float, samples: int) -> float:
    """How often the bootstrap holds the true difference of two models that err on shared samples."""
    generator, held = np.random.default_rng(5), 0
    for _ in range(PAIRS):
        hard = generator.random(samples)
        errors = [np.floor(hard * 4 + extra * generator.random(samples)) for extra in (1.0, 1.4)]
        base, candidate = (share(one) for one in errors)
        base, candidate = (Sums(one.rows, one.value, resamples=300) for one in (base, candidate))
        held += holds(of_loss(base, candidate, 0.95, -1, False), true)
    return held / PAIRS


def test_the_bootstrap_holds_a_rise_of_errors_as_often_as_is_said() -> None:
    """Errors of 10 words each; the true difference by as many draws as leave it no doubt."""
    generator = np.random.default_rng(1)
    hard = generator.random(2_000_000)
    means = [np.floor(hard * 4 + extra * generator.random(len(hard))).mean() / 10 for extra in (1.0, 1.4)]
    held = resampling(lambda errors: quotient(errors, np.full(len(errors), 10.0)), means[1] - means[0], 300)
    assert 0.90 <= held <= 0.99


def test_published_values() -> None:
    """Airway hyper-responsiveness of 21 patients, 1 + 7 before, 1 + 1 after: Fagerland, Lydersen and Laake,
    "Recommended tests and confidence intervals for paired binomial proportions", Statistics in Medicine 2014.
    """
    assert np.round(tango(1, 7, 21, 0.95), 3).tolist() == [-0.517, -0.026]
    assert np.round(tango(7, 1, 21, 0.95), 3).tolist() == [0.026, 0.517]


@pytest.mark.parametrize("right_ones, samples", [(0, 10), (3, 10), (99, 100), (100, 100), (1234, 2000)])
def test_shares_are_those_of_scipy(right_ones: int, samples: int) -> None:
    stats = pytest.importorskip("scipy.stats")
    expected = stats.binomtest(right_ones, samples).proportion_ci(0.9, "wilson")
    assert wilson(right_ones, samples, 0.9) == pytest.approx((expected.low, expected.high), abs=1e-12)


@pytest.mark.parametrize("lost, won, samples", [(0, 0, 50), (3, 0, 400), (10, 4, 2000), (40, 60, 300)])
def test_the_interval_of_a_drop_is_mcnemars_test_turned_round(lost: int, won: int, samples: int) -> None:
    """No drop lies inside just when McNemar's statistic is below the square of the normal quantile."""
    low, high = tango(lost, won, samples, 0.95)
    assert low <= (lost - won) / samples <= high
    below = lost == won or (lost - won) ** 2 / (lost + won) < 1.959964**2
    assert (low < 0 < high) == below


def test_equal_answers_leave_room_for_a_drop_that_was_not_seen() -> None:
    """Three in n at most, about (the rule of three): a bootstrap would say that nothing is possible."""
    low, high = tango(0, 0, 1000, 0.95)
    assert 0.003 < high < 0.004
    assert low == pytest.approx(-high)


def test_a_ratio_of_nothing_is_not_bounded() -> None:
    assert bonett_price(0, 0, 0, 0.95) == (0.0, float("inf"))
    low, high = bonett_price(90, 5, 5, 0.95)
    assert low < 1 < high


def test_pairs_are_drawn_together() -> None:
    """A candidate that is always one above its base is so in every resample, however the base varies."""
    values = np.random.default_rng(0).normal(5, 3, 400)
    little = np.random.default_rng(1).normal(1, 1e-3, 400)
    found = of_loss(mean(values), mean(values + little), 0.95, -1, False)
    assert found.low == pytest.approx(1, abs=1e-3)
    assert found.high == pytest.approx(1, abs=1e-3)
    halved = of_ratio(mean(values), mean(values / 2 * little), 0.95)
    assert halved.low == pytest.approx(2, abs=1e-3)
    assert of_value(mean(values), 0.95).high - of_value(mean(values), 0.95).low > 0.3


def test_what_is_computed_anew_is_the_same_as_sums() -> None:
    values = np.random.default_rng(0).normal(5, 3, 60)
    anew = Redrawn(60, lambda counts: float(counts @ values / counts.sum()), float(values.mean()), 100)
    sums = Sums(mean(values).rows, mean(values).value, resamples=100)
    one, other = of_value(anew, 0.9), of_value(sums, 0.9)
    assert (one.low, one.high) == pytest.approx((other.low, other.high))
    assert one.method == "bootstrap of 200 resamples"


def test_resamples_are_always_the_same_and_whole() -> None:
    first = np.concatenate(list(resampled(7, 30)))
    assert first.shape == (30, 7)
    assert (first.sum(1) == 7).all()
    np.testing.assert_array_equal(first, np.concatenate(list(resampled(7, 30))))


def test_a_wider_confidence_is_a_wider_interval() -> None:
    base, candidate = map(right, pair(np.random.default_rng(0), 500, 0.9, 0.05, 0.01))
    near, far = (of_loss(base, candidate, confidence, 1, False) for confidence in (0.8, 0.99))
    assert far.low < near.low < near.high < far.high


@pytest.mark.parametrize("samples, share", [(200, 0.005), (500, 0.004), (500, 0.01), (2000, 0.001)])
def test_a_rise_by_few_rare_errors_lies_in_its_interval(samples: int, share: float) -> None:
    """Of 10 words each, in a tenth of the samples one is wrong; the candidate errs in few more, or in none seen."""
    generator, held, words = np.random.default_rng(7), 0, np.full(samples, 10.0)
    for _ in range(PAIRS):
        errors, more = generator.random(samples) < 0.1, generator.random(samples) < share
        base, candidate = (
            replace(quotient(one, words, reach=1), resamples=300) for one in (errors, errors + 1.0 * more)
        )
        held += holds(of_loss(base, candidate, 0.95, -1, False), share / 10)
    assert held >= 0.94 * PAIRS


def test_what_was_not_seen_has_room() -> None:
    """By the rule of three, of the largest change that one sample shows; no more where many samples decide."""
    words, none = np.full(1000, 10.0), np.zeros(1000)
    seen = np.where(np.arange(1000) < 100, 2.0, 0.0)
    same = of_loss(quotient(seen, words, 1), quotient(seen, words, 1), 0.95, -1, False)
    assert same.high == pytest.approx(0.0037 * 0.2, rel=0.1)
    assert same.low == -same.high
    assert same.widened == same.high
    faultless = of_loss(quotient(none, words, 1), quotient(none, words, 1), 0.95, -1, False)
    assert faultless.high == pytest.approx(0.0037, rel=0.02)
    value = of_value(quotient(none, words, 1), 0.95)
    assert (value.low, value.high) == (0, faultless.high)
    assert of_value(quotient(none + 1, words / 10, 1), 0.95).high == 1
    many = of_loss(quotient(none, words, 1), quotient(seen, words, 1), 0.95, -1, False)
    assert many.widened == 0
    with pytest.raises(NoIntervalError, match="does not tell how far others may be"):
        of_value(mean(none + 3), 0.95)


def test_one_sample_that_decides_of_what_is_computed_anew() -> None:
    hits = np.arange(400) < 399

    def one(values: np.ndarray) -> Redrawn:
        return Redrawn(
            400, lambda counts: float(counts @ values / counts.sum()), float(values.mean()), reach=1
        )

    found = of_loss(one(np.ones(400)), one(hits * 1.0), 0.95, 1, False)
    assert found.high > 4 / 400
    assert found.widened > 0


def test_a_high_confidence_draws_as_often_as_it_needs() -> None:
    values = np.random.default_rng(0).normal(size=400)
    assert of_value(mean(values), 0.99).method == "bootstrap of 2,000 resamples"
    far = of_value(mean(values), 0.999)
    assert far.method == "bootstrap of 20,000 resamples"
    assert far.high - far.low == pytest.approx(2 * 3.29 * values.std() / 20, rel=0.1)
    with pytest.raises(NoIntervalError, match=r"needs 40,000 resamples; ask for at most 99.9 %"):
        of_value(mean(values), 0.9995)
    anew = Redrawn(400, lambda counts: 1.0, 1.0)
    with pytest.raises(NoIntervalError, match=r"needs 20,000 resamples; ask for at most 99.5 %"):
        of_value(anew, 0.999)


def test_a_confidence_is_at_most_what_is_offered() -> None:
    assert parse_confidence("99.9%") == pytest.approx(0.999)
    with pytest.raises(UsageError, match=r"give 50% to 99\.9%"):
        parse_confidence("99.95%")


def test_latency_has_an_interval_of_rounds() -> None:
    """What slows the machine down for a while slows both models: their ratio knows nothing of it."""
    generator = np.random.default_rng(0)
    machine = np.linspace(1, 3, 200)
    rounds = np.stack([4 * machine, 2 * machine], 1) * generator.lognormal(0, 0.02, (200, 2))
    evidence = Evidence(confidence=0.95).timed(rounds)
    ratio = evidence.interval("latency", "ratio", False)
    own = evidence.interval("latency", "value", False)
    assert ratio is not None
    assert own is not None
    assert 1.9 < ratio.low < 2 < ratio.high < 2.1
    assert own.high > 1.1 * own.low
    assert (ratio.samples, ratio.method) == (200, "bootstrap of 1,000 resamples")
    base, candidate = np.median(rounds, axis=0)
    for text, passed in (("latency ratio >= 1.9", True), ("latency <= 4.2 ms", False)):
        verdict = Gate.parse(text).judge({"latency": base}, {"latency": candidate}, evidence)
        assert verdict.passed == passed, verdict.message
        assert f"judged by its {'lower' if passed else 'upper'} end" in verdict.message
    assert Gate.parse("latency <= 4.2 ms").judge({}, {"latency": candidate}).passed
    memory = Gate.parse("memory <= 1 MB").judge({}, {"memory": 5e5}, evidence)
    assert memory.passed
    assert memory.interval is None
