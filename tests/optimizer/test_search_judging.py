"""What a search takes for passed: gates without a number, standard errors, and winners confirmed on other samples."""

from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from onnx_lathe.errors import UsageError
from onnx_lathe.optimizer.gate import parse_gates
from onnx_lathe.optimizer.recipe import Recipe, parse_calls
from onnx_lathe.optimizer.search import confirming
from onnx_lathe.optimizer.search.bench import Bench, Outcome
from onnx_lathe.optimizer.search.clock import Clock
from onnx_lathe.optimizer.search.data import confirmed_apart, divide
from onnx_lathe.optimizer.search.goal import Goal
from onnx_lathe.optimizer.search.judging import (
    UNJUDGED,
    Judge,
    Leniency,
    Measured,
    _Predictions,
    judged,
    paired_error,
    share_error,
    unspread,
)
from onnx_lathe.optimizer.search.request import SearchRequest
from onnx_lathe.optimizer.search.space import Dimension, Space
from onnx_lathe.optimizer.search.storage import Tried, front, nearest_miss
from onnx_lathe.runtime.data import open_source
from onnx_lathe.runtime.data.kept import hold_apart, keep, part_off
from onnx_lathe.runtime.files.signature import InputSpec
from tests.support.builders import build, random

INPUTS = [InputSpec("x", np.dtype(np.float32), (None, 1))]


class Fixed:
    """A judge, or costs, with these figures."""

    def __init__(self, base: Mapping[str, float], found: Mapping[str, float], error: float = 0.0) -> None:
        self.known, self.found, self.error = base, found, error

    @property
    def base(self) -> Any:
        return self.known

    def measure(self, model: object) -> Measured:
        return Measured(self.found, dict.fromkeys(self.found, self.error), 1000)


class Costs:
    def base(self, name: str) -> float:
        return 100.0

    def of(self, model: object, names: object, exact: bool = False) -> dict[str, float]:
        return {"packed": 10.0}


def bench(gate: str, *judges: Fixed, margin: float = 1.0) -> Bench:
    goal = Goal("packed", parse_gates([gate]), margin)
    return Bench(Space((), ()), goal, onnx.ModelProto(), 0, judges, Costs(), None, Clock(1e12), print)  # type: ignore[arg-type]


def test_a_gate_without_a_number_fails_from_the_first_look() -> None:
    base = {"sqnr": float("inf"), "agreement": 1.0}
    outcome = bench("sqnr >= 20", Fixed(base, {"agreement": 1.0}), Fixed(base, {"sqnr": 50.0})).try_out({})
    assert (outcome.passed, outcome.looks, outcome.missed) == (False, 1, UNJUDGED)
    last = bench("sqnr >= 20", Fixed(base, {"agreement": 1.0})).try_out({})
    assert (last.passed, last.missed) == (False, UNJUDGED)
    gates = parse_gates(["latency ratio >= 2", "sqnr >= 20"])
    early = judged(gates, base, Measured({"sqnr": 30.0}), Leniency(awaited=("latency",)))
    assert early.passed
    assert not judged(gates, base, Measured({"sqnr": 30.0})).passed


def test_an_absolute_gate_has_the_error_of_a_share() -> None:
    (absolute, drop) = parse_gates(["top1 >= 78.5%", "top1 drop <= 1%"])
    found = Measured({"top1": 0.8}, {"top1": 0.001}, 1000)
    assert found.error(absolute, {}) == pytest.approx((0.8 * 0.2 / 1000) ** 0.5)
    assert found.error(drop, {}) == 0.001
    assert found.error(drop, {}, at_bound=True) == pytest.approx((0.01 * 0.99 / 1000) ** 0.5)
    assert unspread(parse_gates(["cosine >= 0.9", "top1 drop <= 1%", "size ratio >= 2"])) == ["cosine"]


def test_an_early_look_judges_what_is_lost_there() -> None:
    """The first samples are harder than all: the original itself does not come to the gate on them."""
    hard, whole = Fixed({"top1": 0.70}, {"top1": 0.70}, 0.002), Fixed({"top1": 0.80}, {"top1": 0.80}, 0.002)
    outcome = bench("top1 >= 78%", hard, whole).try_out({})
    assert outcome.looks == 2
    assert outcome.passed


def test_what_is_printed_is_what_was_measured() -> None:
    outcome = bench("top1 drop <= 1%", Fixed({"top1": 0.9}, {"top1": 0.896}, 0.004)).try_out({})
    assert outcome.passed
    assert "89.6 %" in outcome.messages[0]
    assert outcome.messages[0].endswith("with 1 standard error to spare")
    near = bench("top1 drop <= 1%", Fixed({"top1": 0.9}, {"top1": 0.896}, 0.008)).try_out({})
    assert not near.passed
    assert near.messages[0].endswith("but not with 1 standard error to spare")


