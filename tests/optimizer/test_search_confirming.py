"""Whether a search ends with a winner, and how often with one that misses its gate: many searches of a simulated network."""

import math
from dataclasses import dataclass, field, replace
from functools import cache
from statistics import NormalDist
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest

from onnx_lathe.optimizer.gate import parse_gates
from onnx_lathe.optimizer.search import confirming
from onnx_lathe.optimizer.search.bench import LARGER, Bench, Outcome
from onnx_lathe.optimizer.search.clock import Clock
from onnx_lathe.optimizer.search.goal import Goal
from onnx_lathe.optimizer.search.judging import Measured, paired_error
from onnx_lathe.optimizer.search.loop import Loop
from onnx_lathe.optimizer.search.naming import Naming
from onnx_lathe.optimizer.search.proposals import Option, Proposals
from onnx_lathe.optimizer.search.shrinkage import Shrinkage
from onnx_lathe.optimizer.search.space import Dimension, Settings, Space
from onnx_lathe.optimizer.search.storage import Tried

LAYERS, LEVELS = 5, tuple(range(12))
SHARES = (0.05, 0.1, 0.2, 0.3, 0.35)
SENSITIVITY = (4.0, 1.0, 2.0, 0.5, 1.5)
ACCURACY, BOUND, ALIKE = 0.9, 0.02, 0.5
SPACE = Space((), tuple(Dimension(f"l{one}", 0, ("layers",), f"l{one}", LEVELS) for one in range(LAYERS)))


def cost(layer: int, level: int) -> float:
    return SHARES[layer] * 0.85**level


def harm(layer: int, level: int) -> float:
    return 1e-5 * SENSITIVITY[layer] * (2.0**level - 1)


TABLE = {
    f"l{layer}": [Option({f"l{layer}": level}, cost(layer, level), harm(layer, level)) for level in LEVELS]
    for layer in range(LAYERS)
}


def amplitude(settings: Settings) -> float:
    return math.sqrt(sum(harm(layer, settings[f"l{layer}"]) for layer in range(LAYERS)))


def lost(settings: Settings) -> float:
    """What the settings truly lose of the accuracy."""
    own = 1 + 0.2 * math.sin(sum((layer + 2) * settings[f"l{layer}"] for layer in range(LAYERS)))
    return ACCURACY * min(0.5, 0.12 * own * amplitude(settings))


class Samples:
    """A judge by `count` samples. How hard each of them is, all candidates have in common."""

    def __init__(self, count: int, random: np.random.Generator) -> None:
        self.count, self.random = count, random
        self.right = random.random(count) < ACCURACY
        self.hard = random.standard_normal(count)
        self.base = {"top1": float(self.right.mean()), "sqnr": math.inf}
        self.first = {count: self}

    def measure(self, model: Any) -> Measured:
        own = self.random.standard_normal(self.count)
        quantile = NormalDist().inv_cdf(max(lost(model) / ACCURACY, 1e-9))
        changed = self.right & (math.sqrt(ALIKE) * self.hard + math.sqrt(1 - ALIKE) * own < quantile)
        share = float(changed.mean())
        found = {"top1": self.base["top1"] - share, "sqnr": -20 * math.log10(amplitude(model) + 1e-9)}
        return Measured(found, {"top1": paired_error(share, share, self.count)}, self.count)


class Sizes:
    def base(self, name: str) -> float:
        return 1.0


class Simulated(Bench):
    def _built(self, settings: Settings) -> tuple[Any, dict[str, float]]:
        return settings, {"packed": sum(cost(layer, settings[f"l{layer}"]) for layer in range(LAYERS))}

    def exact(self, settings: Settings) -> tuple[Any, Outcome]:
        return settings, self._outcome(
            self._built(settings)[1], self.judges[-1].measure(settings), len(self.judges)
        )  # type: ignore[arg-type]


@dataclass
class Memory:
    """A study in memory, whose sampler knows nothing."""

    random: np.random.Generator
    done: list[Tried] = field(default_factory=list)
    queue: list[Settings] = field(default_factory=list)

    @property
    def waiting(self) -> int:
        return len(self.queue)

    def enqueue(self, settings: Settings) -> None:
        self.queue.append(settings)

    def ask(self) -> tuple[Settings, Settings]:
        known = {one.key for one in self.done}
        while self.queue:
            settings = self.queue.pop(0)
            if repr(sorted(settings.items())) not in known:
                return settings, settings
        settings = {one.name: int(self.random.integers(len(LEVELS))) for one in SPACE.dimensions}
        return settings, settings

    def tell(self, trial: Settings, outcome: Outcome) -> None:
        one = Tried(len(self.done), trial, outcome)
        if one.key not in {known.key for known in self.done}:
            self.done.append(one)

    def finished(self) -> list[Tried]:
        return list(self.done)


