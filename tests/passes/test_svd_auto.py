"""svd(rank=auto): ranks by the error on samples that are held back, within one budget."""

import numpy as np
import pytest

from onnx_lathe.errors import UsageError
from onnx_lathe.optimizer.inspect import measure
from onnx_lathe.passes.core.options import configure
from onnx_lathe.passes.numerics.rank.responses import Responses, errors_by_rank
from onnx_lathe.passes.svd.svd import Svd
from tests.support.builders import build, random
from tests.support.splitting import deviation, low, svd

TWO = "(float[N, 32] x) => (float[N, 32] y) { h = Gemm (x, a)  r = Relu (h)  y = Gemm (r, b) }"


def test_the_layer_that_loses_least_gives_most() -> None:
    model = build(TWO, a=low(32, 32, rank=6), b=random(32, 32))
    data = {"x": random(400, 32)}
    after, report = svd(model, data, rank="auto", macs=0.7, multiple=1)
    assert [edit.node for edit in report.edits] == ["Gemm_0"]
    assert "rank 6 of 32" in report.edits[0].what
    assert float(report.edits[0].what.split(" % of held-back")[0].split()[-1]) < 1e-6
    assert measure(after).macs <= 0.7 * measure(model).macs
    assert deviation(model, after, data) < 1e-3
    again, second = svd(after, data, rank="auto", macs=0.7, multiple=1)
    assert again is after
    assert not second.edits


def test_few_rows_do_not_look_better_than_they_are() -> None:
    """Of 30 samples in 64 dimensions, 23 directions explain all that was fitted, and little of what was not."""
    fitted, held = Responses(64), Responses(64)
    rows = np.random.default_rng(0).standard_normal((30, 64)).astype(np.float32)
    fitted.add(rows[:23])
    held.add(rows[23:])
    assert errors_by_rank(fitted, Responses(64), 64)[24] < 1e-6
    assert errors_by_rank(fitted, held, 64)[24] > 0.4
    assert errors_by_rank(fitted, held, 64)[64] < 1e-6


def test_what_is_held_back_judges_a_layer_of_few_rows() -> None:
    """Its 60 samples lie in as many of 128 dimensions: by energy, rank 64 loses nothing."""
    model = build("(float[N, 256] x) => (float[N, 128] y) { y = Gemm (x, a) }", a=random(256, 128))
    data = {"x": random(60, 256)}
    (greedy,) = svd(model, data, macs=0.9, multiple=64)[1].edits
    (judged,) = svd(model, data, macs=0.9, multiple=64, rank="auto")[1].edits
    assert "rank 64 of 128" in greedy.what
    assert "100 % of energy kept" in greedy.what
    assert 5 < float(judged.what.split(" % of held-back")[0].split()[-1]) < 95


def test_a_budget_that_cannot_be_met_takes_the_least_ranks() -> None:
    model = build(TWO, a=random(32, 32), b=random(32, 32))
    for rank in ("auto", None):
        _, report = svd(model, {"x": random(80, 32)}, rank=rank, macs=0.01, multiple=1, least=0.25)
        assert [edit.what.split(",")[0] for edit in report.edits] == ["rank 8 of 32"] * 2
        (warning,) = report.warnings
        assert "svd leaves 50 % of the network's MACs, and macs=0.01 asks for less" in warning
        assert "multiple= (1) or least= (0.25)" in warning
    assert not svd(model, {"x": random(80, 32)}, macs=0.5, multiple=1, least=0.25)[1].warnings


def test_ranks_that_are_given_are_held_to_no_budget_that_is_not() -> None:
    model, data = build(TWO, a=random(32, 32), b=random(32, 32)), {"x": random(80, 32)}
    ranks = {"a": 14, "b": 14}
    assert not any("asks for less" in one for one in svd(model, data, layers=ranks)[1].warnings)
    assert any("asks for less" in one for one in svd(model, data, layers=ranks, macs=0.5)[1].warnings)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"rank": "auto", "method": "weight"},
            "rank=auto measures responses, and the method is weight; leave one of them out",
        ),
        ({"rank": "auto", "energy": 0.9}, "rank and energy both choose ranks"),
        ({"rank": "auto", "always": True}, "always splits what rank=, energy= or layers= choose"),
        ({"rank": "most"}, "must be one of auto, not 'most'"),
        ({"rank": 0}, "must be at least 1, not 0"),
    ],
)
def test_options_that_do_not_go_together(options: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        configure(Svd, options)
