"""Confidence intervals of what two models were measured to do on the same samples.

| what | interval |
|---|---|
| a share of samples, as top1 | score interval of Wilson, "Probable Inference, the Law of Succession, and Statistical Inference", JASA 1927 |
| the difference of two such shares | score interval of Tango, "Equivalence test and confidence interval for the difference in proportions for the paired-sample design", Statistics in Medicine 1998: McNemar's test, inverted |
| their ratio, for relative drops | hybrid Wilson interval of Bonett and Price, "Confidence Intervals for a Ratio of Binomial Proportions Based on Paired Data", Statistics in Medicine 2006 |
| everything else | paired bootstrap of samples: bootstrap.py |

Both models are judged on the same samples, so that what makes a sample hard cancels out of their difference.
"""

from statistics import NormalDist

import numpy as np

from onnx_lathe.optimizer.judging.bootstrap import bootstrapped
from onnx_lathe.optimizer.judging.measured import Interval, NoIntervalError, Sampled

__all__ = ["Interval", "NoIntervalError", "Sampled", "of_loss", "of_ratio", "of_value"]

_STEPS = 60


def of_value(one: Sampled, confidence: float) -> Interval:
    """Of the metric itself. As the others, raises NoIntervalError where there is none."""
    if one.hits is not None:
        low, high = wilson(int(one.hits.sum()), one.samples, confidence)
        return Interval(low, high, confidence, "Wilson", one.samples)
    return bootstrapped(lambda values: values, [one], confidence)


def of_loss(base: Sampled, candidate: Sampled, confidence: float, sign: int, relative: bool) -> Interval:
    """Of base - candidate for `sign` 1 and candidate - base for -1, as a share of the base if `relative`."""
    if base.hits is not None and candidate.hits is not None:
        table = _table(base.hits, candidate.hits)
        if not relative:
            low, high = tango(*table[1:3], base.samples, confidence)
            method = "Tango"
        else:
            ratio = bonett_price(*table[:3], confidence)
            low, high = 1 - ratio[1], 1 - ratio[0]
            method = "Bonett-Price"
        low, high = sorted((sign * low, sign * high))
        return Interval(low, high, confidence, method, base.samples)

    def loss(before: np.ndarray, after: np.ndarray) -> np.ndarray:
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.asarray(sign * (before - after) / (before if relative else 1))

    return bootstrapped(loss, [base, candidate], confidence)


def of_ratio(base: Sampled, candidate: Sampled, confidence: float) -> Interval:
    """Of base / candidate."""

    def ratio(before: np.ndarray, after: np.ndarray) -> np.ndarray:
        with np.errstate(divide="ignore", invalid="ignore"):
            return np.asarray(before / after)

    return bootstrapped(ratio, [base, candidate], confidence)


def wilson(right: int, samples: int, confidence: float) -> tuple[float, float]:
    """Of a share of `right` in `samples` > 0."""
    return _wilson(right, samples, _z(confidence))


def tango(lost: int, won: int, samples: int, confidence: float) -> tuple[float, float]:
    """Of the drop (lost - won) / samples: `lost` are right before and wrong after, `won` the other way round.

    Where the score statistic is the normal quantile, found by halving.
    """
    z = _z(confidence)
    drop = (lost - won) / samples

    def score(delta: float) -> float:
        """Standardized distance of the drop from `delta`; it falls as delta grows."""
        a = 2 * samples
        b = -lost - won + (2 * samples - lost + won) * delta
        c = -won * delta * (1 - delta)
        share = (np.sqrt(max(b * b - 4 * a * c, 0.0)) - b) / (2 * a)
        spread = samples * (2 * share + delta * (1 - delta))
        gap = lost - won - samples * delta
        return float(gap / np.sqrt(spread)) if spread > 0 else float(np.sign(gap) * np.inf if gap else 0.0)

    def end(outer: float, wanted: float) -> float:
        near, far = drop, outer
        for _ in range(_STEPS):
            middle = (near + far) / 2
            if abs(score(middle)) < wanted:
                near = middle
            else:
                far = middle
        return near

    return end(-1.0, z), end(1.0, z)


def bonett_price(both: int, lost: int, won: int, confidence: float) -> tuple[float, float]:
    """Of the ratio of shares after / before. `both`: right in both."""
    before, after, seen = both + lost, both + won, both + lost + won
    if seen == 0:
        return 0.0, float("inf")
    a = np.sqrt((lost + won + 2) / ((before + 1) * (after + 1)))
    b, c = (np.sqrt((1 - (one + 1) / (seen + 2)) / (one + 1)) for one in (before, after))
    z = _z(confidence) * a / (b + c)
    (low, high), (base_low, base_high) = (_wilson(one, seen, z) for one in (after, before))
    return low / base_high, high / base_low if base_low > 0 else float("inf")


def _table(base: np.ndarray, candidate: np.ndarray) -> tuple[int, int, int]:
    """Samples that are right in (both, the base alone, the candidate alone)."""
    return int((base & candidate).sum()), int((base & ~candidate).sum()), int((~base & candidate).sum())


def _z(confidence: float) -> float:
    return NormalDist().inv_cdf((1 + confidence) / 2)


def _wilson(right: int, samples: int, z: float) -> tuple[float, float]:
    share, square = right / samples, z * z / samples
    middle = (share + square / 2) / (1 + square)
    half = z * np.sqrt(share * (1 - share) / samples + square / (4 * samples)) / (1 + square)
    low = 0.0 if right == 0 else float(max(middle - half, 0.0))
    return low, 1.0 if right == samples else float(min(middle + half, 1.0))
