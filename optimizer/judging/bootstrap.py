"""Paired bootstrap of samples, by percentiles: Efron and Tibshirani, "An Introduction to the Bootstrap", 1993, chapter 13.

It knows only what it has seen: of errors in one sample of 500, or in none, it makes an interval of no width. Where few
samples decide, both ends are moved by what samples would do that were not seen, by the rule of three: with confidence c
none of n samples shows what a share of 1 - ((1 - c) / 2)^(1/n) of them does, 3.7/n at 95 % (Hanley and Lippman-Hand, "If
nothing goes wrong, is everything all right?", JAMA 1983, for both ends). They are taken to do what the most extreme of
those seen does.
"""

import math
from collections.abc import Callable, Iterator, Sequence

import numpy as np

from onnx_lathe.errors import DataError
from onnx_lathe.optimizer.judging.measured import Interval, NoIntervalError, Sampled

BEYOND = 10
"""Resamples that lie beyond each end of an interval."""
MOST_TIMES = 20
"""How much more often than is usual a metric is drawn for a high confidence."""
FEW = 5
"""Samples by which an interval is not to be trusted."""
COUNTS_AT_ONCE = 1 << 22
"""Numbers of a block of resamples: 32 MB."""
ROUNDING = 1e-12
"""Of values: what differs by less does not differ."""

Combined = Callable[..., np.ndarray]
"""What is judged, of values of each model."""


def bootstrapped(combined: Combined, models: Sequence[Sampled], confidence: float) -> Interval:
    """Of what is judged of one model, or of two on the same samples. Raises NoIntervalError."""
    draws, samples = _draws(models, confidence), models[0].samples
    try:
        drawn = [combined(*(one.at(counts) for one in models)) for counts in resampled(samples, draws)]
        room = _room(combined, models, confidence)
    except DataError as error:
        raise NoIntervalError(f"it cannot be computed of resamples: {error}") from error
    values = np.concatenate(drawn)
    values = values[~np.isnan(values)]
    if not values.size:
        raise NoIntervalError("it is not a number of any resample")
    tail = 100 * (1 - confidence) / 2
    with np.errstate(invalid="ignore"):
        low, high = (float(end) for end in np.percentile(values, [tail, 100 - tail], method="nearest"))
    method = f"bootstrap of {draws:,} resamples"
    if room == 0:
        return Interval(low, high, confidence, method, samples)
    if len(models) == 1 and models[0].reach == 1:  # a share
        low, room_above = max(low - room, min(low, 0.0)), max(1.0, high) - high
        return Interval(low, high + min(room, room_above), confidence, method, samples, room)
    return Interval(low - room, high + room, confidence, method, samples, room)


def resampled(samples: int, draws: int) -> Iterator[np.ndarray]:
    """Counts int [some of the draws, samples] of samples drawn with replacement, always the same."""
    generator = np.random.default_rng(0)
    block = max(1, COUNTS_AT_ONCE // max(samples, 1))
    for start in range(0, draws, block):
        rows = min(block, draws - start)
        drawn = generator.integers(0, samples, (rows, samples)) + samples * np.arange(rows)[:, None]
        yield np.bincount(drawn.reshape(-1), minlength=rows * samples).reshape(rows, samples)


def _draws(models: Sequence[Sampled], confidence: float) -> int:
    usual = min(one.resamples for one in models)
    needed = math.ceil(2 * BEYOND / (1 - confidence) - 1e-6)
    if needed > MOST_TIMES * usual:
        most = 100 * (1 - 2 * BEYOND / (MOST_TIMES * usual))
        raise NoIntervalError(
            f"so high a confidence needs {needed:,} resamples; ask for at most {most:.6g} %"
        )
    return max(usual, needed)


def _room(combined: Combined, models: Sequence[Sampled], confidence: float) -> float:
    """By how much each end is moved; 0 where enough samples decide. Raises NoIntervalError where that is not known."""
    samples = models[0].samples
    unseen = 1 - ((1 - confidence) / 2) ** (1 / samples)
    times = math.ceil(samples * unseen / (1 - unseen))
    looked_at = min(samples, min(one.resamples for one in models))
    rows = np.linspace(0, samples - 1, looked_at).round().astype(np.int64)
    once = np.ones((1, samples), np.int64)
    whole = [one.at(once)[0] for one in models]
    if not np.isfinite(combined(*whole)):
        return 0.0
    more = [one.repeated(rows, times) for one in models]
    together = _spread(combined(*more))
    noise = ROUNDING * max(1.0, *(abs(value) for value in whole if np.isfinite(value)))
    if float(np.abs(together).max(initial=0)) > noise and _deciding(together) >= FEW:
        return 0.0
    apart = [combined(*whole[:at], more[at], *whole[at + 1 :]) for at in range(len(models))]
    reached = max(float(np.abs(one).max(initial=0)) for one in (together, *map(_spread, apart)))
    if reached > noise:
        return reached
    reaches = {one.reach for one in models}
    if (reach := reaches.pop()) is None or reaches:
        raise NoIntervalError(
            "it is the same of all samples, which does not tell how far others may be from it"
        )
    return unseen * reach


def _spread(values: np.ndarray) -> np.ndarray:
    """How far each is from the middle one."""
    known = values[np.isfinite(values)]
    return known - np.median(known) if known.size else known


def _deciding(spread: np.ndarray) -> float:
    """How many samples of equal weight would spread so: (sum of squares)^2 / sum of fourth powers."""
    squares = np.square(spread / np.abs(spread).max())
    return float(squares.sum() ** 2 / np.square(squares).sum())
