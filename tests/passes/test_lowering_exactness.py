"""Nodes that cost the outputs what the canonical form keeps go back to float, by nearness that a test makes up."""

import math
from collections.abc import Collection

import numpy as np
import onnx
import pytest

from onnx_lathe.optimizer.step import apply_pass
from onnx_lathe.passes.core.options import configure
from onnx_lathe.passes.core.report import PassReport
from onnx_lathe.passes.core.services import Context
from onnx_lathe.passes.lowering.exactness import MOST_TRIALS, inexact_nodes, light_nodes
from onnx_lathe.passes.lowering.onnxruntime import Lowering
from onnx_lathe.passes.lowering.ort_integers.choice import UNCOMPARED
from onnx_lathe.protocols import Profile
from onnx_lathe.runtime.targets.ort.ort import PLACEMENT
from tests.support.placement import quantized
from tests.support.regions import LAYERS, X, network, on_integers

CANONICAL_DB = 30.0


class Costly:
    """A fidelity for which these nodes on integers leave `low` dB, all others 30, the canonical form too."""

    def __init__(self, *costly: str, low: float = 22.0) -> None:
        self.costly, self.low = {*costly}, low

    def sqnr(self, model: onnx.ModelProto, plain: bool = False) -> float | None:
        return self.low if plain and self.costly & on_integers(model) else CANONICAL_DB


class Blind:
    def sqnr(self, model: onnx.ModelProto, plain: bool = False) -> float | None:
        return None


class Clock:
    """A profiler for which a model with QuantizeLinear nodes takes this long, one without 1 ms."""

    def __init__(self, ms: float) -> None:
        self.ms = ms

    def latencies(self, base: onnx.ModelProto, candidate: onnx.ModelProto) -> tuple[float, float]:
        return self._time(base), self._time(candidate)

    def profile(self, model: onnx.ModelProto) -> Profile:
        return Profile({}, [], self._time(model))

    def _time(self, model: onnx.ModelProto) -> float:
        partly = {"two"}.isdisjoint(on_integers(model)) and on_integers(model)
        return self.ms if partly else 0.5 if on_integers(model) else 1.0


class Unloadable(Clock):
    """A profiler that cannot time a model with layers on integers."""

    def __init__(self) -> None:
        super().__init__(1.0)

    def latencies(self, base: onnx.ModelProto, candidate: onnx.ModelProto) -> tuple[float, float]:
        assert not on_integers(base)
        return super().latencies(base, candidate)


class Spread(Costly):
    """A fidelity for which no layer alone is to blame: each of the four on integers takes its part."""

    def __init__(self, low: float = 28.5, least: int = 1) -> None:
        self.low, self.least = low, least

    def sqnr(self, model: onnx.ModelProto, plain: bool = False) -> float | None:
        there = len(on_integers(model) & {*LAYERS})
        return self.low if plain and there >= self.least else CANONICAL_DB


def is_rough(model: onnx.ModelProto) -> bool:
    """Whether INT8 weights are within 7 bits."""
    stored = [
        onnx.numpy_helper.to_array(one) for one in model.graph.initializer if one.data_type == 3 and one.dims
    ]
    return bool(stored) and max(int(np.abs(one.astype(int)).max()) for one in stored) <= 64


def lowered(
    fidelity: object, profiler: object | None = None, **options: object
) -> tuple[onnx.ModelProto, PassReport]:
    model, _ = quantized(network(), PLACEMENT, X)
    context = Context(placement=PLACEMENT, fidelity=fidelity, profiler=profiler)  # type: ignore[arg-type]
    return apply_pass(configure(Lowering, options), model, context)


def test_the_node_to_blame_is_left_in_float_and_the_loss_is_said() -> None:
    after, report = lowered(Costly("two"))
    assert "two" not in on_integers(after)
    assert {"one", "three", "head"} <= on_integers(after)
    reasons = {skip.node: skip.reason for skip in report.skips}
    assert reasons["two"] == "on integers the outputs are at 22.0 dB, with it in float at 30.0 dB"
    said = "on integers its outputs are at 22.0 dB on calibration data, those of the model at 30.0 dB; left in float for that: 1"
    assert report.warnings == [said]


def test_a_loss_below_1_db_is_left() -> None:
    after, report = lowered(Costly("two", low=29.1))
    assert {"one", "two", "three"} <= on_integers(after)
    assert not report.warnings
    assert not report.skips


def test_outputs_that_cannot_be_compared_change_nothing() -> None:
    after, report = lowered(Blind())
    assert {"one", "two", "three"} <= on_integers(after)
    assert report.warnings == [UNCOMPARED]


@pytest.mark.parametrize("profiler", [None, Clock(0.2)], ids=["untimed", "fast"])
def test_a_loss_that_is_spread_over_the_layers_leaves_them_on_integers(profiler: Clock | None) -> None:
    after, report = lowered(Spread(), profiler)
    assert {*LAYERS} <= on_integers(after)
    assert not report.skips
    said = (
        "on integers its outputs are at 28.5 dB on calibration data, those of the model at 30.0 dB; with 4 of 4 layers in "
        "float they would be at 30.0 dB, and all stay on integers; int8(min_sqnr=...) leaves layers in float"
    )
    assert report.warnings == [said]


def test_a_form_that_no_session_runs_goes_back_however_many_layers_that_takes() -> None:
    after, report = lowered(Spread(low=-math.inf), Unloadable())
    assert not on_integers(after)
    assert {*LAYERS} <= {skip.node for skip in report.skips}


