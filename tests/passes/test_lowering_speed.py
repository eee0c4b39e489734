"""Layers that take longer on integers go back to float: by profiles that a test makes up, and by real ones."""

import numpy as np
import onnx
import pytest

from onnx_lathe.optimizer.step import apply_pass
from onnx_lathe.passes.core.options import configure
from onnx_lathe.passes.core.services import Context
from onnx_lathe.passes.lowering.onnxruntime import Lowering
from onnx_lathe.protocols import Profile, Region
from onnx_lathe.runtime.running import ort, profiling
from onnx_lathe.runtime.running.profiling import ModelProfiler
from onnx_lathe.runtime.targets.ort.ort import PLACEMENT
from tests.support.placement import quantized
from tests.support.regions import LAYERS, X, network, on_integers


class MadeUp:
    """A profiler for which a node takes the milliseconds of a table, by whether it is on integers."""

    def __init__(self, floats: dict[str, float], integers: dict[str, float], border: float = 0.1) -> None:
        self.floats, self.integers, self.border = floats, integers, border

    def latencies(self, base: onnx.ModelProto, candidate: onnx.ModelProto) -> tuple[float, float]:
        return self.profile(base).total, self.profile(candidate).total

    def profile(self, model: onnx.ModelProto) -> Profile:
        integers = on_integers(model)
        regions = [{"one", "two", "sum"}, {"three", "pool", "head"}]
        nodes = {}
        found = []
        for node in model.graph.node:
            if node.name in self.floats:
                nodes[node.name] = (self.integers if node.name in integers else self.floats)[node.name]
        for names in regions:
            there = names & integers
            if there:
                found.append(Region(frozenset(there), self.border + sum(nodes[name] for name in there)))
        return Profile(nodes, found, sum(nodes.values()) + self.border * len(found))


def lowered(profiler: object | None) -> tuple[onnx.ModelProto, dict[str, str]]:
    model, _ = quantized(network(), PLACEMENT, X)
    context = Context(placement=PLACEMENT, profiler=profiler)  # type: ignore[arg-type]
    after, report = apply_pass(configure(Lowering, {}), model, context)
    return after, {skip.node: skip.reason for skip in report.skips}


FLOATS = {"one": 1.0, "two": 1.0, "sum": 0.2, "three": 1.0, "pool": 0.1, "head": 0.1}
FAST = {"one": 0.4, "two": 0.4, "sum": 0.1, "three": 0.5, "pool": 0.05, "head": 0.05}


def test_what_pays_stays() -> None:
    after, skips = lowered(MadeUp(FLOATS, FAST))
    assert on_integers(after) >= {"one", "two", "three"}
    assert skips == {}


def test_a_region_that_does_not_pay_goes_back_with_its_milliseconds() -> None:
    """The layer alone would be faster; the quantizing at its borders is what costs."""
    after, skips = lowered(MadeUp(FLOATS, FAST | {"three": 0.8}, border=0.6))
    assert "three" not in on_integers(after)
    assert {"one", "two"} <= on_integers(after)
    reason = "on integers it takes 1.5 ms, with the quantizing around it, in float 1.2 ms"
    assert skips == dict.fromkeys(("three", "pool", "head"), reason)


def test_a_layer_inside_a_region_that_pays() -> None:
    after, skips = lowered(MadeUp(FLOATS, FAST | {"one": 0.2, "two": 1.5}))
    assert "two" not in on_integers(after)
    assert {"one", "three"} <= on_integers(after)
    assert list(skips) == ["two"]


def test_a_network_that_does_not_pay_is_float() -> None:
    after, skips = lowered(MadeUp(FLOATS, dict.fromkeys(FLOATS, 3.0)))
    assert "QuantizeLinear" not in {node.op_type for node in after.graph.node}
    assert set(LAYERS) <= skips.keys()


def test_without_a_profiler_everything_stays() -> None:
    after, skips = lowered(None)
    assert on_integers(after) >= {"one", "two", "three"}
    assert skips == {}


def test_a_real_profile_knows_regions_and_nodes() -> None:
    after, _ = lowered(None)
    found = ModelProfiler(lambda session: ort.random_feeds(session, 1)).profile(after)
    assert found is not None
    assert {name for region in found.regions for name in region.nodes} >= {"one", "two", "three"}
    together = next(region for region in found.regions if "one" in region.nodes)
    assert "two" in together.nodes
    assert "three" not in together.nodes
    assert 0 < sum(region.ms for region in found.regions) <= found.total
    assert found.nodes["soft"] > 0


def test_a_real_profiler_decides_and_the_result_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever it decides on this machine, the model stays near the float one."""
    monkeypatch.setattr(profiling, "BUDGET_S", 0.02)
    after, _ = lowered(ModelProfiler(lambda session: ort.random_feeds(session, 1)))
    x = np.random.default_rng(7).standard_normal((4, 8, 6, 6)).astype(np.float32)
    wanted, found = (ort.run(ort.session(model), {"x": x})["y"] for model in (network(), after))
    assert np.abs(wanted - found).max() < 0.05 * np.abs(wanted).max()
