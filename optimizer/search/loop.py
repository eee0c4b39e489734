"""Trials, one after the other, until the time is up: what each process of a search does."""

import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from onnx_lathe.optimizer.search.bench import Bench
from onnx_lathe.optimizer.search.clock import OutOfTimeError
from onnx_lathe.optimizer.search.proposals import Proposals, Table
from onnx_lathe.optimizer.search.shrinkage import Shrinkage
from onnx_lathe.optimizer.search.storage import Shared, Tried, best_of
from onnx_lathe.optimizer.search.untrained import trains

LEAST_S = 0.05
AGAIN = 2
"""Times that the winner is made again after the last trial: to measure it exactly, and by the run of its recipe."""
MOST_REPEATED = 200
OWN = 8
"""Of so many trials one is the sampler's own: it knows nothing of what a layer costs, and takes long to choose."""


@dataclass
class Loop:
    """Trials of one process on a study that others may share."""

    bench: Bench
    shared: Shared
    table: Table
    seed: int
    most: int = 0
    """Trials of all processes; 0 is no limit."""
    heard: Callable[[int, Tried | None], None] = lambda count, best: None
    _seconds: list[float] = field(default_factory=list)

    def run(self) -> None:
        """Returns when the budget is spent, the trials are done, or nothing is left to try."""
        proposals = Proposals(self.bench.space, self.table, self.seed)
        turn, repeated, kept = 0, 0, self.bench.clock.reserve
        if any(
            map(trains, self.bench.space.steps)
        ):  # how long it takes to make the winner again is not known yet
            self.bench.clock.reserve += self.bench.clock.left * AGAIN / (AGAIN + 1)
        while self._time_for_one():
            tried = self._judged(self.shared.finished())
            best = best_of(tried)
            self.bench.best = best.outcome.ratio if best else float("inf")
            self.heard(len(tried), best)
            if (self.most and len(tried) >= self.most) or len(tried) >= self.bench.space.size:
                return
            if not self.shared.waiting and self.table:
                self._propose(proposals, tried, best, turn)
            turn += 1
            done = {one.key for one in tried}
            new = self._trial(done)
            repeated = 0 if new else repeated + 1
            if self._seconds:
                self.bench.clock.reserve = kept + AGAIN * self._typical
            if repeated > MOST_REPEATED:
                return

    def _judged(self, tried: list[Tried]) -> list[Tried]:
        return Shrinkage(tried, self.bench).all(tried)

    def _time_for_one(self) -> bool:
        """Whether a trial as long as most of the last ones would end in time."""
        return self.bench.clock.left > self._typical

    def _propose(self, proposals: Proposals, tried: list[Tried], best: Tried | None, turn: int) -> None:
        """Most trials go on from the best; each OWN-th is the sampler's own."""
        between = proposals.between({one.key: one.outcome.passed for one in tried if one.outcome.looks})
        if between is not None:
            self.shared.enqueue(between)
        elif best is not None and turn % OWN:
            self.shared.enqueue(proposals.step(best.settings))

    def _trial(self, done: set[str]) -> bool:
        """One trial; false for settings that were tried before."""
        started = time.perf_counter()
        trial, settings = self.shared.ask()
        try:
            fresh = repr(sorted(settings.items())) not in done
            outcome = self.bench.try_out(settings)
            self.shared.tell(trial, outcome)
        except (OutOfTimeError, KeyboardInterrupt):
            self.shared.give_up(trial)
            raise
        if fresh:
            self._seconds.append(time.perf_counter() - started)
        return fresh

    @property
    def _typical(self) -> float:
        """Seconds that three of four of the last trials did not exceed."""
        return float(np.quantile(self._seconds[-20:], 0.75)) if self._seconds else LEAST_S
