"""Gate expressions: what a candidate must reach, judged against the original model.

    top1 drop <= 0.5%             accuracy lost, base - candidate, in percentage points
    top1 drop <= 1% relative      the same as a share of what the base has, (base - candidate) / base
    wer rise <= 0.2%              errors gained, candidate - base; relative too
    top1 >= 98%                   the candidate's own value; 0.98 is the same
    size ratio >= 10              how many times smaller, base / candidate
    packed ratio >= 50            the same of the file that `optimize pack` makes, against the original ONNX file as it is
    sqnr >= 20                    decibels, of the worst output, or slice of an output that joins values of several ranges
    sqnr[boxes] >= 30             of the output named boxes alone; so for agreement and cosine

    gate   = metric [ "[" output "]" ] [ "drop" | "rise" | "ratio" ] op number [ unit ] [ "relative" ]
    op     = "<=" | "<" | ">=" | ">"
    unit   = "%" for fractions; "B" "kB" "MB" "GB" (powers of 1000), "ms", "dB", "x"; without one: fraction, bytes, ms, dB, times

Several gates are joined by ";" or ",". Fractions are kept as 0..1. A metric is one of judging/metrics.py, or a user's.
"""

import math
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from decimal import Decimal

from onnx_lathe.errors import UsageError, nearest
from onnx_lathe.optimizer.judging.evidence import Evidence
from onnx_lathe.optimizer.judging.intervals import Interval, NoIntervalError
from onnx_lathe.optimizer.judging.metrics import METRICS, OTHER_NAMES, Kind, Metric, known_metric, of_data
from onnx_lathe.optimizer.judging.numbers import UNITS, interval_words, remarks, shown

TOLERANCE = 1e-9
"""Slack against rounding, relative above 1: a drop from 0.995 to 0.99 meets "<= 0.5%"."""

LARGEST_PLAIN_DROP = 0.0
"""A drop needs "%": without it 0.1 could be a tenth of a point or ten points."""

LOSSES = ("drop", "rise")
NO_EVIDENCE = Evidence()

