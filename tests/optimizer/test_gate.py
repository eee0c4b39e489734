"""Gate expressions: what is read, what is refused and how, and the verdicts."""

import math

import pytest

from onnx_lathe.errors import UsageError
from onnx_lathe.optimizer.gate import Gate, parse_gates
from onnx_lathe.optimizer.judging.intervals import Interval
from onnx_lathe.optimizer.judging.metrics import METRICS, Kind
from onnx_lathe.optimizer.judging.numbers import interval_words

BASE = {"top1": 0.995, "size": 1_725_000.0, "latency": 3.0, "sqnr": math.inf}


@pytest.mark.parametrize(
    "text, metric, form, op, bound",
    [
        ("top1 drop <= 0.5%", "top1", "drop", "<=", 0.005),
        ("top1 drop <= 0", "top1", "drop", "<=", 0.0),
        ("top1 drop <= 50%", "top1", "drop", "<=", 0.5),
        ("top1 drop <= -1%", "top1", "drop", "<=", -0.01),
        ("TOP1 Drop<=.5 %", "top1", "drop", "<=", 0.005),
        ("top1 >= 98%", "top1", "value", ">=", 0.98),
        ("top1 ≥ 0.98", "top1", "value", ">=", 0.98),
        ("top5 > 99.5%", "top5", "value", ">", 0.995),
        ("agreement >= 1", "agreement", "value", ">=", 1.0),
        ("sparsity >= 90%", "sparsity", "value", ">=", 0.9),
        ("sqnr >= 20", "sqnr", "value", ">=", 20.0),
        ("sqnr >= -3.5 dB", "sqnr", "value", ">=", -3.5),
        ("size ratio >= 10", "size", "ratio", ">=", 10.0),
        ("size ratio >= 1e1x", "size", "ratio", ">=", 10.0),
        ("size <= 1.5 MB", "size", "value", "<=", 1_500_000.0),
        ("latency ratio > 1.5", "latency", "ratio", ">", 1.5),
        ("latency < 2ms", "latency", "value", "<", 2.0),
        ("macs ratio >= 2", "macs", "ratio", ">=", 2.0),
        ("wer rise <= 0.2%", "wer", "rise", "<=", 0.002),
        ("cosine >= 0.999", "cosine", "value", ">=", 0.999),
        ("memory <= 20 MB", "memory", "value", "<=", 20_000_000.0),
    ],
)
def test_reads(text: str, metric: str, form: str, op: str, bound: float) -> None:
    assert Gate.parse(text) == Gate(metric, form, op, bound)


@pytest.mark.parametrize(
    "text, reason",
    [
        ("top1 drop <= 0.5", "write 0.5% or, if meant, 50%"),
        ("top1 drop <= 0.005", "write 0.005% or, if meant, 0.5%"),
        ("top1 >= 98", "write 98%"),
        ("top1 >= 101%", "more than everything"),
        ("top1 drop >= 1%", "the worse the model is; write '<='"),
        ("top1 <= 98%", "the worse the model is; write '>='"),
        ("size ratio <= 10", "the worse the model is; write '>='"),
        ("size >= 10", "the worse the model is; write '<='"),
        ("top1 == 98%", "asks for an exact value; write '>='"),
        ("accuracy >= 98%", "did you mean 'top1'?"),
        ("latancy <= 3", "did you mean 'latency'?"),
        ("zzz <= 3", "there are top1, top5"),
        ("size drop >= 5%", "write 'size' or 'size ratio'"),
        ("top1 ratio >= 1", "write 'top1' or 'top1 drop'"),
        ("agreement drop <= 1%", "write 'agreement'"),
        ("top1 value >= 98%", "'top1 value' cannot be judged"),
        ("size ratio >= 10%", "the unit '%' does not fit"),
        ("top1 >= 5 dB", "plain number or one with %"),
        ("wer drop <= 1%", "write 'wer' or 'wer rise'"),
        ("wer >= 1%", "the worse the model is; write '<='"),
        ("wer rise <= 0.5", "write 0.5% or, if meant, 50%"),
        ("iou >= 50%", "did you mean 'miou'?"),
        ("size ratio >= 2 relative", "only a drop or a rise is relative"),
        ("top1 drop <= 1 relative", "write 1% or, if meant, 100%"),
        ("size ratio >= 0", "must be positive"),
        ("size <= -1", "must be positive"),
        ("size <= 9e999", "too large"),
        ("top1", "is not 'metric [drop|ratio] <= number'"),
        ("top1 >= nan", "is not 'metric [drop|ratio] <= number'"),
        ("top1 >= 1\n2", "is not 'metric [drop|ratio] <= number'"),
    ],
)
def test_refuses(text: str, reason: str) -> None:
    with pytest.raises(UsageError) as refused:
        Gate.parse(text)
    message = str(refused.value)
    assert reason in message
    assert f"gate '{' '.join(text.split())}'" in message
    assert "\n" not in message


def test_several_in_one_text() -> None:
    gates = parse_gates(["top1 drop <= 0.5%; size ratio >= 10", "sqnr >= 20, sparsity >= 90%,"])
    assert [str(gate) for gate in gates] == [
        "top1 drop <= 0.5%",
        "size ratio >= 10",
        "sqnr >= 20",
        "sparsity >= 90%",
    ]
    assert parse_gates([]) == ()


