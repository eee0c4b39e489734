"""Where a search begins: what the passes share out themselves; single steps from there; and what trials have in common."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest

from onnx_lathe.optimizer.gate import parse_gates
from onnx_lathe.optimizer.recipe import parse_calls
from onnx_lathe.optimizer.search import costs as costing
from onnx_lathe.optimizer.search.allocated import allocated
from onnx_lathe.optimizer.search.bench import Bench, Measured
from onnx_lathe.optimizer.search.clock import Clock
from onnx_lathe.optimizer.search.costs import Costs
from onnx_lathe.optimizer.search.goal import Goal
from onnx_lathe.optimizer.search.layerwise import Composer
from onnx_lathe.optimizer.search.proposals import Option, Proposals
from onnx_lathe.optimizer.search.space import Dimension, Space
from onnx_lathe.optimizer.search.strengths import default_space
from onnx_lathe.optimizer.step import apply_pass
from onnx_lathe.passes.core.options import configure
from onnx_lathe.passes.core.registry import find
from onnx_lathe.passes.core.services import Context
from onnx_lathe.runtime.running.calibration import StreamingCalibrator
from tests.support.builders import build, random
from tests.support.splitting import Arrays, low

NETWORK = """(float[N, 8, 6, 6] x) => (float[N, 6] y) {
    a = Conv <pads=[1, 1, 1, 1]> (x, w1, b1)  r = Relu (a)  b = Conv <pads=[1, 1, 1, 1]> (r, w2, b2)
    p = GlobalAveragePool (b)  f = Flatten (p)  y = Gemm (f, w3)
}"""


class Counting(StreamingCalibrator):
    """Counts the runs of the data."""

    runs = 0

    def observe(self, model: onnx.ModelProto, tensors: Sequence[str]) -> Any:
        self.runs += 1
        return super().observe(model, tensors)


@pytest.fixture
def model() -> onnx.ModelProto:
    """The second convolution is of low rank, the first is not."""
    return build(
        NETWORK, w1=random(32, 8, 3, 3), w2=low(32, 32, 3, 3, rank=2), w3=random(32, 6), b1=random(32), b2=random(32)
    )  # fmt: skip


def calibrator() -> Counting:
    return Counting(Arrays(x=random(64, 8, 6, 6)))


def bench_of(model: onnx.ModelProto, passes: str, context: Context) -> Bench:
    steps = parse_calls(passes, "passes")
    services: Any = SimpleNamespace(context=lambda title: context)
    dimensions = default_space(steps, model, False, context)
    return Bench(
        Space(tuple(steps), dimensions), Goal("macs", [], 1.0), model, 0, [], None, services, Clock(1e12), print  # type: ignore[arg-type]
    )  # fmt: skip


@pytest.mark.parametrize("passes", ["svd", "tucker"])
def test_a_search_starts_from_the_ranks_that_a_pass_shares_out(passes: str, model: onnx.ModelProto) -> None:
    bench = bench_of(model, passes, Context(calibrator=calibrator()))
    found = allocated(bench, Clock(time.time() + 1e6), lambda text: None)
    assert found
    ladders = {one.layer: one for one in bench.space.dimensions}
    for settings in found:  # the layer of low rank gives most
        rank, other = (settings[ladders[name].name] for name in ("w2", "w1"))
        assert rank in ladders["w2"].levels
        assert 0 < rank <= (other or 32)  # type: ignore[operator]
    assert len({repr(settings) for settings in found}) == len(found)
    given = f"{passes}(rank=8)"
    assert not allocated(
        bench_of(model, given, Context(calibrator=calibrator())), Clock(time.time() + 1e6), print
    )


def test_zeros_start_where_one_threshold_puts_them(model: onnx.ModelProto) -> None:
    """The weights of the second layer are the smallest."""
    bench = bench_of(model, "prune, codebook", Context())
    found = allocated(bench, Clock(time.time() + 1e6), lambda text: None)
    assert len(found) >= 4
    for settings in found:
        assert settings["prune.layers[w2]"] > settings["prune.layers[w1]"]  # type: ignore[operator]
        assert settings["codebook.layers[w1]"] != 0
    bench.composer = Composer.of(model, bench.space)
    assert bench.composer is not None
    assert allocated(bench, Clock(time.time() + 1e6), print) == []  # there is a whole table then
    after, report = apply_pass(
        configure(find("prune"), {"sparsity": 0.5, "scope": "global"}), model, Context()
    )
    zeros = {
        one.name: float((onnx.numpy_helper.to_array(one) == 0).mean()) for one in after.graph.initializer
    }
    assert report.chosen == pytest.approx({name: zeros[name] for name in report.chosen})


def test_the_budget_bounds_the_start(model: onnx.ModelProto) -> None:
    bench = bench_of(model, "svd", Context(calibrator=calibrator()))
    assert allocated(bench, Clock(time.time()), lambda text: None) == []


def test_trials_share_what_their_layers_answered(model: onnx.ModelProto) -> None:
    """A further trial runs the data for what is behind the first layer that differs, and gives what it would alone."""

    def split(own: Mapping[str, int], context: Context) -> onnx.ModelProto:
        return apply_pass(configure(find("svd"), {"layers": own}), model, context)[0]

    data = calibrator()
    context = Context(calibrator=data)
    split({"w1": 8, "w2": 4, "w3": 0}, context)
    first, data.runs = data.runs, 0
    again = split({"w1": 8, "w2": 8, "w3": 0}, context)
    assert (first > 2, data.runs) == (True, 0)
    split({"w1": 4, "w2": 8, "w3": 0}, context)
    assert 0 < data.runs < first
    alone = split({"w1": 8, "w2": 8, "w3": 0}, Context(calibrator=StreamingCalibrator(data.data)))
    assert again.SerializeToString() == alone.SerializeToString()


def test_the_layer_with_most_to_gain_is_next() -> None:
    dimensions = tuple(Dimension(name, 0, ("layers",), name, (0, 1, 2)) for name in "abc")
    table = {
        name: [Option({name: level}, 3.0 - level, worth * level**2) for level in range(3)]
        for name, worth in (("a", 3.0), ("b", 1.0), ("c", 2.0))
    }
    proposals = Proposals(Space(parse_calls("prune", "p"), dimensions), table, 0)
    best: dict[str, Any] = dict.fromkeys("abc", 0)
    tried: set[str] = set()
    order = []
    while (moved := proposals.climb(best, tried)) is not None:
        tried.add(repr(sorted(moved.items())))
        order += [name for name in "abc" if moved[name] != best[name]]
    assert order == ["b", "c", "a"]
    assert proposals.climb(dict.fromkeys("abc", 2), set()) is None


class Timed:
    """A candidate that seems fast where something interrupts the original's runs."""

    def __init__(self, *found: float) -> None:
        self.found = list(found)

    def base(self, name: str) -> float:
        return 1.0

    def of(self, model: object, names: object) -> dict[str, float]:
        return {"latency": self.found.pop(0)} if "latency" in names else {}  # type: ignore[operator]