def test_each_output_has_its_error() -> None:
    model = build("(float[N, 4] x) => (float[N, 3] y, float[N, 2] z) { y = MatMul (x, a)  z = MatMul (x, b) }", a=random(4, 3), b=random(4, 2))  # fmt: skip
    data = keep(open_source({"x": random(50, 4)}, [InputSpec("x", np.dtype(np.float32), (None, 4))]), 50)
    judge = Judge(model, data, 1)
    for tensor in model.graph.initializer:
        if tensor.name == "a":
            values = onnx.numpy_helper.to_array(tensor) + random(4, 3) * np.float32(0.1)
            tensor.CopyFrom(onnx.numpy_helper.from_array(values, "a"))
    errors = judge.measure(model).errors
    assert errors["sqnr"] == errors["sqnr[y]"] > 0
    assert errors["sqnr[z]"] == 0


def test_a_sample_whose_scores_hold_a_nan_is_answered_wrongly() -> None:
    predicted = _Predictions()
    predicted(
        {"y": np.array([[np.nan, 1.0], [0.0, 1.0], [2.0, np.nan]]), "n": np.array([[1, 3]] * 3)}, 3, False
    )
    answers, whole = predicted.of("y"), predicted.of("n")
    assert answers is not None
    assert whole is not None
    assert answers.tolist() == [-1, 1, -1]  # argmax says 0, 1, 1
    assert whole.tolist() == [1, 1, 1]


def test_a_gate_that_no_trial_counts_is_refused() -> None:
    for gates in (["memory <= 1 MB"], ["memory <= 1 MB", "sqnr >= 20"]):
        recipe = Recipe(parse_calls("codebook", "p"), tuple(gates))
        with pytest.raises(UsageError, match="memory"):
            SearchRequest(Path("m.onnx"), recipe, Path("out")).check()
    only = Recipe(parse_calls("codebook", "p"), ("size ratio >= 2",))
    with pytest.raises(UsageError, match="no gate is about accuracy"):
        SearchRequest(Path("m.onnx"), only, Path("out")).check()


def named(drop: float, confirmers: int = 1000, repetitions: int = 500, count: int = confirming.MOST) -> float:
    """How often a winner is named among candidates that all truly lose `drop`, under a gate of 1 %, where no sample is
    answered better than before, and each is confirmed by luck of its own.
    """
    random, gates, base = np.random.default_rng(0), parse_gates(["top1 drop <= 1%"]), {"top1": 0.9}

    @cache
    def passes(lost: int) -> bool:
        share = lost / confirmers
        measured = Measured(
            {"top1": 0.9 - share}, {"top1": paired_error(share, share, confirmers)}, confirmers
        )
        return confirming.confirm(gates, base, measured, 1.0).passed

    def confirmed(place: int) -> bool:
        return passes(random.binomial(confirmers, drop))

    winners = [
        confirming.name_winner(range(count), lambda place: True, confirmed).winner for _ in range(repetitions)
    ]
    return 1 - winners.count(None) / repetitions


def test_the_winners_curse_is_no_more_likely_than_the_margin_allows() -> None:
    assert named(0.0105, confirmers=10_000) <= 0.16
    assert named(0.012) <= 0.16
    assert named(0.003) >= 0.9


def test_the_winner_is_the_last_before_one_that_is_not_confirmed() -> None:
    asked: list[int] = []

    def confirmed(one: int) -> bool:
        asked.append(one)
        return one < 4

    found = confirming.name_winner(range(9), lambda one: one != 1, confirmed)
    assert (found.winner, found.near, found.tried, asked) == (3, 4, 4, [0, 2, 3, 4])
    none = confirming.name_winner([5, 6], lambda one: True, confirmed)
    assert (none.winner, none.near, none.tried) == (None, 5, 1)
    unfit = confirming.name_winner([5, 6], lambda one: False, confirmed)
    assert (unfit.winner, unfit.near, unfit.tried) == (None, 5, 0)


