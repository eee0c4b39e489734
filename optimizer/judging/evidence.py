"""What a verdict rests on beside the metrics themselves: samples, the confidence asked for, and tolerances."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from onnx_lathe.errors import UsageError, nearest
from onnx_lathe.optimizer.judging import intervals
from onnx_lathe.optimizer.judging.intervals import Interval, Sampled
from onnx_lathe.optimizer.judging.metrics import METRICS, Kind, known_metric
from onnx_lathe.optimizer.judging.numbers import UNITS

STATED = 0.95
"""Confidence of intervals where none is asked for."""
_TOLERANCE = re.compile(
    r"(?:(?P<metric>[a-z][\w-]*)\s*=\s*)?(?P<number>\d+\.?\d*|\.\d+)\s*(?P<unit>%|[a-z]*)", re.I
)
EVERY = ""


@dataclass(frozen=True)
class Evidence:
    """`base` and `candidate`: metrics sample by sample, of the same samples. `confidence`: judge by the worse end of
    this interval, not by the estimate. `tolerances`: by which a gate may be missed, in stored units, by metric;
    EVERY for all that are fractions.
    """

    base: Mapping[str, Sampled] = field(default_factory=dict)
    candidate: Mapping[str, Sampled] = field(default_factory=dict)
    confidence: float | None = None
    tolerances: Mapping[str, float] = field(default_factory=dict)

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

    def tolerance(self, metric: str, kind: Kind) -> float:
        """In the stored unit of what is judged, 0 without one."""
        every = self.tolerances.get(EVERY, 0.0) if kind == "fraction" else 0.0
        return self.tolerances.get(metric, every)


def parse_confidence(text: str) -> float:
    """Of "95%" or "0.95". Raises UsageError for less than a half, or for certainty."""
    match = re.fullmatch(r"(\d+\.?\d*|\.\d+)\s*(%?)", text.strip())
    value = float(match[1]) / (100 if match[2] else 1) if match else 0.0
    if not 0.5 <= value < 1:
        raise UsageError(f"--confidence {text}: give 50% to 99.9%, such as 95%")
    return value


def parse_tolerances(texts: Sequence[str]) -> dict[str, float]:
    """Of "0.1%" for all fractions, "sqnr=0.5dB" or "latency=2ms" for one metric; several joined by ",".

    Raises UsageError for another form, an unknown metric or a unit that does not fit.
    """
    found: dict[str, float] = {}
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
        kind = known_metric(metric).kind if metric else "fraction"
        powers = {one.lower(): power for one, power in UNITS[kind].items()} | {"": 0}
        if kind == "fraction" and unit != "%":
            raise UsageError(f"--tolerance {text}: {metric} takes points; write {metric}={match['number']}%")
        if unit not in powers:
            hint = nearest(metric, METRICS) if metric not in METRICS else ""
            raise UsageError(f"--tolerance {text}: the unit '{match['unit']}' does not fit{hint}")
        found[metric] = float(match["number"]) * 10.0 ** powers[unit]
    return found
