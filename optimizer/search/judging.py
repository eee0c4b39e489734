"""Metrics of candidates on samples in memory, beside the original's, and by how much chance may have moved them."""

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx

from onnx_lathe.optimizer.gate import Gate
from onnx_lathe.optimizer.judging.metrics import known_metric, of_data
from onnx_lathe.runtime.data.kept import KeptSource
from onnx_lathe.runtime.running import ort
from onnx_lathe.runtime.running.evaluate import evaluate, reference
from onnx_lathe.runtime.running.scores import Outputs, is_float
from onnx_lathe.runtime.running.tasks.base import largest

SCALE = {"fraction": 0.01, "decibel": 1.0}
"""What counts as one unit of a miss, by the kind of metric; of others a tenth of the bound."""
UNJUDGED = 1e6
"""The miss of a gate that has no number."""
SPREAD = ("top1", "top5", "agreement", "sqnr")
"""Metrics whose standard error is known here; others are judged by their estimate alone."""
ANSWERS = ("top1", "top5")
"""Those that the original has less than all of, too: that it does is no fault of a candidate."""


@dataclass(frozen=True)
class Measured:
    """Metrics of a candidate on `count` samples, and by name the standard error of what they differ from the
    original's on the same samples.
    """

    metrics: Mapping[str, float]
    errors: Mapping[str, float] = field(default_factory=dict)
    count: int = 1

    def error(self, gate: Gate, base: Mapping[str, float], at_bound: bool = False) -> float:
        """Standard error of what the gate is about: of a share by itself it is the binomial one, of a drop that of
        the samples whose answer changed. `at_bound`: at least what it would be if the bound were just met; few
        samples of which by luck none changed seem to have none (score interval, Agresti, Categorical Data Analysis,
        2013, section 1.4).
        """
        error = self.errors.get(gate.key, 0.0)
        if not error or gate.metric == "sqnr":
            return error
        if gate.form == "value" and gate.metric in ANSWERS:
            error = max(error, share_error(self.metrics[gate.key], self.count))
        if at_bound:
            bound = gate.bound * (base.get(gate.metric, 1.0) if gate.relative else 1.0)
            error = max(error, share_error(min(max(bound, 0.0), 1.0), self.count))
        return error


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
        self.count = max(1, data.count or 1)
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
        count = self.count
        errors = {
            name: share_error(value, count)
            for name, value in found.items()
            if name.split("[")[0] == "agreement"
        }
        for name in found:
            if name.split("[")[0] == "sqnr":
                errors[name] = noises.decibels(name.removeprefix("sqnr")[1:-1])
        for name in ("top1", "top5"):
            if name in found:  # of top5 the samples that changed are not counted: its drop stands for them
                lost = max(abs(self.base[name] - found[name]), 1 / count)
                errors[name] = math.sqrt(lost / count)
        right = self._correct(predicted)
        if self._right is not None and right is not None and "top1" in found:
            changed = float(np.mean(right != self._right))
            errors["top1"] = paired_error(changed, self.base["top1"] - found["top1"], count)
        return Measured(found, errors, count)

    def _correct(self, predicted: "_Predictions") -> np.ndarray | None:
        """Which samples are answered rightly, bool [samples]; None without labels."""
        answers = predicted.of(self.reference.labelled)
        if self._truth is None or answers is None or answers.shape != self._truth.shape:
            return None
        correct: np.ndarray = answers == self._truth
        return correct


class _Predictions:
    """The largest class of every sample, by output [samples, classes]; -1, which is wrong whatever the label, where a NaN
    leaves none.
    """

    def __init__(self) -> None:
        self._found: dict[str, list[np.ndarray]] = {}

    def __call__(self, outputs: Outputs, count: int, alone: bool) -> None:
        for name, values in outputs.items():
            if values.ndim == 2 and len(values) == count:
                self._found.setdefault(name, []).append(
                    largest(values) if is_float(values) else values.argmax(1)
                )

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

    def decibels(self, output: str = "") -> float:
        """Standard error of the signal to noise of an output, or of the worst: of a ratio of two means, by the delta
        method.
        """
        worst, found = -1.0, 0.0
        for name, parts in self._found.items():
            if output not in ("", name):
                continue
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


def share_error(share: float, count: int) -> float:
    """Standard error of a share of `count` samples; never that of a share of which one sample would be half."""
    return math.sqrt(max(share * (1 - share), 1 / count) / count)


def paired_error(changed: float, lost: float, count: int) -> float:
    """Standard error of a difference of two shares of the same samples, of which the share `changed` differs."""
    return math.sqrt(max(changed - lost * lost, 1 / count) / count)


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


@dataclass(frozen=True)
class Leniency:
    """How gates about data are judged: with `errors` standard errors in the candidate's favour, or to spare if
    negative. `awaited`: metrics that are measured later; their gates are left out. `whole`: the original's metrics on
    all samples, for a look at a few of them. `at_bound`: as `Measured.error` has it.
    """

    errors: float = 0.0
    awaited: Collection[str] = ()
    whole: Mapping[str, float] | None = None
    at_bound: bool = False


PLAINLY = Leniency()


def judged(
    gates: Sequence[Gate], base: Mapping[str, float], measured: Measured, how: Leniency = PLAINLY
) -> Verdict:
    """What was not measured did not pass."""
    messages, passed, missed = [], True, 0.0
    for gate in gates:
        if gate.key not in measured.metrics and gate.metric in how.awaited:
            continue
        plain = gate.judge(base, measured.metrics)
        moved = _moved(gate, base, measured, how)
        verdict = plain if moved is None else gate.judge(base, {**measured.metrics, gate.key: moved})
        messages.append(plain.message + _spared(plain, verdict, how.errors, moved is not None))
        if not verdict.passed:
            passed, missed = False, missed + _missed(gate, verdict)
    return Verdict(passed, missed, tuple(messages))


def _moved(gate: Gate, base: Mapping[str, float], measured: Measured, how: Leniency) -> float | None:
    """The metric that is judged in place of the one measured; None if that is the same."""
    value, error = measured.metrics.get(gate.key), measured.error(gate, base, how.at_bound)
    if value is None or not error or not of_data(gate.metric):
        return None
    if how.whole is not None and gate.form == "value" and gate.metric in ANSWERS:
        # few samples may be harder than all: what counts is how much of the original's is lost on them
        value, error = how.whole[gate.key] + value - base[gate.key], measured.errors[gate.key]
    return value + how.errors * error


def _spared(plain: Any, verdict: Any, errors: float, moved: bool) -> str:
    if not moved or not errors or plain.measured is None:
        return ""
    said = f"{abs(errors):.3g} standard error{'' if abs(errors) == 1 else 's'}"
    if errors < 0:
        if plain.passed:
            return f", with {said} to spare" if verdict.passed else f", but not with {said} to spare"
        return ""
    return "" if verdict.passed else f", by more than {said}"


def unspread(gates: Sequence[Gate]) -> list[str]:
    """Metrics of data to which no margin applies."""
    return sorted({gate.metric for gate in gates if of_data(gate.metric) and gate.metric not in SPREAD})


def _missed(gate: Gate, verdict: Any) -> float:
    if verdict.margin is None or not math.isfinite(verdict.margin):
        return UNJUDGED
    kind = "ratio" if gate.form == "ratio" else known_metric(gate.metric).kind
    scale = SCALE.get(kind, max(abs(gate.bound) / 10, 1e-12))
    return abs(float(verdict.margin)) / scale
