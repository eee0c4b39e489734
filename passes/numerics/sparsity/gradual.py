"""Gradual pruning: the set of zeros is chosen again and again while the weights are trained, and grows to
the sparsity asked for.

    s(t) = s_f + (s_0 - s_f) * (1 - t)^3        cubic; t is the share of the way there, s_0 the sparsity at the start

Many weights go at once while there are many to spare, and few at the end, when each of them counts. As long
as the set is chosen anew, the weights that read as zero go on being trained underneath, and one that grows
large comes back in place of another.
Sources: Zhu and Gupta, "To prune, or not to prune: exploring the efficacy of pruning for model
compression", ICLR 2018 workshop, section 3; Guo, Yao and Chen, "Dynamic Network Surgery for Efficient
DNNs", NeurIPS 2016, section 3.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from onnx_lathe.errors import PassError
from onnx_lathe.passes.numerics.sparsity.hidden_units import Link
from onnx_lathe.passes.numerics.sparsity.weight_choice import Budget, choose

RETURNS = 0.02
"""Largest share of a layer's remaining weights that may come back at one choice; it falls to 0 until zeros
settle.

Weights that read as zero all follow the gradient of one and the same error, and overshoot if they come back
together: LeNet-300-100 with 3 % of its weights left, after 6 epochs, errs by 2.5 % without this bound, and
by 1.3 % with it or if none come back.
"""

_LAST = np.float32(1e-30)
"""Makes any weight smaller than any other that is not multiplied by it."""

SCHEDULES: Mapping[str, Callable[[float], float]] = {
    "cubic": lambda t: 1 - (1 - t) ** 3,
    "linear": lambda t: t,
    "once": lambda t: 1.0,
}
"""Share of the additional zeros that are there at t, 0 to 1."""


@dataclass
class Gradual:
    """Implements onnx_lathe.protocols.Shaping: masks over the weights of `budgets`, whose `count` are the
    zeros at the end.

    `start`: zeros of each budget before. Zeros are chosen at `rounds` equal steps on the way to `until` (a
    share of the training, when the final number is reached), and at the same intervals up to `settle`; then
    they stay. Without `regrow`, every zero stays from the start.
    """

    budgets: Sequence[Budget]
    start: Sequence[int]
    links: Sequence[Link]
    score: str
    schedule: str
    rounds: int
    until: float
    settle: float
    regrow: bool
    every: int = 1
    masks: dict[str, np.ndarray] = field(default_factory=dict)
    """Weight name -> what is kept, read-only."""
    been_zero: dict[str, np.ndarray] = field(default_factory=dict)
    """Weight name -> what was zero after some choice, the last one too."""
    _turn: int = -1

    def __call__(self, done: float, weights: Mapping[str, np.ndarray]) -> Mapping[str, np.ndarray]:
        turn = int(self.rounds * min(done, self.settle) / self.until + 1e-9)
        if turn > self._turn:
            self._turn = turn
            self._choose(SCHEDULES[self.schedule](min(1.0, turn / self.rounds)), weights)
        return self.masks

    def state(self) -> dict[str, np.ndarray]:
        chosen = {"turn": np.array(self._turn)} | {f"mask/{name}": mask for name, mask in self.masks.items()}
        return chosen | {f"zero/{name}": zero for name, zero in self.been_zero.items()}

    def restore(self, state: Mapping[str, np.ndarray]) -> None:
        self._turn = int(state["turn"])
        for kind, arrays in (("mask/", self.masks), ("zero/", self.been_zero)):
            arrays.clear()
            arrays.update(
                {name.removeprefix(kind): array for name, array in state.items() if name.startswith(kind)}
            )
        for mask in self.masks.values():
            mask.flags.writeable = False

    def _choose(self, share: float, weights: Mapping[str, np.ndarray]) -> None:
        missing = [name for budget in self.budgets for name in budget.names if name not in weights]
        if missing:
            raise PassError(
                f"weight '{missing[0]}' is not trained, so it cannot be pruned gradually; leave training out"
            )
        broken = [
            name for budget in self.budgets for name in budget.names if not np.isfinite(weights[name]).all()
        ]
        if broken:
            raise PassError(
                f"training made weight '{broken[0]}' NaN or infinite; the model is left as it was; "
                "give a smaller rate in training={...}"
            )
        budgets = [
            Budget(budget.names, round(start + (budget.count - start) * share))
            for budget, start in zip(self.budgets, self.start, strict=True)
        ]
        values = {
            name: self._competing(name, weights[name]) if name in self.masks else weights[name]
            for name in weights
        }
        choice = choose(budgets, values.__getitem__, self.links, self.score, constants=True)
        kept = {name: choice.kept(name, values[name]) for budget in budgets for name in budget.names}
        for name, mask in kept.items():
            mask.flags.writeable = False
            self.been_zero[name] = self.been_zero.get(name, False) | ~mask
        self.masks = kept

    def _competing(self, name: str, values: np.ndarray) -> np.ndarray:
        """The trained values; what reads as zero and may not come back now is smaller than all others.

        Without `regrow` it is 0. Else it keeps its order, and stays ahead of useless units' weights: it
        comes back in their place.
        """
        mask = self.masks[name]
        if not self.regrow:
            return np.where(mask, values, np.float32(0))
        left = 1 - self._turn * self.until / (self.rounds * self.settle)
        count = math.ceil(RETURNS * left * np.count_nonzero(mask))
        magnitudes = np.where(mask, np.float32(0), np.abs(values))
        least = np.partition(magnitudes, -count, axis=None)[-count] if count else np.inf
        return np.where(mask | (magnitudes >= least), values, values * _LAST)
