"""Gate expressions: what a candidate must reach, judged against the original model.

    top1 drop <= 0.5%      accuracy lost, base - candidate, in percentage points
    top1 >= 98%            the candidate's own value; 0.98 is the same
    size ratio >= 10       how many times smaller, base / candidate
    packed ratio >= 50     the same of the file that `optimize pack` makes, against the original ONNX file as it is
    sqnr >= 20             decibels, of the worst output, or slice of an output that joins values of several ranges
    sqnr[boxes] >= 30      of the output named boxes alone; so for agreement

    gate   = metric [ "[" output "]" ] [ "drop" | "ratio" ] ( "<=" | "<" | ">=" | ">" ) number [ unit ]
    unit   = "%" for fractions; "B" "kB" "MB" "GB" (powers of 1000), "ms", "dB", "x"; without one: fraction, bytes, ms, dB, times

Several gates are joined by ";" or ",". Fractions are kept as 0..1.
"""

import math
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from decimal import Decimal
from typing import Literal

from onnx_lathe.errors import UsageError, nearest

Form = Literal["value", "drop", "ratio"]
Kind = Literal["fraction", "decibel", "bytes", "time", "count", "ratio"]

TOLERANCE = 1e-9
"""Slack against rounding, relative above 1: a drop from 0.995 to 0.99 meets "<= 0.5%"."""

LARGEST_PLAIN_DROP = 0.0
"""A drop needs "%": without it 0.1 could be a tenth of a point or ten points."""


@dataclass(frozen=True)
class Metric:
    """`kind` gives the unit, `forms` what may be asked of it, `needs` what lets it be measured. `per_output`:
    whether an output can be named.
    """

    kind: Kind
    higher_is_better: bool
    forms: tuple[Form, ...]
    needs: str
    per_output: bool = False


METRICS: Mapping[str, Metric] = {
    "top1": Metric(
        "fraction", True, ("value", "drop"), "evaluation data with labels and a model that classifies"
    ),
    "top5": Metric(
        "fraction", True, ("value", "drop"), "evaluation data with labels and a model of more than 5 classes"
    ),
    "agreement": Metric(
        "fraction",
        True,
        ("value",),
        "evaluation data (--data or --eval) and a model that classifies",
        per_output=True,
    ),
    "sqnr": Metric(
        "decibel",
        True,
        ("value",),
        "evaluation data (--data or --eval) and a model with float outputs",
        per_output=True,
    ),
    "sparsity": Metric("fraction", True, ("value",), "a model with weights"),
    "size": Metric("bytes", False, ("value", "ratio"), "the file"),
    "packed": Metric("bytes", False, ("value", "ratio"), "the file"),
    "weights": Metric("bytes", False, ("value", "ratio"), "a model with weights"),
    "parameters": Metric("count", False, ("value", "ratio"), "a model with weights"),
    "macs": Metric("count", False, ("value", "ratio"), "a model whose products can be counted"),
    "latency": Metric("time", False, ("value", "ratio"), "a run that is timed (without --no-latency)"),
}

_OTHER_NAMES = {"accuracy": "top1", "acc": "top1", "speed": "latency", "speedup": "latency ratio", "compression": "size ratio",
                "params": "parameters", "flops": "macs", "snr": "sqnr"}  # fmt: skip

_UNITS: Mapping[Kind, Mapping[str, int]] = {  # unit -> power of ten of the stored unit
    "fraction": {"%": -2},
    "decibel": {"dB": 0},
    "bytes": {"B": 0, "kB": 3, "MB": 6, "GB": 9},
    "time": {"ms": 0},
    "count": {},
    "ratio": {"x": 0},
}

_EXAMPLE = 'such as "top1 drop <= 0.5%" or "size ratio >= 10"'
_SYNTAX = re.compile(
    r"(?P<metric>[a-z][\w-]*)(?P<output>\[.+\])?(?:\s+(?P<form>[a-z]\w*))?\s*(?P<op><=|>=|==|=|<|>)\s*"
    r"(?P<number>[-+]?(?:\d+\.?\d*|\.\d+)(?:e[-+]?\d{1,3})?)\s*(?P<unit>%|[a-z]*)",
    re.IGNORECASE,
)


