"""What trials are taken to lose: nearer to what their noise foretells, the more of a difference is chance."""

import json
from dataclasses import asdict
from types import SimpleNamespace

import numpy as np
import pytest

from onnx_lathe.optimizer.gate import parse_gates
from onnx_lathe.optimizer.search.bench import Outcome
from onnx_lathe.optimizer.search.goal import Goal
from onnx_lathe.optimizer.search.shrinkage import LEAST, Curve, Shrinkage
from onnx_lathe.optimizer.search.storage import Tried, _outcome, passing

COUNT = 3000


def outcome(
    sqnr: float, lost: float, error: float = 0.003, ratio: float = 0.1, passed: bool = False
) -> Outcome:
    metrics = {"packed": 100 * ratio, "top1": 0.96 - lost, "sqnr": sqnr}
    return Outcome(ratio, metrics, passed, 0.0, 3, True, errors={"top1": error}, count=COUNT)


def study(count: int, own: float, seed: int = 0) -> tuple[list[Tried], np.ndarray]:
    """Trials of 10 to 24 dB that lose 0.05 times the amplitude of their noise and, with the deviation `own`, something
    of their own, measured with an error of 0.3 points; and what each truly loses.
    """
    random = np.random.default_rng(seed)
    decibels = random.uniform(10, 24, count)
    true = np.maximum(0.05 * 10 ** (-decibels / 20) + own * random.standard_normal(count), 0)
    measured = true + 0.003 * random.standard_normal(count)
    return [
        Tried(number, {"a": number}, outcome(sqnr, lost, ratio=0.1 + 0.001 * number))
        for number, (sqnr, lost) in enumerate(zip(decibels, measured, strict=True))
    ], true


def shrinkage(tried: list[Tried], gate: str = "top1 drop <= 1%") -> Shrinkage:
    bench = SimpleNamespace(
        goal=Goal("packed", parse_gates([gate]), 1.0),
        judges=[SimpleNamespace(base={"top1": 0.96})],
        costs=SimpleNamespace(base=lambda name: 100.0),
    )
    return Shrinkage(tried, bench)  # type: ignore[arg-type]


@pytest.mark.parametrize("own", [0.0, 0.002])
def test_it_is_nearer_to_what_a_trial_truly_loses(own: float) -> None:
    tried, true = study(200, own)
    curve = shrinkage(tried).curves["top1"]
    assert curve.own == pytest.approx(own**2, abs=2e-6)
    lost = np.array([0.96 - one.outcome.metrics["top1"] for one in tried])
    amplitude = np.array([10 ** (-one.outcome.metrics["sqnr"] / 20) for one in tried])
    taken, errors = np.array([curve.shrunk(a, y, 0.003) for a, y in zip(amplitude, lost, strict=True)]).T
    assert np.std(taken - true) < (0.6 if own == 0 else 0.85) * np.std(lost - true)
    assert np.mean(np.abs(taken - true) < 2 * errors + 1e-4) > 0.9


def test_the_lucky_one_does_not_pass_and_the_unlucky_one_does() -> None:
    tried, _ = study(100, 0.0)
    judge = shrinkage(tried)
    lucky, unlucky = outcome(11.0, 0.004, passed=True), outcome(22.0, 0.0095)
    assert not judge.judged(lucky).passed
    assert judge.judged(unlucky).passed
    assert judge.judged(lucky).metrics == lucky.metrics


def test_every_process_judges_alike() -> None:
    tried, _ = study(100, 0.001)
    one, other = (shrinkage(order).all(tried) for order in (tried, tried[::-1]))
    assert [a.outcome.passed for a in one] == [b.outcome.passed for b in other]
    assert 0 < len(passing(one)) < len(one)


def test_chance_that_trials_have_in_common_stays() -> None:
    """All are judged by the same samples, and are lucky together: the curve cannot tell."""
    amplitude = np.linspace(0.1, 0.3, 60)
    alike = Curve.fit(amplitude, 0.05 * amplitude, np.full(60, 0.003))
    assert alike.common == pytest.approx(1.0)
    assert alike.shrunk(0.2, 0.01, 0.003)[1] >= 0.003


def test_noise_never_gives_anything_back() -> None:
    amplitude = np.linspace(0.05, 0.3, 30)
    curve = Curve.fit(amplitude, 0.02 - 0.05 * amplitude, np.full(30, 0.003))
    assert curve.lost(0.0) == 0.0
    assert 0 <= curve.lost(0.1) <= curve.lost(0.3)


@pytest.mark.parametrize(
    "gate, count, errors",
    [
        ("top1 drop <= 1%", LEAST - 1, {"top1": 0.003}),
        ("sqnr >= 12", 60, {"sqnr": 0.1}),
        ("top1 drop <= 1%", 60, {}),
    ],
)
def test_with_few_trials_or_of_other_metrics_or_of_old_journals_it_is_as_measured(
    gate: str, count: int, errors: dict[str, float]
) -> None:
    tried = [
        Tried(one.number, one.settings, Outcome(**{**asdict(one.outcome), "errors": errors}))
        for one in study(count, 0.0)[0]
    ]
    judge = shrinkage(tried, gate)
    assert judge.curves == {}
    assert judge.all(tried) == tried


def test_a_journal_of_an_earlier_version_is_read() -> None:
    written = json.loads(json.dumps(asdict(outcome(15.0, 0.01))))
    assert _outcome(written) == outcome(15.0, 0.01)
    del written["errors"], written["count"]
    assert _outcome(written).errors == {}
