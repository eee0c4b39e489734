"""Lowered models timed as engines: on a GPU that is made up, whose layers cost what a test says."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from onnx_lathe.errors import TargetError
from onnx_lathe.optimizer.step import apply_pass
from onnx_lathe.passes.core.options import configure
from onnx_lathe.passes.core.services import Context
from onnx_lathe.passes.lowering.tensorrt import Lowering
from onnx_lathe.placement import CANONICAL
from onnx_lathe.runtime.targets.core.registry import find
from onnx_lathe.runtime.targets.tensorrt.profiling import EngineProfiler, read_profile
from tests.support import gpu
from tests.support.engine_descriptions import INTERLEAVED, layer, ten
from tests.support.placement import quantized
from tests.support.regions import X, network, on_integers

QUIET = lambda text: None  # noqa: E731
COSTS = {
    "one": 1.0, "two": 1.0, "three": 1.0, "head": 0.2, "Add": 0.3,
    "one|int8": 0.4, "two|int8": 0.4, "three|int8": 0.4, "head|int8": 0.05, "QuantizeLinear": 0.02,
}  # fmt: skip
"""Milliseconds."""
INT8 = [{"Format/Datatype": INTERLEAVED}]


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> gpu.Machine:
    if reason := gpu.missing():
        pytest.skip(reason)
    monkeypatch.setattr("onnx_lathe.runtime.targets.tensorrt.profiling.BUDGET_S", 0.02)
    return gpu.Machine(tmp_path, monkeypatch)


def profiler(machine: gpu.Machine, version: str = "10.13.3.9", **costs: float) -> EngineProfiler:
    target = find(machine.install(version, COSTS | costs).replace("_", "-"))()
    options = target.Config(batch="1:4:8")
    made = target.profiler(options, lambda session, count: {"x": np.resize(X, (count, *X.shape[1:]))}, QUIET)
    assert isinstance(made, EngineProfiler)
    return made


def both() -> tuple[onnx.ModelProto, onnx.ModelProto]:
    """(in float, on integers)."""
    return network(), quantized(network(), CANONICAL, X)[0]


@pytest.mark.parametrize("version", gpu.VERSIONS)
def test_where_the_time_goes(machine: gpu.Machine, version: str) -> None:
    in_float, integers = both()
    with profiler(machine, version) as made:
        found = made.profile(in_float)
        assert {name: found.nodes[name] for name in ("one", "two", "three", "head")} == pytest.approx(
            {"one": 1.0, "two": 1.0, "three": 1.0, "head": 0.2}
        )
        assert found.regions == []
        assert found.nodes["sum"] == pytest.approx(0.3)
        assert found.total == pytest.approx(sum(found.nodes.values()))
        found = made.profile(integers)
    assert found.nodes["two"] == pytest.approx(0.4)
    region = next(one for one in found.regions if "three" in one.nodes)
    assert "two" not in region.nodes
    assert region.ms == pytest.approx(0.42)  # with what quantizes for it


def test_two_models_in_turn(machine: gpu.Machine) -> None:
    in_float, integers = both()
    with profiler(machine) as made:
        base, candidate = made.latencies(in_float, integers)
        assert base == pytest.approx(1 + 1 + 1 + 0.2 + 0.3 + 3 * 0.01, rel=1e-3)
        assert candidate < base / 2
        assert made.latencies(integers, in_float) == pytest.approx((candidate, base), rel=1e-3)
        assert len(made._engines) == 2  # equal models are built once
        folder = Path(made._scratch.name)
        process = made._process[1]
    assert not folder.exists()
    assert process._child.process.poll() is not None


def test_the_engine_is_built_for_the_sample(machine: gpu.Machine) -> None:
    with profiler(machine) as made:
        made.profile(network())
        (engine,) = made._engines.values()
        assert json.loads(engine.read_bytes())["profiles"] == [{"x": [[4, 8, 6, 6]] * 3}]


def test_the_lowering_drops_what_does_not_pay(machine: gpu.Machine) -> None:
    _, integers = both()
    with profiler(machine, **{"two|int8": 1.5}) as made:
        context = Context(placement=CANONICAL, profiler=made)
        after, report = apply_pass(configure(Lowering, {"speed": "keep"}), integers, context)
    assert on_integers(after) == {"one", "three", "head"}
    (skip,) = report.skips
    assert skip.node == "two"
    assert skip.reason.startswith("on integers it takes 1.5")
    assert report.warnings == []


def test_a_build_that_fails_is_a_target_error(machine: gpu.Machine) -> None:
    made = profiler(machine)
    made._options = replace(made._options, time_limit=0.001)
    with made, pytest.raises(TargetError, match="time limit"):
        made.latencies(*both())


def test_a_model_too_large_to_be_built_again_and_again(
    machine: gpu.Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("onnx_lathe.runtime.targets.tensorrt.profiling.LARGEST_BYTES", 100)
    with profiler(machine) as made:
        assert made.profile(network()) is None


@pytest.mark.parametrize(
    "text", ['{"Layers": ["one", "two"]}', "{}", "[]", "", "no JSON", '{"Layers": null}']
)
def test_an_engine_that_tells_no_details(text: str) -> None:
    with pytest.raises(TargetError, match="TensorRT tells nothing of the engine's layers"):
        read_profile(network(), text, {})


def test_names_of_nodes_with_brackets_between_raw_separators() -> None:
    model = network()
    model.graph.node[0].name = "net[0]/one"
    text = ten(
        [
            layer("net[0]/one", "CaskConvolution", INT8, "[ONNX Layer: net[0]/one]\x1e[ONNX Layer: relu[1]]"),
            layer(
                "other", "kgen", [{"Format/Datatype": "Row major linear UInt8"}, {}], "[ONNX Layer: other]"
            ),
        ]
    ).replace("\\u001e", "\x1e")
    found = read_profile(model, text, {"net[0]/one": 1.0, "other": 0.5})
    assert found.nodes == {"net[0]/one": 1.0, "other": 0.5}
    (region,) = found.regions
    assert (region.nodes, region.ms) == ({"net[0]/one", "relu[1]"}, 1.0)