@pytest.mark.parametrize(
    "text, reason", [(" ", "empty"), (";", "empty"), ("top1 drop <= 0,5%", "write a decimal point")]
)
def test_refuses_lists(text: str, reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        parse_gates([text])


@pytest.mark.parametrize(
    "text, candidate, passed, measured, margin",
    [
        (
            "top1 drop <= 0.5%",
            {"top1": 0.99},
            True,
            0.005,
            0.0,
        ),  # 0.995 - 0.99 is a little more than 0.005 in floating point
        ("top1 drop < 0.5%", {"top1": 0.99}, False, 0.005, 0.0),
        ("top1 drop <= 0.5%", {"top1": 0.9899}, False, 0.0051, -0.0001),
        ("top1 drop <= 0.5%", {"top1": 0.999}, True, -0.004, 0.009),
        ("top1 >= 98%", {"top1": 0.98}, True, 0.98, 0.0),
        ("size ratio >= 10", {"size": 172_500.0}, True, 10.0, 0.0),
        ("size ratio >= 10", {"size": 172_501.0}, False, 1_725_000 / 172_501, 1_725_000 / 172_501 - 10),
        ("size <= 1 MB", {"size": 999_999.0}, True, 999_999.0, 1.0),
        ("latency ratio >= 1.5", {"latency": 1.5}, True, 2.0, 0.5),
        ("sqnr >= 20", {"sqnr": 19.9}, False, 19.9, -0.1),
        ("sqnr >= 20", {"sqnr": math.inf}, True, math.inf, math.inf),
    ],
)
def test_verdicts(
    text: str, candidate: dict[str, float], passed: bool, measured: float, margin: float
) -> None:
    verdict = Gate.parse(text).judge(BASE, candidate)
    assert verdict.passed is passed
    assert verdict.measured == pytest.approx(measured, rel=1e-12)
    assert verdict.margin == pytest.approx(margin, rel=1e-9, abs=1e-12)
    assert verdict.needed == Gate.parse(text).bound
    assert verdict.gate == str(Gate.parse(text))
    assert ("to spare" in verdict.message or "are equal" in verdict.message) is passed


def test_messages_carry_units() -> None:
    drop = Gate.parse("top1 drop <= 0.5%").judge(BASE, {"top1": 0.9891})
    assert drop.message == "top1 drop <= 0.5%: 0.59 points (99.5 % -> 98.91 %), missed by 0.09 points"
    size = Gate.parse("size ratio >= 10").judge(BASE, {"size": 86_250.0})
    assert size.message == "size ratio >= 10: 20x (1.725 MB -> 86.25 kB), 10x to spare"
    latency = Gate.parse("latency <= 2").judge({}, {"latency": 1.25})
    assert latency.message == "latency <= 2 ms: 1.25 ms, 0.75 ms to spare"
    macs = Gate.parse("macs <= 1000000").judge({}, {"macs": 1_234_567})
    assert macs.message == "macs <= 1000000: 1,234,567, missed by 234,567"


@pytest.mark.parametrize(
    "low, high, kind, words",
    [
        (-0.003, 0.005, "fraction", "95 % interval -0.30 to 0.50"),
        (0.981, 0.993, "fraction", "95 % interval 98.1 to 99.3"),
        (7.85, 7.94, "decibel", "95 % interval 7.850 to 7.940"),
        (0.99999999, 1.0, "number", ""),
        (2.0, 2.0, "number", ""),
        (20.0, math.inf, "decibel", "95 % interval 20 to inf"),
    ],
)
def test_an_interval_has_the_digits_that_it_can_tell(low: float, high: float, kind: Kind, words: str) -> None:
    assert interval_words(Interval(low, high, 0.95, "Tango", 100), kind) == words


@pytest.mark.parametrize(
    "text, base, candidate, reason",
    [
        ("top1 >= 1%", {}, {}, "top1 needs evaluation data with labels"),
        ("top1 drop <= 1%", {}, {"top1": 1.0}, "top1 of the original was not measured"),
        ("top1 >= 1%", {}, {"top1": math.nan}, "not a number"),
        ("top1 drop <= 1%", {"top1": math.nan}, {"top1": 1.0}, "not a number"),
        ("latency <= 3", {}, {"latency": math.inf}, "not a number"),
        ("size ratio >= 2", {"size": 10.0}, {"size": 0.0}, "not above zero"),
        ("size ratio >= 2", {"size": 0.0}, {"size": 10.0}, "not above zero"),
    ],
)
def test_what_was_not_measured_is_never_passed(
    text: str, base: dict[str, float], candidate: dict[str, float], reason: str
) -> None:
    verdict = Gate.parse(text).judge(base, candidate)
    assert not verdict.passed
    assert verdict.measured is None
    assert verdict.margin is None
    assert reason in verdict.message


def test_missing_says_what_to_give() -> None:
    gate = Gate.parse("latency ratio >= 2")
    assert gate.missing({"latency", "size"}) is None
    assert gate.missing({"size"}) == (
        "gate 'latency ratio >= 2' cannot be judged: latency needs a run that is timed (without --no-latency)"
    )
    for name, metric in METRICS.items():
        form = "" if "value" in metric.forms else " ratio"
        assert (
            Gate.parse(f"{name}{form} {'>=' if metric.higher_is_better else '<='} 1").missing([]) is not None
        )


@pytest.mark.parametrize(
    "text, printed",
    [
        ("latency <= 100 ms", "latency <= 100 ms"),
        ("latency < .5", "latency < 0.5 ms"),
        ("size <= 1500 kB", "size <= 1.5 MB"),
        ("size <= 1234567", "size <= 1.234567 MB"),
        ("memory <= 999", "memory <= 999 B"),
        ("top1 drop <= 10% relative", "top1 drop <= 10% relative"),
        ("latency ratio >= 2x", "latency ratio >= 2"),
        ("size <= 0.1 GB", "size <= 100 MB"),
    ],
)
def test_a_bound_is_printed_with_its_unit_and_read_back(text: str, printed: str) -> None:
    gate = Gate.parse(text)
    assert str(gate) == printed
    assert Gate.parse(printed) == gate
