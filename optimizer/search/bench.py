"""Tries settings: builds the candidate, and measures it as far as it is worth."""

import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import onnx

from onnx_lathe.errors import ModelError
from onnx_lathe.optimizer.judging.metrics import of_data
from onnx_lathe.optimizer.recipe import Call
from onnx_lathe.optimizer.search.clock import Clock, OutOfTimeError
from onnx_lathe.optimizer.search.costs import Costs
from onnx_lathe.optimizer.search.data import Division
from onnx_lathe.optimizer.search.goal import Goal
from onnx_lathe.optimizer.search.judging import Judge, Leniency, Measured, judged, noise
from onnx_lathe.optimizer.search.layerwise import Composer
from onnx_lathe.optimizer.search.space import Dimension, Settings, Space
from onnx_lathe.optimizer.search.untrained import (
    RULED_OUT,
    Failures,
    looks_first,
    trains,
    without_training,
)
from onnx_lathe.optimizer.services import Services
from onnx_lathe.optimizer.step import apply_pass
from onnx_lathe.passes.core.options import configure
from onnx_lathe.passes.core.registry import find
from onnx_lathe.runtime.running import ort

SCOUT = 256
"""Samples of the first look, which only hopeless trials do not pass."""
HOPE = 2.0
"""Standard errors in a trial's favour until the last look."""
PENALTY = 1.0
LARGER = "larger than the best"
"""Why a trial was stopped that passed so far."""


@dataclass(frozen=True)
class Outcome:
    """Of one trial. `ratio`: what is minimized, over the original's. `looks`: how many of the sets of samples it was
    measured on; `final` if on all of them. `stopped`: why not. `errors`: standard errors of metrics that gates are
    about, on `count` samples; none of trials of earlier versions.
    """

    ratio: float
    metrics: Mapping[str, float]
    passed: bool
    missed: float
    looks: int
    final: bool
    messages: Sequence[str] = ()
    stopped: str = ""
    seconds: float = 0.0
    errors: Mapping[str, float] = field(default_factory=dict)
    count: int = 1

    @property
    def value(self) -> float:
        """What Optuna minimizes: those that pass before all others, these by how near they come."""
        return self.ratio if self.passed and self.final else self.ratio + PENALTY + min(self.missed, 10.0)


