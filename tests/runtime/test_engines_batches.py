"""Batches of other sizes than an engine takes: cut into pieces or filled up where that gives what the model computes,
and refused where not.
"""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from onnx_lathe.errors import ModelError
from onnx_lathe.runtime.running import ort
from onnx_lathe.runtime.targets.tensorrt.reopen import reopen
from tests.support import gpu, quantized
from tests.support.engines import build, network

pytestmark = pytest.mark.skipif(bool(gpu.missing()), reason=gpu.missing())


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> gpu.Machine:
    return gpu.Machine(tmp_path, monkeypatch)


def test_a_batch_is_cut_to_what_the_engine_takes(machine: gpu.Machine) -> None:
    session = reopen(build(machine, network(), batch="2:2:3")).session
    weight = np.arange(6, dtype=np.float32).reshape(3, 2)
    for count in (1, 2, 4, 5, 7):
        values = np.random.default_rng(count).standard_normal((count, 3)).astype(np.float32)
        assert np.allclose(ort.run(session, {"x": values})["y"], values @ weight, atol=1e-5)


@pytest.mark.parametrize(
    "operator, shape, keepdims", [("ReduceSum", [], 0), ("ReduceMax", [3], 0), ("ReduceMax", [1, 3], 1)]
)
def test_what_has_no_batch_is_not_cut(
    machine: gpu.Machine, operator: str, shape: list[int], keepdims: int
) -> None:
    axes = {"axes": np.array([0], np.int64)} if shape else {}
    nodes = [helper.make_node(operator, ["x", *axes], ["y"], "over", keepdims=keepdims)]
    model = network(nodes, y=shape, **axes or {"unused": np.zeros(1, np.int64)})
    session = reopen(build(machine, model, batch="3:3:4")).session
    for count in (3, 4):
        values = np.random.default_rng(count).standard_normal((count, 3)).astype(np.float32)
        found = ort.run(session, {"x": values})["y"]
        assert np.array_equal(found, ort.run(ort.session(model), {"x": values})["y"])
        assert found.shape == tuple(shape)
    for count in (6, 8):
        with pytest.raises(ModelError, match=r"output 'y' has no batch, and the engine takes .* in pieces"):
            ort.run(session, {"x": np.ones((count, 3), np.float32)})
    with pytest.raises(ModelError, match="output 'y' has no batch, and the engine takes 3 samples or more"):
        ort.run(session, {"x": np.ones((1, 3), np.float32)})


def relative(reduction: str) -> list[onnx.NodeProto]:
    """y = x - what x is over its batch."""
    reduced = helper.make_node(reduction, ["x", "axes"], ["over"], "over", keepdims=1)
    return [reduced, helper.make_node("Sub", ["x", "over"], ["y"], "relative")]


ZERO = {"axes": np.array([0], np.int64)}
TRANSPOSED = [
    helper.make_node("Transpose", ["x"], ["turned"], "turned", perm=[1, 0]),
    helper.make_node("Reshape", ["turned", "flat"], ["y"], "flat"),
]
PLACES = [
    helper.make_node("CumSum", ["ones", "zero"], ["all"], "all"),
    helper.make_node("Shape", ["x"], ["sizes"], "sizes", end=1),
    helper.make_node("Slice", ["all", "start", "sizes"], ["places"], "places"),
    helper.make_node("Add", ["x", "places"], ["y"], "add"),
]


@pytest.mark.parametrize(
    "nodes, shape, constants",
    [
        (relative("ReduceMean"), ["n", 3], ZERO),
        (relative("ReduceMax"), ["n", 3], ZERO),
        ([helper.make_node("CumSum", ["x", "zero"], ["y"], "sum")], ["n", 3], {"zero": np.array(0)}),
        (TRANSPOSED, ["m"], {"flat": np.array([-1])}),
        (
            PLACES,
            ["n", 3],
            {"ones": np.ones((99, 1), np.float32), "zero": np.array(0), "start": np.array([0])},
        ),
    ],
    ids=["mean", "largest", "sum so far", "samples last", "places"],
)
@pytest.mark.parametrize("count", [2, 5, 1])
def test_samples_that_have_to_do_with_one_another(
    machine: gpu.Machine, nodes: list[onnx.NodeProto], shape: list, constants: dict, count: int
) -> None:
    model = network(nodes, y=shape, **constants)
    session = reopen(build(machine, model, batch="2:2:4")).session
    values = np.random.default_rng(0).standard_normal((count, 3)).astype(np.float32)
    for _ in range(2):
        if count == 2:
            assert np.array_equal(
                ort.run(session, {"x": values})["y"], ort.run(ort.session(model), {"x": values})["y"]
            )
            continue
        words = "takes these samples only in pieces" if count == 5 else "takes 2 samples or more"
        with pytest.raises(
            ModelError, match=f"output 'y' of a sample depends on its place .* other samples, and .*{words}"
        ):
            ort.run(session, {"x": values})