@dataclass(frozen=True)
class Ended:
    """`ratio`: of the winner; `false`: whether it truly misses the gate."""

    ratio: float | None
    false: bool
    whole: int


@cache
def ended(seed: int, choosing: int, confirmers: int, trials: int = 30) -> Ended:
    random = np.random.default_rng(seed)
    goal = Goal("packed", parse_gates([f"top1 drop <= {100 * BOUND:g}%"]), 1.0, confirmers)
    judges = [Samples(count, random) for count in (choosing // 4, choosing)]
    bench = Simulated(SPACE, goal, onnx.ModelProto(), 0, judges, Sizes(), None, Clock(1e12), print)  # type: ignore[arg-type]
    shared = Memory(random)
    for settings in Proposals(SPACE, TABLE, 0).starts():
        shared.enqueue(settings)
    Loop(bench, shared, TABLE, seed, trials).run()  # type: ignore[arg-type]
    tried = shared.finished()
    shrinkage = Shrinkage(tried, bench)
    opened = SimpleNamespace(
        bench=bench, division=SimpleNamespace(confirming=SimpleNamespace(count=confirmers))
    )
    naming = Naming(opened, shrinkage, lambda text: None)  # type: ignore[arg-type]
    naming._judge = Samples(confirmers, random)  # type: ignore[assignment]
    naming.name(shrinkage.all(tried))
    whole = sum(one.outcome.final for one in tried)
    if naming.winner is None:
        return Ended(None, False, whole)
    settings, outcome = naming.winner
    return Ended(outcome.ratio, lost(settings) > BOUND, whole)


SEARCHES = 40


@pytest.mark.parametrize("choosing, confirmers", [(400, 200), (1000, 5000)])
def test_a_winner_is_found_and_seldom_falsely(choosing: int, confirmers: int) -> None:
    """With fewer samples that confirm than choose, and with more. One that truly misses the gate may be confirmed with
    the probability of one standard error, 16 %.
    """
    found = [ended(seed, choosing, confirmers) for seed in range(SEARCHES)]
    assert sum(one.ratio is None for one in found) <= SEARCHES // 10
    assert sum(one.false for one in found) <= 0.16 * SEARCHES
    assert np.mean([one.ratio for one in found if one.ratio is not None]) < 0.45
    assert np.mean([one.whole for one in found]) < 25  # of 30


def test_without_one_to_stand_in_many_searches_find_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Goal, "foresees", False)
    found = [ended.__wrapped__(seed, 400, 200) for seed in range(10)]
    assert sum(one.ratio is None for one in found) >= 3


def test_each_candidate_is_confirmed_no_oftener_than_by_the_margin() -> None:
    """Of candidates that truly lose a little more than the gate allows the trials know nothing: whatever the order, a
    winner is named among them as seldom as one would be by itself.
    """
    goal, generator = Goal("packed", parse_gates(["top1 drop <= 2%"]), 1.0, 500), np.random.default_rng(0)
    falsely = 0
    for _ in range(200):
        base, passed = {"top1": 0.9}, []
        for number in range(12):
            share = generator.binomial(600, 0.021) / 600
            outcome = Outcome(
                0.1 + 0.01 * number, {"top1": 0.9 - share, "sqnr": 20.0}, True, 0.0, 1, True,
                errors={"top1": paired_error(share, share, 600)}, count=600,
            )  # fmt: skip
            passed.append(Tried(number, {"a": number}, outcome))

        def sureness(one: Tried, base: dict[str, float] = base) -> float:
            seen = Measured(one.outcome.metrics, one.outcome.errors, one.outcome.count)
            return goal.sureness(base, seen, seen)

        def confirmed(one: Tried, base: dict[str, float] = base) -> bool:
            share = generator.binomial(500, 0.021) / 500
            measured = Measured({"top1": 0.9 - share}, {"top1": paired_error(share, share, 500)}, 500)
            return confirming.confirm(goal.gates, base, measured, goal.margin).passed

        order = confirming.in_order(passed, sureness, goal.sure(base, 600, len(passed)))
        falsely += confirming.name_winner(order, lambda one: True, confirmed).winner is not None
    assert falsely / 200 <= 0.16 + 2 * (0.16 * 0.84 / 200) ** 0.5


def candidate(number: int, ratio: float, lost: float, **given: Any) -> Tried:
    outcome = Outcome(
        ratio, {"top1": 0.9 - lost}, True, 0.0, 1, True, errors={"top1": 0.003}, count=1000, **given
    )
    return Tried(number, {"a": number}, outcome)


def test_the_order_begins_with_the_smallest_that_is_sure() -> None:
    sure = {0: 5.0, 1: 2.6, 2: 2.3, 3: 1.2, 4: 0.4, 5: -0.5}
    passed = [
        candidate(number, ratio, 0.0) for number, ratio in enumerate((0.5, 0.303, 0.30, 0.25, 0.22, 0.2))
    ]

    def order(sureness: dict[int, float], most: int = confirming.MOST) -> list[int]:
        found = confirming.in_order(passed, lambda one: sureness[one.number], 2.0, most)
        return [one.number for one in found]

    assert order(sure) == [1, 3, 4, 5]  # 1 is as small as 2, and surer
    assert order(sure, 1) == [1]
    assert order({**sure, 0: 1.5, 1: 1.4, 2: 0.0}) == [0, 3, 4, 5]  # none is sure: the one that comes nearest
    assert order(dict.fromkeys(sure, 3.0)) == [5]


def test_a_larger_one_is_measured_whole_if_it_may_stand_in() -> None:
    looks: list[float] = []

    class Steady:
        count = 1000
        base = {"top1": 0.9}

        def __init__(self, lost: float) -> None:
            self.lost = lost

        def measure(self, model: object) -> Measured:
            looks.append(self.lost)
            return Measured({"top1": 0.9 - self.lost}, {"top1": 0.002}, self.count)

    def tried_out(confirmers: int, lost: float, surest: float = math.inf) -> Outcome:
        looks.clear()
        goal = Goal("packed", parse_gates(["top1 drop <= 2%"]), 1.0, confirmers)
        bench = Simulated(
            SPACE, goal, onnx.ModelProto(), 0, [Steady(lost), Steady(lost)], Sizes(), None, Clock(1e12), print
        )  # type: ignore[arg-type, list-item]
        bench.best, bench.surest = 0.1, surest
        return bench.try_out({f"l{one}": 3 for one in range(LAYERS)})

    assert tried_out(2000, 0.001).final
    assert tried_out(0, 0.001).stopped == LARGER
    assert tried_out(2000, 0.018).stopped == LARGER  # as good as the best, and no surer
    assert tried_out(2000, 0.001, surest=0.2).stopped == LARGER
    assert len(looks) == 1


def test_a_stopped_one_is_measured_whole_after_the_search() -> None:
    """Where the trials ended before one was sure."""
    random = np.random.default_rng(0)
    goal = Goal("packed", parse_gates(["top1 drop <= 2%"]), 1.0, 2000)
    bench = Simulated(
        SPACE,
        goal,
        onnx.ModelProto(),
        0,
        [Samples(500, random), Samples(2000, random)],
        Sizes(),
        None,
        Clock(1e12),
        print,
    )  # type: ignore[arg-type, list-item]
    weak, strong = ({f"l{one}": level for one in range(LAYERS)} for level in (2, 7))
    near = candidate(1, 0.32, 0.0125)
    stopped = Outcome(
        0.72, {"top1": 0.9}, True, 0.0, 1, False, stopped=LARGER, errors={"top1": 0.002}, count=500
    )
    tried = [replace(near, settings=strong), Tried(2, weak, stopped)]
    division = SimpleNamespace(confirming=SimpleNamespace(count=2000))
    naming = Naming(
        SimpleNamespace(bench=bench, division=division), Shrinkage(tried, bench), lambda text: None
    )  # type: ignore[arg-type]
    whole = naming._with_stand_in(tried)[1].outcome
    assert whole.final
    assert whole.passed
    assert whole.count == 2000


def test_samples_that_could_confirm_nothing_choose() -> None:
    goal = Goal("packed", parse_gates(["top1 drop <= 0.5%"]), 1.0)
    assert not goal.confirms(150)
    assert goal.confirms(700)
    assert Goal("packed", parse_gates(["agreement >= 99%"]), 1.0).confirms(300)
    assert not Goal("packed", parse_gates(["agreement >= 99%"]), 2.0).confirms(300)
    assert Goal("packed", parse_gates(["top1 >= 78%", "sqnr >= 20"]), 1.0).confirms(1)
