"""Metrics of candidates on samples in memory, beside the original's, and by how much chance may have moved them."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx

from onnx_lathe.optimizer.gate import Gate
from onnx_lathe.optimizer.judging.metrics import known_metric
from onnx_lathe.runtime.data.kept import KeptSource
from onnx_lathe.runtime.running import ort
from onnx_lathe.runtime.running.evaluate import evaluate, reference
from onnx_lathe.runtime.running.scores import Outputs, is_float

SCALE = {"fraction": 0.01, "decibel": 1.0}
"""What counts as one unit of a miss, by the kind of metric; of others a tenth of the bound."""
UNJUDGED = 1e6
"""The miss of a gate that has no number."""


@dataclass(frozen=True)
class Measured:
    """Metrics of a candidate, and the standard error of those that are means over samples."""

    metrics: Mapping[str, float]
    errors: Mapping[str, float] = field(default_factory=dict)

    def moved(self, errors: float) -> dict[str, float]:
        """The metrics, so many standard errors higher, or lower if negative."""
        return {name: value + errors * self.errors.get(name, 0.0) for name, value in self.metrics.items()}


class Judge:
    """Evaluates candidates on one set of samples. `base`: the original's metrics there."""

    def __init__(
        self,
        model: onnx.ModelProto,
        data: KeptSource,
        threads: int = 0,
        progress: Callable[[str], None] = lambda text: None,
    ) -> None:
        self.data, self.threads, self.progress = data, threads, progress
        session = ort.session(model, threads, guarded=False)
        predicted = _Predictions()
        self.reference = reference(session, data, progress, model, predicted)
        self.base: dict[str, float] = self.reference.metrics
        self._truth = _labels(data)
        self._right = self._correct(predicted)

    def measure(self, model: onnx.ModelProto) -> Measured:
        """Of a model that ONNX Runtime is known to survive: Lathe wrote it. Raises ModelError if it cannot load."""
        predicted, noises = _Predictions(), _Noises(self.reference.outputs)

        def heard(outputs: Outputs, count: int, alone: bool) -> None:
            predicted(outputs, count, alone)
            noises(outputs, count)

        session = ort.session(model, self.threads, guarded=False)
        found = dict(evaluate(session, self.data, self.reference, self.progress, heard))
        count = max(1, self.data.count or 1)
        errors = {
            name: math.sqrt(max(value * (1 - value), 1 / count) / count)
            for name, value in found.items()
            if name.split("[")[0] == "agreement"
        }
        if "sqnr" in found:
            errors["sqnr"] = noises.decibels()
        for name in ("top1", "top5"):
            if name in found:  # of top5 the samples that changed are not counted: its drop stands for them
                lost = max(abs(self.base[name] - found[name]), 1 / count)
                errors[name] = math.sqrt(lost / count)
        right = self._correct(predicted)
        if self._right is not None and right is not None and "top1" in found:
            changed = float(np.mean(right != self._right))
            lost = self.base["top1"] - found["top1"]
            errors["top1"] = math.sqrt(max(changed - lost * lost, 1 / count) / count)
        return Measured(found, errors)

    def _correct(self, predicted: "_Predictions") -> np.ndarray | None:
        """Which samples are answered rightly, bool [samples]; None without labels."""
        answers = predicted.of(self.reference.labelled)
        if self._truth is None or answers is None or answers.shape != self._truth.shape:
            return None
        correct: np.ndarray = answers == self._truth
        return correct


class _Predictions:
    """The largest class of every sample, by output [samples, classes]."""

    def __init__(self) -> None:
        self._found: dict[str, list[np.ndarray]] = {}

    def __call__(self, outputs: Outputs, count: int, alone: bool) -> None:
        for name, values in outputs.items():
            if values.ndim == 2 and len(values) == count:
                self._found.setdefault(name, []).append(values.argmax(1))

    def of(self, name: str | None) -> np.ndarray | None:
        return np.concatenate(self._found[name]) if name in self._found else None


class _Noises:
    """Energies of the error and of the original's outputs, sample by sample."""

    def __init__(self, wanted: Sequence[Outputs | None]) -> None:
        self._wanted, self._at = wanted, 0
        self._found: dict[str, list[np.ndarray]] = {}

    def __call__(self, outputs: Outputs, count: int) -> None:
        wanted = self._wanted[self._at] if self._at < len(self._wanted) else None
        self._at += 1
        for name, original in (wanted or {}).items():
            made = outputs.get(name)
            if made is None or made.shape != original.shape or not is_float(original) or original.ndim == 0:
                continue
            if len(original) != count:
                original, made = original[None], made[None]
            rest = tuple(range(1, original.ndim))
            base = np.nan_to_num(original.astype(np.float64), posinf=0.0, neginf=0.0)
            error = np.nan_to_num(made.astype(np.float64) - base, posinf=0.0, neginf=0.0)
            self._found.setdefault(name, []).append(
                np.stack([np.square(error).sum(rest), np.square(base).sum(rest)])
            )

    def decibels(self) -> float:
        """Standard error of the signal to noise of the worst output: of a ratio of two means, by the delta method."""
        worst, found = -1.0, 0.0
        for parts in self._found.values():
            error, signal = np.concatenate(parts, axis=1)
            ratio = float(error.sum() / max(signal.sum(), 1e-300))
            if ratio > worst and ratio > 0:
                spread = float(np.sqrt(np.square(error - ratio * signal).sum()) / max(signal.sum(), 1e-300))
                worst, found = ratio, 10 / math.log(10) * spread / ratio
        return found


def _labels(data: KeptSource) -> np.ndarray | None:
    if not data.labelled:
        return None
    return np.concatenate([batch.labels for batch in data.kept if batch.labels is not None])


def noise(measured: Measured) -> float:
    """Error of the worst output, as a share of its energy; 1 where there is no figure."""
    sqnr = measured.metrics.get("sqnr")
    if sqnr is None:
        return 1.0 - measured.metrics.get("agreement", measured.metrics.get("top1", 0.0))
    return float(10 ** (-min(max(sqnr, -30.0), 300.0) / 10))


def quality_name(metrics: Mapping[str, float], gates: Sequence[Gate]) -> str:
    """The metric that stands for how good a candidate is: a gate's, or the first that there is."""
    for name in [gate.key for gate in gates] + ["top1", "agreement", "sqnr"]:
        if name in metrics and known_metric(name.split("[")[0]).higher_is_better:
            return name
    return min(metrics, default="")


@dataclass(frozen=True)
class Verdict:
    """Whether the gates pass, and by how much in all they are missed, in units of SCALE."""

    passed: bool
    missed: float
    messages: Sequence[str]


def judged(gates: Sequence[Gate], base: Mapping[str, float], metrics: Mapping[str, float]) -> Verdict:
    """Gates whose metric was not measured are left out: sizes are known before accuracy."""
    verdicts = [(gate, gate.judge(base, metrics)) for gate in gates if gate.key in metrics]
    missed = sum(_missed(gate, verdict) for gate, verdict in verdicts if not verdict.passed)
    return Verdict(
        all(verdict.passed for _, verdict in verdicts), missed, tuple(one.message for _, one in verdicts)
    )


def _missed(gate: Gate, verdict: Any) -> float:
    if verdict.margin is None or not math.isfinite(verdict.margin):
        return UNJUDGED
    kind = "ratio" if gate.form == "ratio" else known_metric(gate.metric).kind
    scale = SCALE.get(kind, max(abs(gate.bound) / 10, 1e-12))
    return abs(float(verdict.margin)) / scale