@dataclass
class Bench:
    """Everything that trials of one search share. `base`: the model after the steps before the first that is tuned."""

    space: Space
    goal: Goal
    base: onnx.ModelProto
    first: int
    judges: Sequence[Judge]
    costs: Costs
    services: Services
    clock: Clock
    progress: Callable[[str], None]
    best: float = float("inf")
    """The smallest ratio that has passed; a trial that is no smaller cannot win."""
    surest: float = float("inf")
    """The smallest ratio that is nearly sure to be confirmed, too: a trial up to that may have to stand in."""
    composer: Composer | None = None
    rest_bytes: float | None = None
    failures: Failures = field(default_factory=Failures)
    known: dict[str, Outcome] = field(default_factory=dict)

    def try_out(self, settings: Settings, thorough: bool = False) -> Outcome:
        """What became of the settings. `thorough`: measured on all samples, whatever it costs less, and however the
        first look was. Raises OutOfTimeError at the end of the budget.
        """
        key = repr(sorted(settings.items()))
        if key not in self.known or (thorough and not self.known[key].final):
            started = time.perf_counter()
            try:
                found = self._measured(settings, thorough)
            except ModelError as error:
                found = Outcome(float("inf"), {}, False, 100.0, 0, False, stopped=str(error))
            self.known[key] = replace(found, seconds=time.perf_counter() - started)
        return self.known[key]

    def candidate(self, settings: Settings, trained: bool = True) -> onnx.ModelProto:
        """What the recipe makes of the model; without its trainings, if not `trained`."""
        model, steps = self.base, self.space.calls(settings)[self.first :]
        for step in steps if trained else without_training(steps):
            context = self.services.context(f"trial, {step.name}")
            heard = replace(context, progress=self.clock.watched(self.progress))
            model, _ = apply_pass(configure(find(step.name), step.options), model, heard)
        return model

    @property
    def trains(self) -> bool:
        """Whether each trial trains."""
        return any(map(trains, self.space.steps[self.first :]))

    def exact(self, settings: Settings) -> tuple[onnx.ModelProto, Outcome]:
        """As the recipe itself has it: by the passes, on all samples, packed by the best coder."""
        model = self.candidate(settings)
        ort.survive(model)
        counted = self.costs.of(model, self.goal.counted, exact=True)
        measured = self.judges[-1].measure(model)
        return model, self._outcome(counted, measured, len(self.judges))

    def _measured(self, settings: Settings, thorough: bool) -> Outcome:
        if self.clock.left <= 0:
            raise OutOfTimeError
        timed = "latency" in self.goal.counted
        untrained = self._untrained(settings)
        if isinstance(untrained, Outcome):
            return untrained
        model, counted = self._built(settings)
        outcome = self._outcome(counted, Measured({}), 0)
        if not thorough and not outcome.passed:
            return replace(outcome, stopped="too large for a gate")
        for number, judge in enumerate(self.judges, 1):
            if number == 2 and timed:
                counted |= self.costs.of(model, {"latency"})
            last = number == len(self.judges)
            measured = judge.measure(model)
            if last and timed and len(self.judges) == 1:
                counted |= self.costs.of(model, {"latency"})
            outcome = self._outcome(counted, measured, number)
            if last and timed and outcome.passed and outcome.ratio < self.best:
                # what interrupts the original's runs makes a candidate seem fast, and as the best it would end all others
                again = self.costs.of(model, {"latency"})["latency"]
                counted["latency"] = max(counted["latency"], again)
                outcome = self._outcome(counted, measured, number)
            if last or thorough:
                continue
            if not outcome.passed:
                self._failed(untrained)
                return replace(outcome, stopped="misses a gate by more than chance")
            larger = outcome.ratio > self.best and self.goal.minimize in counted
            if larger and not self.stands_in(outcome):
                return replace(outcome, stopped=LARGER)
        if not outcome.passed:
            self._failed(untrained)
        return outcome

    def stands_in(self, outcome: Outcome) -> bool:
        """Whether a trial that is larger than the best may be the smallest that is nearly sure to be confirmed, by what it
        gave at its last look.
        """
        if not self.goal.foresees or outcome.ratio >= self.surest or not outcome.looks:
            return False
        seen = Measured(outcome.metrics, outcome.errors, outcome.count)
        taken = replace(seen, errors={})  # in its favour: a later look tells more
        base = self.judges[outcome.looks - 1].base
        return self.goal.sureness(base, seen, taken) >= self.goal.sure(base, outcome.count)

    def _untrained(self, settings: Settings) -> tuple[float, float] | Outcome | None:
        """(what is minimized, over the original's; noise) without training, or the outcome if that is ruled out;
        None where it would tell nothing.
        """
        if not looks_first(self.space.steps[self.first :], self._shifted()):
            return None
        model = self.candidate(settings, trained=False)
        counted = self.costs.of(model, {self.goal.minimize})
        measured = self.judges[0].measure(model)
        known = counted[self.goal.minimize] / self.costs.base(self.goal.minimize), noise(measured)
        if not self.failures.rules_out(*known):
            return known
        seen = self._outcome(counted, measured, 1, self.goal.counted)
        return replace(seen, passed=False, final=False, stopped=RULED_OUT)

    def _shifted(self) -> list[Dimension]:
        return [replace(one, step=one.step - self.first) for one in self.space.dimensions]

    def _failed(self, untrained: tuple[float, float] | None) -> None:
        if untrained is not None:
            self.failures.add(*untrained)

    def _built(self, settings: Settings) -> tuple[onnx.ModelProto, dict[str, float]]:
        counted = self.goal.counted - {"latency"}
        if self.composer is None:
            model = self.candidate(settings)
            return model, self.costs.of(model, counted)
        packed = self.composer.packed_bytes(settings)
        if self.rest_bytes is None:
            whole = self.costs.of(self.candidate(settings), {"packed"})["packed"]
            self.rest_bytes = whole - packed
        return self.composer.candidate(settings), {"packed": packed + self.rest_bytes}

    def _outcome(
        self,
        counted: Mapping[str, float],
        measured: Measured,
        looks: int,
        awaited: Collection[str] | None = None,
    ) -> Outcome:
        """`awaited`: what need not be counted yet, by default latency until the last look; before the first one
        nothing of data is known.
        """
        base = {name: self.costs.base(name) for name in counted}
        final = looks == len(self.judges)
        if awaited is None:
            awaited = () if final else ("latency",)
        if looks:
            base |= self.judges[looks - 1].base
        else:
            awaited = {*awaited, *(gate.metric for gate in self.goal.gates if of_data(gate.metric))}
        errors = -self.goal.margin if final else HOPE
        how = Leniency(errors, awaited, None if final else self.judges[-1].base)
        metrics = {**counted, **measured.metrics}
        verdict = judged(self.goal.gates, base, replace(measured, metrics=metrics), how)
        ratio = counted.get(self.goal.minimize, float("inf")) / self.costs.base(self.goal.minimize)
        about = {gate.key for gate in self.goal.gates}
        known = {name: error for name, error in measured.errors.items() if name in about}
        return Outcome(
            ratio, metrics, verdict.passed, verdict.missed, looks, final, verdict.messages,
            errors=known, count=measured.count,
        )  # fmt: skip


def make_judges(
    model: onnx.ModelProto, division: Division, subset: int, threads: int, progress: Callable[[str], None]
) -> list[Judge]:
    """Of a first look, of a subset, and of all the samples that settings are chosen on."""
    data = division.judging
    sizes = sorted({min(size, data.count or size) for size in (SCOUT, subset, data.count or subset)})
    return [Judge(model, data.first(size), threads, progress) for size in sizes]


def open_costs(
    path: Path, model: onnx.ModelProto, judge: Judge, threads: int, fixed: Mapping[str, np.ndarray]
) -> Costs:
    """Of the file in `path`, which is fed with the values `fixed`, where the model has constants."""
    return Costs(path, model, judge.data, threads, fixed)


def can_compose(goal: Goal) -> bool:
    """Whether all that a trial counts is known of its layers: dense candidates have another size than the recipe's."""
    return goal.minimize == "packed" and goal.counted == {"packed"}


def local_part(space: Space, first: int) -> Space:
    """The space of the steps from `first` on."""
    dimensions = tuple(replace(one, step=one.step - first) for one in space.dimensions)
    return Space(space.steps[first:], dimensions)


def prefix_model(
    model: onnx.ModelProto, steps: Sequence[Call], services: Services, progress: Callable[[str], None]
) -> onnx.ModelProto:
    """The model after steps that are the same in every trial."""
    for step in steps:
        progress(f"{step.name}, which is the same in every trial")
        model, _ = apply_pass(configure(find(step.name), step.options), model, services.context(step.name))
    return model