_EXAMPLE = 'such as "top1 drop <= 0.5%" or "size ratio >= 10"'
_SYNTAX = re.compile(
    r"(?P<metric>[a-z][\w-]*)(?P<output>\[.+\])?(?:\s+(?P<form>[a-z]\w*))?\s*(?P<op><=|>=|==|=|<|>)\s*"
    r"(?P<number>[-+]?(?:\d+\.?\d*|\.\d+)(?:e[-+]?\d{1,3})?)\s*(?P<unit>%|(?!relative)[a-z]*)(?P<relative>\s*relative)?",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Verdict:
    """`measured` and `margin` (positive: room to spare) are in the metric's stored unit; None when there is
    no number to judge. `interval`: of `measured`. `tolerance`: by which it was missed and passed all the same.
    """

    gate: str
    passed: bool
    measured: float | None
    needed: float
    margin: float | None
    message: str
    interval: Interval | None = None
    tolerance: float = 0.0


@dataclass(frozen=True)
class Gate:
    """One condition. `bound` is in the stored unit: fraction 0..1, dB, bytes, ms, count, or times for a
    ratio.
    """

    metric: str
    form: str
    op: str
    bound: float
    output: str = ""
    """The output that it is about, in brackets; empty for all of them."""
    relative: bool = False
    """Whether a drop or rise is a share of what the original has."""

    @classmethod
    def parse(cls, text: str, metrics: Collection[str] = ()) -> "Gate":
        """Reads one expression; `metrics` are names of the user's. Raises UsageError that quotes it and says how to
        write it.
        """
        text = " ".join(text.split())
        gate, match = f"gate '{text}'", _SYNTAX.fullmatch(text.replace("≤", "<=").replace("≥", ">="))
        if match is None:
            if re.fullmatch(r"\d+ ?%?", text):
                raise UsageError(f"{gate} is a bare number: a comma separates gates; write a decimal point")
            raise UsageError(f"{gate} is not 'metric [drop|ratio] <= number'; write one {_EXAMPLE}")
        name, metric = find_metric(gate, match["metric"], metrics)
        form, output, relative = (
            (match["form"] or "value").lower(),
            match["output"] or "",
            bool(match["relative"]),
        )
        if output and not metric.per_output:
            able = ", ".join(one for one, known in METRICS.items() if known.per_output)
            raise UsageError(f"{gate}: {name} is not measured per output; {able} are")
        if form not in metric.forms or (match["form"] and form == "value"):
            allowed = " or ".join(
                f"'{name}'" if one == "value" else f"'{name} {one}'" for one in metric.forms
            )
            raise UsageError(
                f"{gate}: '{name} {match['form'] or ''}".rstrip() + f"' cannot be judged; write {allowed}"
            )
        if relative and form not in LOSSES:
            raise UsageError(
                f"{gate}: only a drop or a rise is relative to what the original has; leave 'relative' out"
            )
        _check_direction(gate, metric, form, match["op"])
        kind: Kind = "ratio" if form == "ratio" else "fraction" if relative else metric.kind
        return cls(
            name,
            form,
            match["op"],
            _bound(gate, kind, form, match["number"], match["unit"]),
            output,
            relative,
        )

    @property
    def key(self) -> str:
        """Under which the metric is found among those measured."""
        return self.metric + self.output

    def __str__(self) -> str:
        metric = self.key if self.form == "value" else f"{self.key} {self.form}"
        exact = Decimal(repr(self.bound))
        unit, power = _unit(self.kind, abs(self.bound))
        number = f"{exact.scaleb(-power).normalize():f}{unit}"
        return f"{metric} {self.op} {number}" + (" relative" if self.relative else "")

    def missing(self, available: Collection[str], uncounted: Mapping[str, str] | None = None) -> str | None:
        """Why the gate cannot be judged with these metrics, in one line; None if it can. Unmeasured is
        never passed. `uncounted`: metric -> what of it could not be counted.
        """
        if self.key in available:
            return None
        if self.output and self.metric in available:
            each = sorted(key for key in available if key.startswith(f"{self.metric}["))
            advice = nearest(self.key, each) or f"; there are {', '.join(each)}"
            return f"gate '{self}' cannot be judged: {self.metric} has no output {self.output}{advice}"
        if uncounted and self.metric in uncounted:
            return f"gate '{self}' cannot be judged: {uncounted[self.metric]}"
        return f"gate '{self}' cannot be judged: {self.metric} needs {known_metric(self.metric).needs}"

    def judge(
        self, base: Mapping[str, float], candidate: Mapping[str, float], evidence: Evidence = NO_EVIDENCE
    ) -> Verdict:
        """The verdict on a candidate's metrics. A metric that was not measured, or is not a number, fails
        the gate. `evidence`: gives the measured value an interval, which with a confidence is what is judged.
        """
        if reason := self._unjudged(base, candidate):
            return Verdict(str(self), False, None, self.bound, None, reason)
        measured = self._measured(base, candidate)
        interval, why_none = self._interval(evidence)
        judged = measured
        if evidence.confidence is not None:
            if interval is not None:
                judged = interval.low if self.op[0] == ">" else interval.high
            elif of_data(self.metric):
                return self._without_interval(measured, why_none or "it is not known sample by sample")
        margin = judged - self.bound if self.op[0] == ">" else self.bound - judged
        slack = TOLERANCE * max(1.0, abs(self.bound))
        passed = margin >= -slack if "=" in self.op else margin > slack
        allowed = evidence.tolerance(self.metric, self.kind, self.relative)
        tolerated = not passed and margin >= -allowed - slack and allowed > 0
        said = self._said(
            base, candidate, measured, margin, passed, interval, evidence.confidence is not None
        )
        if why_none:
            said += f"; no interval: {why_none}"
        if tolerated:
            said += f", within the tolerance of {shown(allowed, self.kind, difference=True)}"
        verdict = (str(self), passed or tolerated, measured, self.bound, margin, said, interval)
        return Verdict(*verdict, allowed if tolerated else 0.0)

    @property
    def kind(self) -> Kind:
        """Of what is judged: the metric's own, or that of a ratio or a share of it."""
        return (
            "ratio"
            if self.form == "ratio"
            else "fraction"
            if self.relative
            else known_metric(self.metric).kind
        )

    def _measured(self, base: Mapping[str, float], candidate: Mapping[str, float]) -> float:
        new = candidate[self.key]
        if self.form == "value":
            return new
        if self.form == "ratio":
            return base[self.metric] / new
        lost = base[self.metric] - new if self.form == "drop" else new - base[self.metric]
        return lost / base[self.metric] if self.relative else lost

    def _interval(self, evidence: Evidence) -> tuple[Interval | None, str]:
        """(the interval of what is measured, why there is none)."""
        known = evidence.candidate.get(self.key)
        if known is not None and known.costly and evidence.confidence is None:
            return None, ""
        try:
            return evidence.interval(self.key, self.form, self.relative), ""
        except NoIntervalError as reason:
            return None, str(reason)

    def _without_interval(self, measured: float, why: str) -> Verdict:
        reason = (
            f"gate '{self}' failed: {self.key} has no interval here, since {why}; "
            "judge it by itself, without a confidence"
        )
        return Verdict(str(self), False, measured, self.bound, None, reason)

    def _unjudged(self, base: Mapping[str, float], candidate: Mapping[str, float]) -> str | None:
        if reason := self._uncompared(base, candidate) or self.missing(candidate):
            return reason
        compared = (
            {"the model": candidate}
            if self.form == "value"
            else {"the original": base, "the model": candidate}
        )
        for whose, metrics in compared.items():
            if self.metric not in metrics:
                return f"gate '{self}' cannot be judged: {self.metric} of {whose} was not measured"
            value = metrics[self.metric]
            if math.isnan(value) or (
                math.isinf(value) and self.kind != "decibel"
            ):  # equal outputs have no noise: inf dB
                return f"gate '{self}' failed: {self.metric} of {whose} is {value}, not a number to judge"
        if self.form == "ratio" and min(base[self.metric], candidate[self.metric]) <= 0:
            return f"gate '{self}' failed: {self.metric} is not above zero, so there is no ratio"
        if self.relative and base[self.metric] <= 0:
            return f"gate '{self}' failed: {self.metric} of the original is not above zero, so nothing is relative to it"
        return None

    def _uncompared(self, base: Mapping[str, float], candidate: Mapping[str, float]) -> str | None:
        """Why not, if a part of what the gate is about has no number. What was not seen did not pass."""
        per_output = known_metric(self.metric).per_output
        parts = [key for key in base if per_output and key.startswith(f"{self.key}[")]
        lost = [key for key in (self.key, *parts) if key in base and key not in candidate]
        if not lost:
            return None
        known = [key for key in parts if key in candidate and not self.output]
        advice = f"; a gate may name another output: {known[0]}" if known else ""
        return (
            f"gate '{self}' failed: {lost[-1]} could not be measured, since the output's shape, or its "
            f"NaN or infinite values, are not the original's{advice}"
        )

    def _worst(self, candidate: Mapping[str, float]) -> str:
        """Which output or slice the number is of, where there are several."""
        parts = {key: value for key, value in candidate.items() if key.startswith(f"{self.key}[")}
        if not known_metric(self.metric).per_output or len(parts) < 2:
            return ""
        worst = [key for key, value in parts.items() if value == candidate[self.key]]
        return f" ({worst[-1].removeprefix(self.metric)})" if worst else ""

    def _said(
        self,
        base: Mapping[str, float],
        candidate: Mapping[str, float],
        measured: float,
        margin: float,
        passed: bool,
        interval: Interval | None,
        by_end: bool,
    ) -> str:
        """`by_end`: the interval's worse end was judged."""
        if math.isinf(measured) and measured > 0:
            return f"{self}: the float outputs are equal"
        loss = self.form in LOSSES
        said = shown(measured, self.kind, difference=loss and not self.relative) + self._worst(candidate)
        if self.relative:
            said += " of the original's"
        if interval is not None and (words := interval_words(interval, self.kind)):
            said += f", {words}"
        if self.form != "value":
            kind = known_metric(self.metric).kind
            said += f" ({shown(base[self.metric], kind)} -> {shown(candidate[self.metric], kind)})"
        if by_end and interval is not None:
            said += f", judged by its {'lower' if self.op[0] == '>' else 'upper'} end"
        room = shown(abs(margin), self.kind, difference=True)
        said += ", " + (f"{room} to spare" if passed else f"missed by {room}")
        more = [] if interval is None else remarks(interval, None if by_end else self.bound, loss)
        return f"{self}: " + "; ".join([said, *more])


def parse_gates(texts: Iterable[str], metrics: Collection[str] = ()) -> tuple[Gate, ...]:
    """Gates of every text; a text may hold several, joined by ";" or ",". `metrics`: names of the user's. Raises
    UsageError for a wrong or an empty one.
    """
    gates: list[Gate] = []
    for text in texts:
        pieces = [piece.strip() for piece in re.split(r"[;,](?![^\[]*\])", text)]  # not within brackets
        if not any(pieces):
            raise UsageError(f"a gate is empty; write one {_EXAMPLE}")
        gates += [Gate.parse(piece, metrics) for piece in pieces if piece]
    return tuple(gates)


def find_metric(what: str, written: str, metrics: Collection[str]) -> tuple[str, Metric]:
    """(name, metric) of Lathe's or the user's. `what` begins the message of the UsageError for another."""
    name = written.lower()
    if name in METRICS or name in metrics:
        return name, known_metric(name)
    known = [*METRICS, *metrics]
    hint = f"; did you mean '{OTHER_NAMES[name]}'?" if name in OTHER_NAMES else nearest(name, known)
    raise UsageError(
        f"{what}: there is no metric '{written}'{hint or '; there are ' + ', '.join(known)}"
        + ("" if hint else f"; a function of your own is --metric {name}=FILE.py:FUNCTION")
    )


def _unit(kind: Kind, size: float) -> tuple[str, int]:
    """(what follows a bound of the size, its power of ten in the stored unit): the largest that is not above it."""
    if kind == "fraction":
        return "%", -2
    if kind not in ("bytes", "time"):
        return "", 0
    units = [(f" {unit}", power) for unit, power in UNITS[kind].items()]
    return next((one for one in reversed(units) if size >= 10.0 ** one[1]), units[0])


def _check_direction(gate: str, metric: Metric, form: str, op: str) -> None:
    upper = form in LOSSES or (form == "value" and not metric.higher_is_better)
    if metric.either and form == "value" and op[0] != "=":
        return
    if op[0] != ("<" if upper else ">"):
        right = "<=" if upper else ">="
        worse = "would pass the more, the worse the model is" if op[0] != "=" else "asks for an exact value"
        raise UsageError(f"{gate} {worse}; write '{right}'")


def _bound(gate: str, kind: Kind, form: str, number: str, unit: str) -> float:
    powers = {known.lower(): power for known, power in UNITS[kind].items()} | {"": 0}
    if unit.lower() not in powers:
        meant = f" or one with {' or '.join(UNITS[kind])}" if UNITS[kind] else ""
        raise UsageError(f"{gate}: the unit '{unit}' does not fit; write a plain number{meant}")
    value = float(Decimal(number).scaleb(powers[unit.lower()]))
    if not math.isfinite(value):
        raise UsageError(f"{gate}: {number} is too large to be meant")
    if kind == "fraction":
        limit = LARGEST_PLAIN_DROP if form in LOSSES and not unit else 1.0
        other = f" or, if meant, {100 * value:g}%" if abs(value) <= 1 else ""
        if abs(value) > limit and not unit:
            raise UsageError(f"{gate}: without '%' this is the fraction {number}; write {number}%{other}")
        if abs(value) > limit:
            raise UsageError(f"{gate}: {number}% is more than everything; write at most 100%")
    lowest = -math.inf if form in LOSSES or kind in ("decibel", "number") else 0.0
    if value < lowest or (kind == "ratio" and value == 0):
        raise UsageError(f"{gate}: the number must be positive")
    return value