def test_a_batch_of_equal_samples_tells_too(machine: gpu.Machine) -> None:
    session = reopen(
        build(machine, network(relative("ReduceSum"), y=["n", 3], **ZERO), batch="2:2:4")
    ).session
    for values in (np.zeros((8, 3), np.float32), np.ones((8, 3), np.float32)):
        session._mixed.clear()
        with pytest.raises(ModelError, match="depends on its place in the batch or on the other samples"):
            ort.run(session, {"x": values})


def test_samples_that_differ_tell_more(machine: gpu.Machine) -> None:
    """Beside a copy, or anything smaller, the largest stays what it is."""
    model = network(relative("ReduceMax"), y=["n", 3], **ZERO)
    session = reopen(build(machine, model, batch="2:2:2")).session
    assert ort.run(session, {"x": np.full((1, 3), 5, np.float32)})["y"].tolist() == [[0, 0, 0]]
    with pytest.raises(ModelError, match="depends on its place in the batch or on the other samples"):
        ort.run(session, {"x": np.arange(12, dtype=np.float32).reshape(4, 3)})


def test_an_output_that_is_not_asked_for_is_not_judged(machine: gpu.Machine) -> None:
    nodes = [helper.make_node("Relu", ["x"], ["y"], "relu"), *relative("ReduceSum")]
    nodes[-1].output[0] = "z"
    nodes.append(helper.make_node("ReduceSum", ["x"], ["all"], "all", keepdims=0))
    model = quantized.model(nodes, {"x": ["n", 3]}, {"y": ["n", 3], "z": ["n", 3], "all": []}, ZERO)
    session = reopen(build(machine, model, batch="1:2:2")).session
    values = np.random.default_rng(0).standard_normal((8, 3)).astype(np.float32)
    assert np.array_equal(session.run(["y"], {"x": values})[0], np.maximum(values, 0))
    with pytest.raises(ModelError, match="output 'z' of a sample depends on its place"):
        session.run(["z"], {"x": values})


def test_it_is_tried_once(machine: gpu.Machine, monkeypatch: pytest.MonkeyPatch) -> None:
    session = reopen(build(machine, network(), batch="1:2:4")).session
    calls = []
    ask = session.process.ask
    monkeypatch.setattr(session.process, "ask", lambda *given: calls.append(given) or ask(*given))
    values = np.random.default_rng(0).standard_normal((8, 3)).astype(np.float32)
    for wanted in (3, 2):
        calls.clear()
        session.run(None, {"x": values})
        assert len(calls) == wanted


def test_a_shape_that_depends_on_values_is_not_cut(machine: gpu.Machine) -> None:
    """Rows [sample, place] of what is not 0: as many for each sample here, and samples would be counted anew."""
    nodes = [
        helper.make_node("NonZero", ["x"], ["where"], "nonzero"),
        helper.make_node("Transpose", ["where"], ["found"], "turn", perm=[1, 0]),
    ]
    model = quantized.model(nodes, {"x": ["n", 3]}, {"found": (["k", 2], TensorProto.INT64)}, {})
    session = reopen(build(machine, model, batch="2:2:4")).session
    assert len(session.run(None, {"x": np.ones((4, 3), np.float32)})[0]) == 12
    for count in (8, 1):
        with pytest.raises(ModelError, match="the shape of output 'found' depends on values, and the engine"):
            session.run(None, {"x": np.ones((count, 3), np.float32)})