@dataclass(frozen=True)
class Verdict:
    """`measured` and `margin` (positive: room to spare) are in the metric's stored unit; None when there is
    no number to judge.
    """

    gate: str
    passed: bool
    measured: float | None
    needed: float
    margin: float | None
    message: str


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

    @classmethod
    def parse(cls, text: str) -> "Gate":
        """Reads one expression. Raises UsageError that quotes it and says how to write it."""
        text = " ".join(text.split())
        gate, match = f"gate '{text}'", _SYNTAX.fullmatch(text.replace("≤", "<=").replace("≥", ">="))
        if match is None:
            if re.fullmatch(r"\d+ ?%?", text):
                raise UsageError(f"{gate} is a bare number: a comma separates gates; write a decimal point")
            raise UsageError(f"{gate} is not 'metric [drop|ratio] <= number'; write one {_EXAMPLE}")
        name, op = match["metric"].lower(), match["op"]
        if name not in METRICS:
            known = (
                f"; did you mean '{_OTHER_NAMES[name]}'?" if name in _OTHER_NAMES else nearest(name, METRICS)
            )
            raise UsageError(
                f"{gate}: there is no metric '{match['metric']}'{known or '; there are ' + ', '.join(METRICS)}"
            )
        metric, form = METRICS[name], (match["form"] or "value").lower()
        output = match["output"] or ""
        if output and not metric.per_output:
            able = " and ".join(one for one, known in METRICS.items() if known.per_output)
            raise UsageError(f"{gate}: {name} is not measured per output; {able} are")
        if form not in metric.forms or (match["form"] and form == "value"):
            allowed = " or ".join(
                f"'{name}'" if one == "value" else f"'{name} {one}'" for one in metric.forms
            )
            raise UsageError(
                f"{gate}: '{name} {match['form'] or ''}".rstrip() + f"' cannot be judged; write {allowed}"
            )
        upper = form == "drop" or (form == "value" and not metric.higher_is_better)
        if op[0] != ("<" if upper else ">"):
            right = "<=" if upper else ">="
            worse = (
                "would pass the more, the worse the model is" if op[0] != "=" else "asks for an exact value"
            )
            raise UsageError(f"{gate} {worse}; write '{right}'")
        bound = _bound(
            gate, "ratio" if form == "ratio" else metric.kind, form, match["number"], match["unit"]
        )
        return cls(name, form, op, bound, output)

    @property
    def key(self) -> str:
        """Under which the metric is found among those measured."""
        return self.metric + self.output

    def __str__(self) -> str:
        metric = self.key if self.form == "value" else f"{self.key} {self.form}"
        exact = Decimal(repr(self.bound))
        number = f"{exact.scaleb(2).normalize():f}%" if self._kind == "fraction" else f"{exact.normalize():f}"
        return f"{metric} {self.op} {number}"

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
        return f"gate '{self}' cannot be judged: {self.metric} needs {METRICS[self.metric].needs}"

    def judge(self, base: Mapping[str, float], candidate: Mapping[str, float]) -> Verdict:
        """The verdict on a candidate's metrics. A metric that was not measured, or is not a number, fails
        the gate.
        """
        if reason := self._unjudged(base, candidate):
            return Verdict(str(self), False, None, self.bound, None, reason)
        new = candidate[self.key]
        measured = (
            new
            if self.form == "value"
            else base[self.metric] - new
            if self.form == "drop"
            else base[self.metric] / new
        )
        margin = measured - self.bound if self.op[0] == ">" else self.bound - measured
        slack = TOLERANCE * max(1.0, abs(self.bound))
        passed = margin >= -slack if "=" in self.op else margin > slack
        return Verdict(
            str(self),
            passed,
            measured,
            self.bound,
            margin,
            self._message(base, candidate, measured, margin, passed),
        )

    @property
    def _kind(self) -> Kind:
        return "ratio" if self.form == "ratio" else METRICS[self.metric].kind

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
                math.isinf(value) and self._kind != "decibel"
            ):  # equal outputs have no noise: inf dB
                return f"gate '{self}' failed: {self.metric} of {whose} is {value}, not a number to judge"
        if self.form == "ratio" and min(base[self.metric], candidate[self.metric]) <= 0:
            return f"gate '{self}' failed: {self.metric} is not above zero, so there is no ratio"
        return None

    def _uncompared(self, base: Mapping[str, float], candidate: Mapping[str, float]) -> str | None:
        """Why not, if a part of what the gate is about has no number. What was not seen did not pass."""
        parts = [key for key in base if METRICS[self.metric].per_output and key.startswith(f"{self.key}[")]
        lost = [key for key in (self.key, *parts) if key in base and key not in candidate]
        if not lost:
            return None
        known = [key for key in parts if key in candidate and not self.output]
        advice = f"; a gate may name another output: {known[0]}" if known else ""
        return (
            f"gate '{self}' failed: {lost[-1]} could not be measured, since the output's shape or its "
            f"infinite values are not the original's{advice}"
        )

    def _worst(self, candidate: Mapping[str, float]) -> str:
        """Which output or slice the number is of, where there are several."""
        parts = {key: value for key, value in candidate.items() if key.startswith(f"{self.key}[")}
        if not METRICS[self.metric].per_output or len(parts) < 2:
            return ""
        worst = [key for key, value in parts.items() if value == candidate[self.key]]
        return f" ({worst[-1].removeprefix(self.metric)})" if worst else ""

    def _message(
        self,
        base: Mapping[str, float],
        candidate: Mapping[str, float],
        measured: float,
        margin: float,
        passed: bool,
    ) -> str:
        if math.isinf(measured) and measured > 0:
            return f"{self}: the float outputs are equal"
        shown = _shown(measured, self._kind, difference=self.form == "drop") + self._worst(candidate)
        if self.form != "value":
            kind = METRICS[self.metric].kind
            shown += f" ({_shown(base[self.metric], kind)} -> {_shown(candidate[self.metric], kind)})"
        room = _shown(abs(margin), self._kind, difference=True)
        return f"{self}: {shown}, " + (f"{room} to spare" if passed else f"missed by {room}")


