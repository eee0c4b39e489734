"""Numbers of metrics in words: units, digits, and what an interval says of a difference."""

import math
from collections.abc import Mapping

from onnx_lathe.optimizer.judging.intervals import Interval
from onnx_lathe.optimizer.judging.metrics import Kind

UNITS: Mapping[Kind, Mapping[str, int]] = {  # unit -> power of ten of the stored unit
    "fraction": {"%": -2},
    "number": {"%": -2},
    "decibel": {"dB": 0},
    "bytes": {"B": 0, "kB": 3, "MB": 6, "GB": 9},
    "time": {"ms": 0},
    "count": {},
    "ratio": {"x": 0},
}


MOST_DIGITS = 6


def shown(value: float, kind: Kind, difference: bool = False) -> str:
    """With its unit: "98.9 %", and of a `difference` "0.1 points"."""
    if kind == "fraction":
        return f"{_short(100 * value)} points" if difference else f"{_short(100 * value)} %"
    if kind == "bytes":
        unit, power = [
            (unit, power) for unit, power in UNITS["bytes"].items() if power == 0 or abs(value) >= 10**power
        ][-1]
        return f"{_short(value / 10**power)} {unit}"
    if kind == "count":
        return f"{value:,.0f}"
    return _short(value) + {"decibel": " dB", "time": " ms", "ratio": "x", "number": ""}[kind]


def interval_words(interval: Interval, kind: Kind) -> str:
    """ "95 % interval -0.3 to 0.5", in percent of fractions; empty for one that no digits tell from a point."""
    scale = 100 if kind == "fraction" else 1
    low, high = scale * interval.low, scale * interval.high
    width = high - low
    known = math.isfinite(width) and width > 0
    digits = max(0, 1 - math.floor(math.log10(width))) if known else 4
    ends = [f"{end + 0.0:.{min(digits, MOST_DIGITS)}f}" if known else _short(end) for end in (low, high)]
    if ends[0] == ends[1]:
        return ""
    return f"{percent(interval.confidence)} interval {' to '.join(ends)}"


def remarks(interval: Interval, limit: float | None, difference: bool) -> list[str]:
    """What these samples cannot tell: a difference from none, or, of an estimate, on which side of the limit it is."""
    said = []
    if interval.widened:
        said.append(
            f"few of the {interval.samples:,} samples decide it, so its interval leaves room for what they do not show"
        )
    if difference and interval.low <= 0 <= interval.high and interval.low < interval.high:
        said.append(f"these {interval.samples:,} samples cannot tell it from none")
    if limit is not None and interval.low <= limit <= interval.high and interval.low < interval.high:
        said.append("the limit lies within the interval")
    return said


def percent(share: float) -> str:
    """ "95 %"."""
    return f"{100 * share:.6g} %"


def _short(value: float) -> str:
    """Four digits, without the rounding noise of a difference: 0.5, 98.91, -0.02."""
    return f"{round(value, 7) + 0.0:.4g}"
