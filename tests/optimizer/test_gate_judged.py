"""What decides over a gate beside the number: intervals, tolerances, single outputs, and what could not be compared."""

import math

import numpy as np
import pytest

from onnx_lathe.errors import UsageError
from onnx_lathe.optimizer.gate import Gate
from onnx_lathe.optimizer.judging.evidence import Evidence
from onnx_lathe.runtime.running.tasks.samples import Sums, right


def hits(count: int, samples: int = 200) -> Sums:
    """As many of the samples are right, the first ones."""
    return right(np.arange(samples) < count)


def test_with_a_confidence_the_worse_end_is_judged() -> None:
    gate = Gate.parse("top1 >= 80%")
    known = {"top1": hits(168)}  # 84 %, at least 78.3 %
    alone = gate.judge({}, {"top1": 0.84}, Evidence(candidate=known))
    assert alone.passed
    assert alone.interval is not None
    surely = gate.judge({}, {"top1": 0.84}, Evidence(candidate=known, confidence=0.95))
    assert not surely.passed
    assert surely.margin == pytest.approx(alone.interval.low - 0.8)
    assert "judged by its lower end, missed by" in surely.message
    lost = Gate.parse("top1 drop <= 1%")
    verdict = lost.judge(
        {"top1": 0.85}, {"top1": 0.84}, Evidence({"top1": hits(170)}, known, confidence=0.95)
    )
    assert not verdict.passed
    assert verdict.interval is not None
    assert verdict.margin == pytest.approx(0.01 - verdict.interval.high)
    assert "judged by its upper end, missed by" in verdict.message


def test_what_has_no_interval_is_not_judged_with_a_confidence() -> None:
    verdict = Gate.parse("top1 >= 80%").judge({}, {"top1": 0.9}, Evidence(confidence=0.95))
    assert not verdict.passed
    assert verdict.margin is None
    assert verdict.measured == 0.9
    assert verdict.message == (
        "gate 'top1 >= 80%' failed: top1 has no interval here, since it is not known sample by sample; "
        "judge it by itself, without a confidence"
    )
    size = Gate.parse("size <= 1 MB").judge(
        {}, {"size": 5.0}, Evidence(confidence=0.95)
    )  # it is of no samples
    assert size.passed


def test_a_tolerance_lets_a_gate_pass_that_it_covers() -> None:
    gate = Gate.parse("top1 drop <= 1%")
    tolerant = Evidence(tolerances={("top1", "fraction"): 0.005})
    inside, outside, spare = (
        gate.judge({"top1": 0.9}, {"top1": value}, tolerant) for value in (0.886, 0.884, 0.895)
    )
    assert inside.passed
    assert inside.tolerance == 0.005
    assert inside.message.endswith("missed by 0.4 points, within the tolerance of 0.5 points")
    assert (outside.passed, outside.tolerance) == (False, 0.0)
    assert (spare.passed, spare.tolerance) == (True, 0.0)
    assert "tolerance" not in spare.message + outside.message
    assert not gate.judge({"top1": 0.9}, {"top1": 0.886}).passed


def test_slack_grows_with_the_bound_and_never_below_one() -> None:
    nearly = 1_000_000 * (1 + 1e-10)
    assert Gate.parse("size <= 1 MB").judge({}, {"size": nearly}).passed
    assert not Gate.parse("size < 1 MB").judge({}, {"size": 1_000_000 * (1 - 1e-10)}).passed
    assert not Gate.parse("size <= 1 MB").judge({}, {"size": 1_000_001.0}).passed
    assert Gate.parse("top1 drop <= 0.5%").judge({"top1": 0.9}, {"top1": 0.895 - 1e-10}).passed


def test_errors_that_rise_count_from_the_original() -> None:
    gate = Gate.parse("wer rise <= 2%")
    verdict = gate.judge({"wer": 0.10}, {"wer": 0.13})
    assert not verdict.passed
    assert verdict.measured == pytest.approx(0.03)
    assert verdict.message == "wer rise <= 2%: 3 points (10 % -> 13 %), missed by 1 points"
    relative = Gate.parse("wer rise <= 50% relative").judge({"wer": 0.10}, {"wer": 0.13})
    assert relative.passed
    assert relative.measured == pytest.approx(0.3)
    assert "30 % of the original's" in relative.message


@pytest.mark.parametrize("original", [0.0, -0.1])
def test_nothing_is_relative_to_zero(original: float) -> None:
    verdict = Gate.parse("top1 drop <= 1% relative").judge({"top1": original}, {"top1": 0.5})
    assert not verdict.passed
    assert "top1 of the original is not above zero, so nothing is relative to it" in verdict.message


def test_a_single_output_is_judged_by_its_own_number() -> None:
    found = {"sqnr": 10.0, "sqnr[boxes]": 40.0, "sqnr[scores]": 10.0}
    gate = Gate.parse("sqnr[boxes] >= 30")
    assert gate.missing(found) is None
    assert gate.judge({}, found).passed
    worst = Gate.parse("sqnr >= 30").judge({}, found)
    assert not worst.passed
    assert worst.message == "sqnr >= 30: 10 dB ([scores]), missed by 20 dB"
    two = {"sqnr": 40.0, "sqnr[boxes]": 40.0}
    assert "[boxes]" not in Gate.parse("sqnr >= 30").judge({}, two).message  # there is no other
    assert Gate.parse("sqnr[boxs] >= 30").missing(found) == (
        "gate 'sqnr[boxs] >= 30' cannot be judged: sqnr has no output [boxs]; did you mean 'sqnr[boxes]'?"
    )
    assert str(Gate.parse("sqnr[~~~~~~~~] >= 30").missing(found)).endswith(
        "; there are sqnr[boxes], sqnr[scores]"
    )
    assert "needs" in str(gate.missing({"size", "sqnr[boxes2]"}))
    with pytest.raises(UsageError, match=r"top1 is not measured per output; .*sqnr"):
        Gate.parse("top1[boxes] >= 30%")


def test_what_could_not_be_counted_is_said() -> None:
    gate = Gate.parse("macs <= 100")
    assert gate.missing({"size"}, {"macs": "two Loops have no count"}) == (
        "gate 'macs <= 100' cannot be judged: two Loops have no count"
    )
    assert "cannot be judged: macs needs" in str(gate.missing({"size"}, {"memory": "other"}))


def test_an_output_that_could_not_be_compared_fails_the_gate() -> None:
    base = {"sqnr": math.inf, "sqnr[a]": math.inf, "sqnr[b]": math.inf}
    whole = Gate.parse("sqnr >= 20").judge(base, {"sqnr": 50.0, "sqnr[a]": 50.0})
    assert not whole.passed
    assert "sqnr[b] could not be measured, since the output's shape" in whole.message
    assert whole.message.endswith("a gate may name another output: sqnr[a]")
    single = Gate.parse("sqnr[b] >= 20").judge(base, {"sqnr": 50.0, "sqnr[a]": 50.0})
    assert not single.passed
    assert single.message.endswith("are not the original's")
    assert Gate.parse("sqnr[a] >= 20").judge(base, {"sqnr": 50.0, "sqnr[a]": 50.0}).passed


def test_an_equal_output_has_no_noise() -> None:
    verdict = Gate.parse("sqnr >= 20").judge({}, {"sqnr": math.inf})
    assert verdict.message == "sqnr >= 20: the float outputs are equal"
    assert not Gate.parse("sqnr >= 20").judge({}, {"sqnr": -math.inf}).passed
