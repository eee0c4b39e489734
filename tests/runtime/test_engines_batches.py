"""Batches of other sizes than an engine takes: cut into pieces or filled up where that gives what the model computes,
and refused where not.
"""

from pathlib import Path

import numpy as np
import pytest
from onnx import helper

from onnx_lathe.errors import ModelError
from onnx_lathe.runtime.running import ort
from onnx_lathe.runtime.targets.tensorrt.reopen import reopen
from tests.support import gpu
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
