"""What trials truly lose, as far as their samples tell: the best of hundreds of trials has had luck on them, and steps
that go on from it, or trials that are cut off as larger than it, would follow that luck.

    lost = a * amplitude + b * amplitude^2 + own + chance        amplitude = sqrt(noise of the outputs)

Noise is a mean over all samples, which luck hardly moves. How much of a metric it costs is fitted to all trials that
were measured on all samples, with a, b >= 0: without noise nothing is lost, and more never gives less back. What is
left over is chance, whose variance each trial knows, and what is the candidate's own, whose variance is the rest. Each
trial is taken to lose what the curve says, and of its distance from that only the share that is no chance.
Where trials differ less than chance alone would have it, they are lucky together, being judged by the same samples:
that part of chance stays in the standard error. Samples that chose nothing must confirm the winner all the same.
Source: Efron and Morris, "Data Analysis Using Stein's Estimator and its Generalizations", JASA 70(350), 1975; variance
of what is the candidate's own: DerSimonian and Laird, "Meta-Analysis in Clinical Trials", 1986.
"""

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from onnx_lathe.optimizer.gate import Gate
from onnx_lathe.optimizer.search.bench import Bench, Outcome
from onnx_lathe.optimizer.search.judging import Leniency, Measured, judged, noise
from onnx_lathe.optimizer.search.storage import Tried, best_of

SHRUNK = ("top1", "top5", "agreement")
LEAST = 12
"""Trials on all samples from which on the curve is believed."""


@dataclass(frozen=True)
class Curve:
    """Fitted: coefficients of amplitude and its square [2], and their covariance [2, 2]; `own`: variance of candidates
    around the curve; `common`: share of the variance by chance that trials have in common.
    """

    coefficients: np.ndarray
    covariance: np.ndarray
    own: float
    common: float

    @classmethod
    def fit(cls, amplitude: np.ndarray, lost: np.ndarray, error: np.ndarray) -> "Curve":
        """Of trials [n]: what each loses, and the standard error of that by chance, above 0."""
        powers, variance = np.stack([amplitude, amplitude**2], 1), error**2
        first = _rising(powers, lost, 1 / variance)
        free = max(1, len(lost) - 2)
        spread = float((np.square(lost - powers @ first) / variance).sum())
        own = max(0.0, (spread - free) / float((1 / variance).sum()))
        weight = 1 / (variance + own)
        covariance = np.linalg.pinv((powers * weight[:, None]).T @ powers)
        return cls(_rising(powers, lost, weight), covariance, own, max(0.0, 1 - spread / free))

    def lost(self, amplitude: float) -> float:
        return float(np.array([amplitude, amplitude**2]) @ self.coefficients)

    def shrunk(self, amplitude: float, lost: float, error: float) -> tuple[float, float]:
        """(what a trial is taken to lose, its standard error)."""
        powers, foretold = np.array([amplitude, amplitude**2]), self.lost(amplitude)
        share = self.own / (self.own + error**2)
        variance = share * error**2 + self.common * error**2 + float(powers @ self.covariance @ powers)
        return foretold + share * (lost - foretold), math.sqrt(variance)


def _rising(powers: np.ndarray, lost: np.ndarray, weight: np.ndarray) -> np.ndarray:
    """Weighted least squares with no coefficient below 0: powers [n, 2] -> [2]."""
    root = np.sqrt(weight)
    best, least = np.zeros(2), math.inf
    for used in itertools.chain(([0, 1],), ([0],), ([1],)):
        found = np.zeros(2)
        found[used] = np.linalg.lstsq(powers[:, used] * root[:, None], lost * root, rcond=None)[0]
        left = float(np.square((lost - powers @ found) * root).sum())
        if (found >= 0).all() and left < least:
            best, least = found, left
    return best


class Shrinkage:
    """Judges trials by what they are taken to lose. It depends on nothing but the trials, so that all processes that
    share a study judge alike.
    """

    def __init__(self, tried: Sequence[Tried], bench: Bench) -> None:
        self.bench = bench
        final = [one.outcome for one in tried if one.outcome.final]
        self._final = len(final)
        self.curves: dict[str, Curve] = {}
        for gate in bench.goal.gates:
            known = [one for one in final if _knows(one, gate)]
            if gate.metric in SHRUNK and len(known) >= LEAST:
                figures = [(_amplitude(one), self._lost(one, gate), one.errors[gate.key]) for one in known]
                self.curves[gate.key] = Curve.fit(*np.array(figures).T)

    def taken(self, outcome: Outcome) -> Measured:
        """What the trial is taken to have; as measured if it is not of all samples, or too few trials are."""
        metrics, errors = dict(outcome.metrics), dict(outcome.errors)
        for gate in self._shrunk(outcome):
            lost, error = self.curves[gate.key].shrunk(
                _amplitude(outcome), self._lost(outcome, gate), outcome.errors[gate.key]
            )
            metrics[gate.key], errors[gate.key] = self._base[gate.key] - lost, error
        return Measured(metrics, errors, outcome.count)

    def judged(self, outcome: Outcome) -> Outcome:
        """The outcome with gates judged so; as it is if nothing is taken otherwise than it was measured."""
        goal = self.bench.goal
        if not self._shrunk(outcome):
            return outcome
        base = {**{name: self.bench.costs.base(name) for name in goal.counted}, **self._base}
        verdict = judged(goal.gates, base, self.taken(outcome), Leniency(-goal.margin))
        return replace(outcome, passed=verdict.passed, missed=verdict.missed, messages=verdict.messages)

    def sureness(self, one: Tried) -> float:
        """Standard deviations by which the trial is foreseen to be confirmed; none of one that is not of all samples."""
        outcome = one.outcome
        if not outcome.final:
            return -math.inf
        seen = Measured(outcome.metrics, outcome.errors, outcome.count)
        return self.bench.goal.sureness(self._base, seen, self.taken(outcome))

    @property
    def sure(self) -> float:
        """From which on a trial is nearly sure. Without a curve the best of many has had luck; with one, little of it."""
        judge, among = self.bench.judges[-1], 1 if self.curves else max(1, self._final)
        return self.bench.goal.sure(judge.base, judge.count, among)

    def surest(self, tried: Sequence[Tried]) -> Tried | None:
        """Of trials as `all` judges them, the smallest that passes and is nearly sure to be confirmed."""
        if not self.bench.goal.foresees:
            return None
        sure = self.sure
        return best_of([one for one in tried if self.sureness(one) >= sure])

    def _shrunk(self, outcome: Outcome) -> list[Gate]:
        if not outcome.final:
            return []
        return [gate for gate in self.bench.goal.gates if gate.key in self.curves and _knows(outcome, gate)]

    def all(self, tried: Sequence[Tried]) -> list[Tried]:
        return [replace(one, outcome=self.judged(one.outcome)) for one in tried]

    @property
    def _base(self) -> Mapping[str, float]:
        """The original's metrics on all samples."""
        return self.bench.judges[-1].base

    def _lost(self, outcome: Outcome, gate: Gate) -> float:
        return self._base[gate.key] - outcome.metrics[gate.key]


def _knows(outcome: Outcome, gate: Gate) -> bool:
    return "sqnr" in outcome.metrics and gate.key in outcome.metrics and outcome.errors.get(gate.key, 0.0) > 0


def _amplitude(outcome: Outcome) -> float:
    return math.sqrt(noise(Measured(outcome.metrics)))
