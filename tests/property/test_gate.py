"""Gates: writing and reading agree, and a better candidate never turns a pass into a failure."""

from hypothesis import assume, given
from hypothesis import strategies as st

from onnx_lathe.optimizer.gate import Gate, parse_gates
from onnx_lathe.optimizer.judging.metrics import METRICS

POSITIVE = st.floats(1e-6, 1e12)


@st.composite
def gates(draw: st.DrawFn) -> Gate:
    name = draw(st.sampled_from(sorted(METRICS)))
    metric = METRICS[name]
    form = draw(st.sampled_from(metric.forms))
    upper = form in ("drop", "rise") or (form == "value" and not metric.higher_is_better)
    op = draw(st.sampled_from(("<=", "<") if upper else (">=", ">")))
    if form in ("drop", "rise"):
        bound = draw(st.floats(-1, 1))
    elif form == "ratio" or metric.kind not in ("fraction", "decibel", "number"):
        bound = draw(POSITIVE)
    else:
        bound = draw(st.floats(0, 1) if metric.kind == "fraction" else st.floats(-100, 200))
    relative = form in ("drop", "rise") and draw(st.booleans())
    return Gate(name, form, op, bound, relative=relative)


@given(st.lists(gates(), min_size=1, max_size=4), st.sampled_from(["; ", ", ", ";"]))
def test_what_is_written_is_read_again(several: list[Gate], joint: str) -> None:
    assert list(parse_gates([joint.join(map(str, several))])) == several


@given(st.floats(0, 1))
def test_percent_and_fraction_are_the_same(fraction: float) -> None:
    plain = Gate.parse(f"top1 >= {fraction:.12f}")
    percent = Gate.parse(f"top1 >= {fraction:.12f}e2%")
    assert plain == percent


@given(gates(), POSITIVE, POSITIVE, POSITIVE)
def test_a_better_candidate_passes_too(gate: Gate, base: float, one: float, other: float) -> None:
    metric = METRICS[gate.metric]
    worse, better = sorted((one, other), reverse=not metric.higher_is_better)
    first = gate.judge({gate.metric: base}, {gate.metric: worse})
    second = gate.judge({gate.metric: base}, {gate.metric: better})
    assert second.passed >= first.passed
    assert first.margin is not None
    assert second.margin is not None
    assert second.margin >= first.margin


@given(gates(), POSITIVE, POSITIVE)
def test_a_clear_margin_decides(gate: Gate, base: float, new: float) -> None:
    verdict = gate.judge({gate.metric: base}, {gate.metric: new})
    assert verdict.margin is not None
    assume(abs(verdict.margin) > 1e-8 * max(1.0, abs(gate.bound)))
    assert verdict.passed == (verdict.margin > 0)