def parse_gates(texts: Iterable[str]) -> tuple[Gate, ...]:
    """Gates of every text; a text may hold several, joined by ";" or ",". Raises UsageError for a wrong or
    an empty one.
    """
    gates: list[Gate] = []
    for text in texts:
        pieces = [piece.strip() for piece in re.split(r"[;,](?![^\[]*\])", text)]  # not within brackets
        if not any(pieces):
            raise UsageError(f"a gate is empty; write one {_EXAMPLE}")
        gates += [Gate.parse(piece) for piece in pieces if piece]
    return tuple(gates)


def _bound(gate: str, kind: Kind, form: str, number: str, unit: str) -> float:
    powers = {known.lower(): power for known, power in _UNITS[kind].items()} | {"": 0}
    if unit.lower() not in powers:
        meant = f" or one with {' or '.join(_UNITS[kind])}" if _UNITS[kind] else ""
        raise UsageError(f"{gate}: the unit '{unit}' does not fit; write a plain number{meant}")
    value = float(Decimal(number).scaleb(powers[unit.lower()]))
    if not math.isfinite(value):
        raise UsageError(f"{gate}: {number} is too large to be meant")
    if kind == "fraction":
        limit = LARGEST_PLAIN_DROP if form == "drop" and not unit else 1.0
        other = f" or, if meant, {100 * value:g}%" if abs(value) <= 1 else ""
        if abs(value) > limit and not unit:
            raise UsageError(f"{gate}: without '%' this is the fraction {number}; write {number}%{other}")
        if abs(value) > limit:
            raise UsageError(f"{gate}: {number}% is more than everything; write at most 100%")
    lowest = -math.inf if form == "drop" or kind == "decibel" else 0.0
    if value < lowest or (kind == "ratio" and value == 0):
        raise UsageError(f"{gate}: the number must be positive")
    return value


def _shown(value: float, kind: Kind, difference: bool = False) -> str:
    if kind == "fraction":
        return f"{_short(100 * value)} points" if difference else f"{_short(100 * value)} %"
    if kind == "bytes":
        unit, power = [
            (unit, power) for unit, power in _UNITS["bytes"].items() if power == 0 or abs(value) >= 10**power
        ][-1]
        return f"{_short(value / 10**power)} {unit}"
    if kind == "count":
        return f"{value:,.0f}"
    return _short(value) + {"decibel": " dB", "time": " ms"}.get(kind, "x")


def _short(value: float) -> str:
    """Four digits, without the rounding noise of a difference: 0.5, 98.91, -0.02."""
    return f"{round(value, 7) + 0.0:.4g}"