def test_larger_ones_with_less_noise_are_confirmed_before_the_smallest() -> None:
    """One of the same size with more noise, and one that is larger and noisier, are no candidates."""
    figures = [
        (0.1, 15.0),
        (0.1014, 14.0),
        (0.103, 16.0),
        (0.1035, 17.0),
        (0.11, 12.0),
        (0.115, 25.0),
        (0.2, 40.0),
    ]
    passed = [
        tried(number, ratio=ratio, passed=True, final=True, metrics={"sqnr": sqnr})
        for number, (ratio, sqnr) in enumerate(figures)
    ]
    assert [one.outcome.ratio for one in confirming.in_order(passed)] == [0.115, 0.1035, 0.1]
    assert [one.outcome.ratio for one in confirming.in_order(passed, most=1)] == [0.1]
    assert confirming.in_order([]) == []


def test_equal_samples_confirm_or_choose() -> None:
    values = np.repeat(np.arange(300, dtype=np.float32), 2)[:, None]
    whole = keep(open_source({"x": values}, INPUTS), 600)
    parts = part_off(whole, 1 / 3, 7)
    assert parts is not None
    choosing, apart = (set(np.concatenate([b.inputs["x"] for b in one.kept]).ravel()) for one in parts)
    assert (len(choosing), len(apart)) == (200, 100)
    assert not choosing & apart
    assert (parts[0].count, parts[1].count) == (400, 200)
    assert part_off(keep(open_source({"x": values * 0}, INPUTS), 600), 1 / 3, 7) is None


def test_few_samples_all_choose(tmp_path: Path) -> None:
    model = build("(float[N, 1] x) => (float[N, 2] y) { y = MatMul (x, w) }", w=random(1, 2))
    for count, apart in ((200, None), (1000, 199)):
        recipe = Recipe(parse_calls("codebook", "p"), data={"x": random(count, 1)})
        division = confirmed_apart(divide(recipe, model, False), 0)
        confirmers = None if division.confirming is None else division.confirming.count
        assert confirmers is None if apart is None else 80 <= (confirmers or 0) <= 220
        assert ("too few" in division.note) == (apart is None)


@pytest.mark.parametrize("training", [True, False])
def test_no_copy_of_a_sample_judges(training: bool) -> None:
    values = np.repeat(np.arange(500, dtype=np.float32), 2)[:, None]
    unused = open_source({"x": values[:100]}, INPUTS)
    parts = hold_apart(open_source({"x": values}, INPUTS), 80, 100, training, 0, unused)
    judge, seen, spare = (
        set(np.concatenate([b.inputs["x"] for b in one.batches(64)]).ravel())
        for one in parts
        if one is not None
    )
    assert not judge & seen
    assert not spare & (judge | seen)
    assert len(spare) > 20
    assert min(judge | seen | spare) == 50


def test_others_confirm_where_there_are_enough() -> None:
    model = build("(float[N, 1] x) => (float[N, 2] y) { y = MatMul (x, w) }", w=random(1, 2))
    recipe = Recipe(parse_calls("codebook", "p"), data={"x": random(4000, 1)})
    pool = divide(recipe, model, False, 10**6).judging.count
    for most, chosen in ((1000, 1000), (pool - 200, None)):
        division = confirmed_apart(divide(recipe, model, False, most), 0)
        assert division.confirming is not None
        if chosen is None:  # too few others: a third
            assert division.judging.count < 0.7 * most
        else:
            assert (division.judging.count, division.confirming.count) == (chosen, pool - chosen)
            assert f"confirmed on {pool - chosen:,} others" in division.note


def tried(number: int, **given: Any) -> Tried:
    known = {
        "ratio": 0.1,
        "metrics": {"top1": 0.8},
        "passed": False,
        "missed": 1.0,
        "looks": 1,
        "final": False,
    }
    return Tried(number, {"a": number}, Outcome(**{**known, **given}))


def test_the_front_and_the_nearest_miss_are_of_final_figures() -> None:
    early, final = tried(0), tried(1, ratio=0.2, looks=3, final=True, missed=2.0, metrics={"top1": 0.7})
    passed = tried(2, ratio=0.3, passed=True, missed=0.0, looks=1)
    assert front([early, final, passed], "top1") == [final]
    assert nearest_miss([early, final, passed]) == final
    assert nearest_miss([passed]) is None


def test_a_space_knows_its_size() -> None:
    ladder, whole = (
        Dimension("a", 0, ("a",), levels=(1, 2, 3)),
        Dimension("b", 0, ("b",), low=2, high=5, whole=True),
    )
    assert Space((), (ladder, whole)).size == 12
    assert Space((), (ladder, Dimension("c", 0, ("c",), low=0.1, high=0.5))).size == float("inf")


def test_a_share_of_none_has_an_error() -> None:
    assert share_error(1.0, 100) == pytest.approx(0.01)
