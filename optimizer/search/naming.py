"""Which trial a search names: measured as its recipe has it, and confirmed on samples that chose nothing."""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import onnx

from onnx_lathe.errors import LatheError
from onnx_lathe.optimizer.search import confirming
from onnx_lathe.optimizer.search.bench import LARGER, Outcome
from onnx_lathe.optimizer.search.judging import Judge
from onnx_lathe.optimizer.search.request import Opened
from onnx_lathe.optimizer.search.shrinkage import Shrinkage
from onnx_lathe.optimizer.search.space import Settings
from onnx_lathe.optimizer.search.storage import Tried, nearest_miss, passing
from onnx_lathe.runtime.data.kept import keep

MOST_STAND_INS = 3
"""Trials that are measured whole after the last one, at most."""

Measured = tuple[Settings, Outcome]


class Naming:
    """`winner`, and `near` where there is none: settings, and what they gave as their recipe has them. `confirmed`: as
    record.SearchRecord has it; `notes`: why candidates were left out, and why none won.
    """

    def __init__(self, opened: Opened, shrinkage: Shrinkage, status: Callable[[str], None]) -> None:
        self.opened, self.shrinkage, self.status = opened, shrinkage, status
        self.winner: Measured | None = None
        self.near: Measured | None = None
        self.confirmed: dict[str, Any] | None = None
        self.notes: list[str] = []
        self._made: onnx.ModelProto | None = None
        self._judge: Judge | None = None
        self._seen: dict[int, Outcome] = {}
        self._confirmed: dict[int, dict[str, Any]] = {}

    def name(self, tried: Sequence[Tried]) -> None:
        """`tried`: as the shrinkage judges them."""
        bench = self.opened.bench
        most = 1 if bench.trains else confirming.MOST
        if bench.goal.foresees:
            tried, shrinkage = self._with_stand_in(tried), self.shrinkage
            order = confirming.in_order(passing(tried), shrinkage.sureness, shrinkage.sure, most)
        else:
            order = confirming.in_order(passing(tried), most=most)
        found = confirming.name_winner(order, self._passes, self._is_confirmed)
        shown = found.winner or found.near
        if shown is not None and shown.number in self._confirmed:
            self.confirmed = {**self._confirmed[shown.number], "tried": found.tried}
        if found.winner is not None:
            self.winner = found.winner.settings, self._seen[found.winner.number]
            return
        near = (
            found.near if found.near is not None and found.near.number in self._seen else nearest_miss(tried)
        )
        if near is not None:
            self.near = near.settings, self._seen.get(near.number, near.outcome)
        self.notes.append(self._why_none(found.tried, found.near is not None, bool(tried)))

    def _with_stand_in(self, tried: Sequence[Tried]) -> list[Tried]:
        """The trials, where none of them is nearly sure to be confirmed with some of the larger ones that were stopped,
        measured whole: the smallest first, until one is.
        """
        bench, found = self.opened.bench, list(tried)
        if bench.trains or not passing(tried) or self.shrinkage.surest(tried) is not None:
            return found
        bench.surest = math.inf
        stopped = [one for one in tried if one.outcome.stopped == LARGER and bench.stands_in(one.outcome)]
        for one in sorted(stopped, key=lambda one: one.outcome.ratio)[:MOST_STAND_INS]:
            self.status("measuring a larger one, which may be confirmed more surely")
            whole = replace(one, outcome=self.shrinkage.judged(bench.try_out(one.settings, thorough=True)))
            found[found.index(one)] = whole
            if self.shrinkage.surest([whole]) is not None:
                break
        return found

    def _passes(self, one: Tried) -> bool:
        """As its recipe has it, on the samples that chose it."""
        self.status("measuring the best as their recipes have them")
        try:
            self._made, outcome = self.opened.bench.exact(one.settings)
        except LatheError as error:
            self.notes.append(f"trial {one.number} left out: {error}")
            return False
        self._seen[one.number] = self.shrinkage.judged(outcome)
        return self._seen[one.number].passed

    def _is_confirmed(self, one: Tried) -> bool:
        """Whether it passes on the samples that chose nothing; true if there are none."""
        samples, goal = self.opened.division.confirming, self.opened.bench.goal
        if samples is None or self._made is None:
            return True
        self.status("confirming the best on samples that chose nothing")
        if self._judge is None:
            kept = keep(samples, samples.count or 0)
            self._judge = Judge(self.opened.original, kept, self.opened.request.threads)
        measured = self._judge.measure(self._made)
        verdict = confirming.confirm(goal.gates, self._judge.base, measured, goal.margin)
        self._confirmed[one.number] = {
            "samples": samples.count, "metrics": dict(measured.metrics), "z": goal.margin, "messages": list(verdict.messages),
        }  # fmt: skip
        return verdict.passed

    def _why_none(self, confirmed: int, passed: bool, any_tried: bool) -> str:
        if confirmed and self.confirmed is not None:
            return (
                f"not even one with bytes to spare passes on the {self.confirmed['samples']:,} samples that chose nothing: "
                "luck had helped it; choose on more samples (--validation), or resume with a longer --budget"
            )
        if passed:
            return "the best trials do not pass as their recipes have them"
        if any_tried:
            return "no trial passes the gate"
        return "no trial was finished in the budget; give a longer --budget"
