"""What a verdict rests on beside the metrics themselves: samples, the confidence asked for, and tolerances."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from decimal import Decimal

import numpy as np

from onnx_lathe.errors import UsageError, nearest
from onnx_lathe.optimizer.judging import intervals
from onnx_lathe.optimizer.judging.intervals import Interval, Sampled
from onnx_lathe.optimizer.judging.metrics import METRICS, Kind, known_metric
from onnx_lathe.optimizer.judging.numbers import UNITS
from onnx_lathe.runtime.running.tasks.samples import median

STATED = 0.95
"""Confidence of intervals where none is asked for."""
_TOLERANCE = re.compile(
    r"(?:(?P<metric>[a-z][\w-]*)\s*=\s*)?(?P<number>\d+\.?\d*|\.\d+)\s*(?P<unit>%|[a-z]*)", re.I
)
EVERY = ""
RATIO_UNIT = "x"

Tolerances = Mapping[tuple[str, Kind], float]
"""By which gates may be missed, in the stored unit of what is judged: a metric's own kind, or "ratio" for gates on its
ratio. (EVERY, "fraction") is for all that are judged as fractions.
"""


@dataclass(frozen=True)
class Evidence:
    """`base` and `candidate`: metrics sample by sample, of the same samples. `confidence`: judge by the worse end of
    this interval, not by the estimate.
    """

    base: Mapping[str, Sampled] = field(default_factory=dict)
    candidate: Mapping[str, Sampled] = field(default_factory=dict)
    confidence: float | None = None
    tolerances: Tolerances = field(default_factory=dict)

    def interval(self, key: str, form: str, relative: bool) -> Interval | None:
        """None where the metric is not known sample by sample. `key`: the metric, perhaps with an output."""
        candidate, confidence = self.candidate.get(key), self.confidence or STATED
        if candidate is None:
            return None
        if form == "value":
            return intervals.of_value(candidate, confidence)
        base = self.base.get(key)
        if base is None or base.samples != candidate.samples:
            return None
        if form == "ratio":
            return intervals.of_ratio(base, candidate, confidence)
        return intervals.of_loss(base, candidate, confidence, 1 if form == "drop" else -1, relative)

    def timed(self, rounds: np.ndarray | None) -> "Evidence":
        """With latency, of which each of the rounds [rounds, 2] is a sample: milliseconds of the base and of the
        candidate in turn, so that what slows the machine down slows both. As it is without rounds.
        """
        if rounds is None:
            return self
        base, candidate = (
            {**known, "latency": median(ms)}
            for known, ms in zip((self.base, self.candidate), rounds.T, strict=True)
        )
        return replace(self, base=base, candidate=candidate)

    def tolerance(self, metric: str, kind: Kind, relative: bool) -> float:
        """In the stored unit of what is judged, 0 without one. What is `relative` is no amount of the metric."""
        every = self.tolerances.get((EVERY, "fraction"), 0.0) if kind == "fraction" else 0.0
        return every if relative else self.tolerances.get((metric, kind), every)


def parse_confidence(text: str) -> float:
    """Of "95%" or "0.95". Raises UsageError for less than a half, or for more than 99.9 %."""
    match = re.fullmatch(r"(\d+\.?\d*|\.\d+)\s*(%?)", text.strip())
    value = float(match[1]) / (100 if match[2] else 1) if match else 0.0
    if not 0.5 <= round(value, 9) <= 0.999:
        raise UsageError(f"--confidence {text}: give 50% to 99.9%, such as 95%")
    return value


def parse_tolerances(texts: Sequence[str]) -> Tolerances:
    """Of "0.1%" for all fractions, "sqnr=0.5dB" or "latency=2ms" for one metric, "size=0.1x" for gates on its ratio;
    several joined by ",".

    Raises UsageError for another form or a unit that does not fit. `check_tolerances` of asking.py finds unknown metrics.
    """
    found: dict[tuple[str, Kind], float] = {}
    for text in (piece.strip() for whole in texts for piece in whole.split(",")):
        match = _TOLERANCE.fullmatch(text)
        if match is None:
            raise UsageError(
                f"--tolerance {text}: write points such as 0.1%, or METRIC=NUMBER such as sqnr=0.5dB"
            )
        metric, unit = (match["metric"] or EVERY).lower(), match["unit"].lower()
        if metric == EVERY and unit != "%":
            raise UsageError(
                f"--tolerance {text}: without '%' it needs a metric, such as sqnr={match['number']}dB"
            )
        known = known_metric(metric)
        kind: Kind = "fraction" if metric == EVERY else known.kind
        if unit == RATIO_UNIT and "ratio" in known.forms:
            kind = "ratio"
        powers = {one.lower(): power for one, power in UNITS[kind].items()} | {"": 0}
        if kind == "fraction" and unit != "%":
            raise UsageError(f"--tolerance {text}: {metric} takes points; write {metric}={match['number']}%")
        if unit not in powers:
            hint = nearest(metric, METRICS) if metric not in METRICS else ""
            raise UsageError(f"--tolerance {text}: the unit '{match['unit']}' does not fit{hint}")
        found[metric, kind] = float(Decimal(match["number"]).scaleb(powers[unit]))
    return found


def tolerance_text(metric: str, kind: Kind, amount: float) -> str:
    """The shortest that `parse_tolerances` reads as this."""
    units = UNITS[kind] if kind not in ("number", "count") else {"": 0}
    exact = Decimal(repr(amount))
    number = min((f"{exact.scaleb(-power).normalize():f}{unit}" for unit, power in units.items()), key=len)
    return f"{metric}={number}" if metric else number
