"""What a search is about: what becomes smallest, under which gates, and how sure a trial is to be confirmed.

The samples that confirm a winner measure what is normal around what the trial is taken to have, with the variance of
that and the one of as many samples; it passes if it is `margin` standard errors within the bound. So a trial is as
sure as there are standard deviations between the two.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist

from onnx_lathe.optimizer.gate import Gate
from onnx_lathe.optimizer.judging.metrics import of_data
from onnx_lathe.optimizer.search.judging import ANSWERS, SPREAD, Measured, share_error

UNSURE = 0.02
"""Of trials that are nearly sure to be confirmed, so many are not."""
SHARES = frozenset(SPREAD) - {"sqnr"}
NEARLY = 0.8
"""Of the sureness of one that loses nothing: what must do where samples are so few that even that one is not sure."""


@dataclass
class Goal:
    """What is minimized, under which gates. `margin`: standard errors that a share of samples must have to spare.
    `confirmers`: samples that confirm the winner; 0 if none do.
    """

    minimize: str
    gates: Sequence[Gate]
    margin: float
    confirmers: int = 0

    @property
    def counted(self) -> set[str]:
        """Metrics beside accuracy that a trial needs."""
        return {self.minimize, *(gate.metric for gate in self.gates if not of_data(gate.metric))}

    @property
    def foresees(self) -> bool:
        """Whether it can be told how sure a trial is to be confirmed."""
        return self.confirmers > 0 and any(gate.metric in SPREAD for gate in self.gates)

    def confirms(self, samples: int) -> bool:
        """Whether so many samples can confirm a model at all: one that loses nothing passes on them, and may lose one."""
        for gate in self.gates:
            allowed = gate.bound if gate.form == "drop" else 1 - gate.bound
            if gate.metric not in SHARES or (gate.form == "value" and gate.metric in ANSWERS):
                continue
            if allowed - self.margin * share_error(min(max(allowed, 0.0), 1.0), samples) < 1 / samples:
                return False
        return True

    def sure(self, base: Mapping[str, float], count: int, among: int = 1) -> float:
        """From which sureness on a trial measured on `count` samples stands in for smaller ones: what one of UNSURE has by
        luck, of `among` trials the luckiest (Bonferroni), or less where few samples confirm.
        """
        errors = {gate.key: 1 / count for gate in self.gates if gate.metric in SHARES}
        unharmed = Measured(base, errors, count)
        return min(-NormalDist().inv_cdf(UNSURE / among), NEARLY * self.sureness(base, unharmed, unharmed))

    def sureness(self, base: Mapping[str, float], seen: Measured, taken: Measured) -> float:
        """Standard deviations by which a trial is foreseen to pass where winners are confirmed; of several gates the
        least. `base`: the original's metrics where the trial was measured; `seen`: what was; `taken`: what it is taken
        to have.
        """
        least = math.inf
        for gate in self.gates:
            if of_data(gate.metric):
                least = min(least, self._sureness(gate, base, seen, taken))
        return least

    def _sureness(self, gate: Gate, base: Mapping[str, float], seen: Measured, taken: Measured) -> float:
        value, error = taken.metrics.get(gate.key), seen.errors.get(gate.key, 0.0)
        if value is None:
            return -math.inf
        scaled = error * math.sqrt(seen.count / max(1, self.confirmers))
        there = Measured(seen.metrics, {gate.key: scaled}, max(1, self.confirmers))
        kept = self.margin * there.error(gate, base, at_bound=True)
        margin = gate.judge(base, {**taken.metrics, gate.key: value - kept}).margin
        if margin is None or math.isnan(margin):
            return -math.inf
        unit = base[gate.metric] if gate.relative else 1.0
        chance = taken.errors.get(gate.key, 0.0)
        if error and gate.metric != "sqnr":
            # at the edge: one that was lucky seems to have a small error, too (score interval, as in Measured.error)
            edge = gate.bound * unit + (kept if gate.op[0] == ">" else -kept)
            chance *= max(1.0, share_error(min(max(edge, 0.0), 1.0), seen.count) / error)
        deviation = math.hypot(there.error(gate, base), chance)
        return margin * unit / deviation if deviation > 0 else math.copysign(math.inf, margin)
