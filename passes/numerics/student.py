"""Student's distribution, of whole degrees of freedom.

Source: Abramowitz and Stegun, Handbook of Mathematical Functions, 26.7.3 and 26.7.4.
"""

import math

MOST = 1e6
"""Quantiles beyond are none that a test needs."""


def tail(value: float, freedom: int) -> float:
    """Probability of more than `value`, which is not negative."""
    angle = math.atan(value / math.sqrt(freedom))
    cosine = math.cos(angle)
    odd = freedom % 2
    term, summed = cosine if odd else 1.0, 0.0
    for step in range(2 + odd, freedom + 1, 2):
        summed += term
        term *= cosine * cosine * (step - 1) / step
    inner = math.sin(angle) * summed
    return (1 - (2 / math.pi * (angle + inner) if odd else inner)) / 2


def quantile(level: float, freedom: int) -> float:
    """The value beyond which lies a share of `level`, at most a half."""
    low, high = 0.0, MOST
    while high - low > 1e-9 * max(high, 1.0):
        middle = (low + high) / 2
        low, high = (middle, high) if tail(middle, freedom) > level else (low, middle)
    return high
