"""Trials, one after the other, until the time is up: what each process of a search does."""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from onnx_lathe.optimizer.search.bench import Bench
from onnx_lathe.optimizer.search.clock import OutOfTimeError
from onnx_lathe.optimizer.search.proposals import Proposals, Table
from onnx_lathe.optimizer.search.shrinkage import Shrinkage
from onnx_lathe.optimizer.search.storage import Shared, Tried, best_of
from onnx_lathe.optimizer.search.untrained import RULED_OUT, trains

LEAST_S = 0.05
LAST = 20
"""Trials that tell how long the next one takes."""
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
        turn, repeated, clock = 0, 0, self.bench.clock
        trained = any(map(trains, self.bench.space.steps))
        kept, unknown = clock.reserve, clock.left * AGAIN / (AGAIN + 1) if trained else 0.0
        while True:
            finished = self.shared.finished()
            lasting = self._lasting(finished, trained)
            # how long it takes to make the winner again is not known before the first training
            clock.reserve = kept + (unknown if lasting is None else AGAIN * lasting)
            if clock.left <= (lasting or LEAST_S):
                return
            shrinkage = Shrinkage(finished, self.bench)
            tried = shrinkage.all(finished)
            best, surest = best_of(tried), shrinkage.surest(tried)
            self.bench.best = best.outcome.ratio if best else math.inf
            self.bench.surest = surest.outcome.ratio if surest else math.inf
            self.heard(len(tried), best)
            if (self.most and len(tried) >= self.most) or len(tried) >= self.bench.space.size:
                return
            if not self.shared.waiting and self.table:
                self._propose(proposals, tried, best, surest, turn)
            turn += 1
            done = {one.key for one in tried}
            repeated = 0 if self._trial(done) else repeated + 1
            if repeated > MOST_REPEATED:
                return

    def _lasting(self, finished: list[Tried], trained: bool) -> float | None:
        """Seconds that the next trial may take: what three of four of the last ones did not exceed; of those that train,
        in whatever process, the longest, since others end after a first look. None where nothing is known.
        """
        if trained:
            found = [one.outcome.seconds for one in finished if one.outcome.stopped != RULED_OUT]
            return max(found, default=None)
        return float(np.quantile(self._seconds[-LAST:], 0.75)) if self._seconds else None

    def _propose(
        self, proposals: Proposals, tried: list[Tried], best: Tried | None, surest: Tried | None, turn: int
    ) -> None:
        """Most trials go on from the best, a few from the surest, by turns with the one layer that has most to gain and
        with any few; each OWN-th is the sampler's own.
        """
        looked = [one for one in tried if one.outcome.looks]
        between = proposals.between({one.key: one.outcome.passed for one in looked})
        if between is None and self.bench.goal.foresees:
            least = surest.outcome.ratio if surest else math.inf
            between = proposals.between({one.key: one.outcome.ratio >= least for one in tried})
        if between is not None:
            self.shared.enqueue(between)
        elif best is not None and turn % OWN:
            begun = surest if surest is not None and turn % OWN == OWN // 2 else best
            climbed = proposals.climb(begun.settings, {one.key for one in tried}) if turn % 2 else None
            self.shared.enqueue(climbed or proposals.step(begun.settings))

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