def test_half_of_the_layers_go_back_and_each_says_that_the_figure_is_of_all() -> None:
    after, report = lowered(Spread(least=3))
    assert on_integers(after) & {*LAYERS} == {"three", "head"}
    reason = "on integers the outputs are at 28.5 dB, with these 2 in float at 30.0 dB"
    assert {skip.node: skip.reason for skip in report.skips} == dict.fromkeys(("one", "two"), reason)


def test_what_weights_of_7_bits_cost_sends_nothing_to_float() -> None:
    class Rough(Costly):
        """Every form of the weights in 7 bits is at 22 dB."""

        def sqnr(self, model: onnx.ModelProto, plain: bool = False) -> float | None:
            return self.low if is_rough(model) else CANONICAL_DB

    after, report = lowered(Rough(), reduce_range=True)
    assert is_rough(after)
    assert {*LAYERS} <= on_integers(after)
    assert not report.warnings
    assert not report.skips


def test_a_loss_beside_that_of_7_bits_is_said_as_such() -> None:
    _, report = lowered(Costly("two"), reduce_range=True)
    assert (
        "those of the model with weights of 7 bits at 30.0 dB; left in float for that: 1"
        in report.warnings[0]
    )


def test_what_float_layers_do_not_mend_is_said() -> None:
    class Everywhere(Costly):
        def sqnr(self, model: onnx.ModelProto, plain: bool = False) -> float | None:
            return self.low if plain else CANONICAL_DB

    after, report = lowered(Everywhere())
    assert {"one", "two", "three"} <= on_integers(after)
    assert "layers in float do not mend that" in report.warnings[0]


@pytest.mark.parametrize("ms, stays", [(0.9, False), (1.02, False), (1.2, True)])
def test_a_model_that_becomes_slower_than_float_by_it_stays_as_it_is(ms: float, stays: bool) -> None:
    after, report = lowered(Costly("two"), Clock(ms))
    assert ("two" in on_integers(after)) is stays
    assert ("takes longer than all in float" in report.warnings[0]) is stays
    assert report.warnings[0].endswith(f"1, with which it takes {ms:.3g} ms instead of 0.5 ms") is not stays


@pytest.mark.parametrize("culprits", [{"n5"}, {"n0"}, {"n12"}, {"n5", "n6"}, {"n2", "n11"}])
def test_few_neighbours_are_found_in_few_trials(culprits: set[str]) -> None:
    names, asked = [f"n{index}" for index in range(13)], []

    def sqnr(floats: Collection[str]) -> float:
        asked.append(floats)
        return 30.0 - 5 * len(culprits - {*floats})

    left, reached = inexact_nodes(names, 29.0, sqnr)
    assert culprits <= {*left}
    assert reached == 30.0
    assert len(asked) <= 1 + 2 * 4
    assert len(left) == 1 or len(culprits) > 1


def test_nothing_is_left_out_in_vain() -> None:
    assert inexact_nodes(["a", "b"], 29.0, lambda floats: 20.0) == ([], 20.0)
    assert inexact_nodes([], 29.0, lambda floats: 40.0)[0] == []


def test_of_two_choices_that_are_enough_the_one_of_few_bytes_is_taken() -> None:
    """Gains in dB and values of weights as they were measured of a pruned AlexNet, whose products hold nearly all."""
    gains = {"c1": 2.2, "c2": 2.7, "c3": 5.9, "c4": 3.6, "c5": 2.8, "fc6": 1.8, "fc7": 1.4, "fc8": 1.7}
    values = (34848, 307200, 663552, 373248, 248832, 21233664, 9437184, 3072000)
    sizes = dict(zip(gains, values, strict=True))
    left, reached = light_nodes(sizes, 23.0, lambda floats: 19.9 + sum(gains[name] for name in floats))
    assert reached >= 23.0
    assert sum(sizes[name] for name in left) < 0.02 * sum(values)


@pytest.mark.parametrize("seed", range(20))
def test_light_nodes_are_enough_and_none_of_them_in_vain(seed: int) -> None:
    rng = np.random.default_rng(seed)
    sizes = {f"n{index}": int(size) for index, size in enumerate(rng.integers(1, 1000, rng.integers(2, 17)))}
    gains = {name: float(rng.exponential(2)) for name in sizes}
    asked: list[Collection[str]] = []

    def sqnr(floats: Collection[str]) -> float:
        asked.append(floats)
        return 12.0 + sum(gains[name] for name in floats)

    left, reached = light_nodes(sizes, 18.0, sqnr)
    enough = sqnr(sizes) >= 18.0
    assert (reached >= 18.0) == enough == bool(left)
    assert left == [name for name in sizes if name in left]
    assert len(asked) <= MOST_TRIALS + 2
    assert all(sqnr([name for name in left if name != one]) < 18.0 for one in left)


def test_a_search_by_bytes_that_takes_too_long_ends_with_enough() -> None:
    sizes = {f"n{index}": index for index in range(200)}
    culprits = {*list(sizes)[::2]}
    left, reached = light_nodes(sizes, 29.0, lambda floats: 30.0 if culprits <= {*floats} else 12.0)
    assert culprits <= {*left}
    assert reached == 30.0
    assert light_nodes({}, 29.0, lambda floats: 30.0) == ([], -math.inf)