class Faithful:
    base: Mapping[str, float] = {"top1": 0.9}

    def measure(self, model: object) -> Measured:
        return Measured({"top1": 0.9}, {"top1": 0.001})


@pytest.mark.parametrize("times, best, ratio", [((0.2, 0.7), 0.6, 0.7), ((0.9,), 0.6, 0.9)])
def test_the_fastest_is_timed_twice(
    times: tuple[float, ...], best: float, ratio: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    goal = Goal("latency", parse_gates(["top1 drop <= 1%"]), 1.0)
    bench = Bench(
        Space((), ()), goal, onnx.ModelProto(), 0, [Faithful()], Timed(*times), None, Clock(1e12), print
    )  # type: ignore[arg-type, list-item]
    bench.best = best
    monkeypatch.setattr(bench, "candidate", lambda settings: onnx.ModelProto())
    outcome = bench.try_out({})
    assert (outcome.ratio, outcome.passed) == (ratio, True)
    assert not bench.costs.found  # type: ignore[attr-defined]
    assert np.isfinite(outcome.value)


def test_rounds_that_others_disturb_say_nothing(
    model: onnx.ModelProto, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In most rounds another program takes the processor while the candidate runs; few rounds are not enough."""
    asked: list[int] = []

    def times(sessions: object, feeds: object, *, budget_s: float, most: int = 200) -> np.ndarray:
        asked.append(most)
        return np.array([[1.0, 0.5], *[[1.0, 9.0]] * 4] * (1 if len(asked) == 1 else 6))

    onnx.save(model, tmp_path / "model.onnx")
    costs = Costs(tmp_path / "model.onnx", model, None, 1, {})  # type: ignore[arg-type]
    monkeypatch.setattr(costing.ort, "times", times)
    monkeypatch.setattr(costing, "sample_feeds", lambda *given: {})
    monkeypatch.setattr(costs, "base", lambda name: 2.0)
    assert costs.of(model, {"latency"}) == {"latency": 1.0}
    assert asked == [200, costing.ROUNDS]
